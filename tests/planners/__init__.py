"""Tests of layeredrl.planners: the contract of every planner, and each algorithm against a plain reference."""
