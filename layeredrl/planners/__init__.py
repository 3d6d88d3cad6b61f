"""Planners: sampling-based optimisers of action sequences."""

from layeredrl.planners.cem import CEM, CEMConfig
from layeredrl.planners.icem import ICEM, ICEMConfig
from layeredrl.planners.planner import Plan, Planner, ScoreFunction

__all__ = ["CEM", "ICEM", "CEMConfig", "ICEMConfig", "Plan", "Planner", "ScoreFunction"]
