"""Measures and figures of how good a dynamics model is."""
