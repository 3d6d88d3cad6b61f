"""One run: its settings, its folder, its parts, its end."""
