"""How the members of an ensemble are evaluated together, fast."""
