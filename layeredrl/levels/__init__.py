"""Levels: decision makers at one time scale."""

from layeredrl.levels.level import Decision, Level
from layeredrl.levels.planner_level import ModelLearningConfig, PlannerLevel
from layeredrl.levels.policy_level import ObservationAndCommand, PolicyLearningConfig, PolicyLevel
from layeredrl.levels.random_level import RandomLevel

__all__ = [
    "Decision",
    "Level",
    "ModelLearningConfig",
    "ObservationAndCommand",
    "PlannerLevel",
    "PolicyLearningConfig",
    "PolicyLevel",
    "RandomLevel",
]
