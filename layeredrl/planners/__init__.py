"""Planners: sampling-based optimisers of action sequences."""

from layeredrl.planners.cem import CEM, CEMConfig
from layeredrl.planners.icem import ICEM, ICEMConfig
from layeredrl.planners.mppi import MPPI, MPPIConfig
from layeredrl.planners.planner import Plan, Planner, ScoreFunction
from layeredrl.planners.random_shooting import RandomShooting, RandomShootingConfig

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "CEMConfig",
    "ICEMConfig",
    "MPPIConfig",
    "Plan",
    "Planner",
    "RandomShooting",
    "RandomShootingConfig",
    "ScoreFunction",
]
