"""A planner over goals, and a goal-conditioned policy below it.

The upper level emits displacements that last some environment steps. Its world model predicts their outcomes, and it
plans a sequence of them for the task's reward. The lower level is SAC with hindsight relabelling (Andrychowicz et al.
2017, arXiv 1707.01495). The idea is that of HIRO (Nachum et al. 2018, arXiv 1805.08296), with a planner on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, pi
from typing import ClassVar, get_args

import torch

from agents.coarse_world import SupportKind, make_coarse_world
from agents.recipe import Recipe
from layeredrl.checks import require_choice, require_counts, require_number
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import (
    ExplorationConfig,
    PlannerLevel,
    PolicyLearningConfig,
    PolicyLevel,
)
from layeredrl.levels.goals import GoalCommands, GoalReward, Hindsight
from layeredrl.models import FitConfig
from layeredrl.models.config import EnsembleConfig
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEMConfig, PlannerConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import Encoder, ModelLearningConfig, WorldModelLearner


@dataclass(frozen=True)
class Goals(Recipe):
    """Planning over goals, which a policy reaches."""

    duration: int = 10
    """Duration of a goal in environment steps."""
    radius: float = 1.0
    """Largest displacement to a goal in each dimension, in its units: as far as the agent gets in that time."""
    state: tuple[str, ...] = ("achieved_goal",)
    """Parts of the observation that the world model predicts; () for all but the goal."""
    model: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The upper level's world model."""
    learning: ModelLearningConfig = field(default_factory=ModelLearningConfig)
    """When and how it is fitted."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """The upper level's planner; its horizon counts goals."""
    exploration: ExplorationConfig = field(default_factory=lambda: ExplorationConfig(to_random=0.1, to_plan=0.3))
    """How the upper level mixes plans and random goals."""
    support_weight: float = 0.0
    """Penalty, in planning without exploration, for each predicted outcome that the data does not support."""
    support: SupportKind = "cells"
    """Measure of support: visits of cells, or, for goals of more than three dimensions, the nearest states."""
    support_cell: float = 0.25
    """Edge length of the cells of the achieved goal, in its units."""
    support_visits: int = 3
    """Visits, at the ends of goals, from which a cell counts as known."""
    sac: SACConfig = field(default_factory=SACConfig)
    """The lower level's algorithm."""
    policy: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how the lower level learns."""
    hindsight: float = 0.5
    """Share of the lower level's transitions that are relabelled with a goal that was reached."""
    goal_reward: GoalReward = "distance"
    """Reward of the lower level."""

    environment: ClassVar[str] = "Maze2D-Medium-v0"
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {"demo": TrainerConfig(n_total_env_steps=100_000)}

    def __post_init__(self) -> None:
        require_counts(self, duration=1)
        require_number("radius", self.radius, 0, inf, open_low=True)
        require_number("support_weight", self.support_weight, 0, inf)
        require_choice("support", self.support, get_args(SupportKind))
        require_number("hindsight", self.hindsight, 0, 1)

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task whose observations are a Dict with `achieved_goal` and `desired_goal`."""
        goals = GoalCommands(task, self.radius, self.duration)
        policy = PolicyLevel(
            self.sac.build(goals.n_inputs, task.action_space, device),
            task.action_space,
            goals.space,
            n_envs=task.n_envs,
            inputs=goals.inputs,
            relabel=Hindsight(goals, share=self.hindsight, reward=self.goal_reward),
            learning=self.policy,
            name="goals",
            seed=seed,
        )
        return Hierarchy([self._planner(task, goals, device, seed), policy], task, device)

    def _planner(self, task: TaskSpec, goals: GoalCommands, device: torch.device, seed: int) -> PlannerLevel:
        encoder = Encoder(task, self.state or None)
        world = make_coarse_world(
            self, task, encoder, goals.space, device, steps=self.duration, support_dims=goals.dims(encoder)
        )
        return PlannerLevel(
            world,
            self.planner.build(goals.space),
            goals.space,
            duration=self.duration,
            exploration=self.exploration,
            learner=WorldModelLearner(world, self.learning, seed=seed),
            seed=seed,
        )


Goals.presets = {
    # For mazes of a few metres, in minutes on one core.
    "demo": {
        "model": EnsembleConfig(
            n_models=3,
            hidden=(128, 128),
            frequencies=(pi / 2, pi, 2 * pi),  # walls are a metre apart
            weight_decay=(1e-5,),
            propagation="expectation",
        ),
        "learning": ModelLearningConfig(
            n_random_steps=12_000, fit_every=2000, first_epochs=50, fit=FitConfig(epochs=8, batch_size=256)
        ),
        "planner": PlannerConfig(
            icem=ICEMConfig(horizon=12, n_samples=64, n_iterations=6, n_elites=10, init_std=1.0, execute="mean")
        ),
        "support_weight": 2.0,
        "sac": SACConfig(hidden=(64, 64), learning_rate=1e-3),
        "policy": PolicyLearningConfig(n_random_steps=2000, updates_per_transition=0.5),
    },
    "debug": {
        "duration": 3,
        "model": EnsembleConfig(n_models=2, hidden=(16,), weight_decay=(1e-5,)),
        "learning": ModelLearningConfig(
            n_random_steps=24, fit_every=12, replay_size=10_000, fit=FitConfig(epochs=2, batch_size=16)
        ),
        "planner": PlannerConfig(icem=ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=3)),
        "sac": SACConfig(hidden=(16,)),
        "policy": PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10, replay_size=10_000),
    },
}
