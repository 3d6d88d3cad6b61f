"""Measurements of speed and learning, each a command that writes its table under experiments/results/."""
