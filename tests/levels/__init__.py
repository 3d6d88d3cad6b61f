"""Tests of layeredrl.levels."""
