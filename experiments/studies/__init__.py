"""Studies for `python -m experiments.sweep`."""
