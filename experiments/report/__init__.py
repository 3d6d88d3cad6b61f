"""Reports on runs: `python -m experiments.report runs`."""
