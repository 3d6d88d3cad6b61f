"""Levels: decision makers at one time scale."""

from layeredrl.levels.exploration import ExplorationConfig
from layeredrl.levels.goals import GoalCommands, Hindsight
from layeredrl.levels.guided_level import GuidedLevel
from layeredrl.levels.imagining_level import ImaginingLevel
from layeredrl.levels.latent_level import LatentLevel
from layeredrl.levels.level import Decision, Level
from layeredrl.levels.planner_level import PlannerLevel, PlanningError
from layeredrl.levels.policy_level import ObservationAndCommand, PolicyLearningConfig, PolicyLevel
from layeredrl.levels.random_level import RandomLevel

__all__ = [
    "Decision",
    "ExplorationConfig",
    "GoalCommands",
    "GuidedLevel",
    "Hindsight",
    "ImaginingLevel",
    "LatentLevel",
    "Level",
    "ObservationAndCommand",
    "PlannerLevel",
    "PlanningError",
    "PolicyLearningConfig",
    "PolicyLevel",
    "RandomLevel",
]
