"""Planners: sampling-based optimisers of action sequences."""

from layeredrl.planners.cem import CEM, CEMConfig
from layeredrl.planners.config import PLANNERS, PlannerConfig, make_planner_config
from layeredrl.planners.icem import ICEM, ICEMConfig
from layeredrl.planners.mppi import MPPI, MPPIConfig
from layeredrl.planners.planner import Plan, Planner, ScoreFunction
from layeredrl.planners.random_shooting import RandomShooting, RandomShootingConfig

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "CEMConfig",
    "ICEMConfig",
    "MPPIConfig",
    "Plan",
    "Planner",
    "PlannerConfig",
    "RandomShooting",
    "RandomShootingConfig",
    "ScoreFunction",
    "make_planner_config",
]
