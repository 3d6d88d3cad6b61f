"""Tests of layeredrl.off_policy."""
