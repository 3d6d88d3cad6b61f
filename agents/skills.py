"""The base of recipes of skill agents: a planner over skills, and a policy below it that carries them out."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, pi
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from gymnasium import spaces

from agents.coarse_world import SupportKind, make_coarse_world
from agents.recipe import Recipe
from layeredrl.checks import require_choice, require_counts, require_number
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ExplorationConfig, PlannerLevel, PolicyLearningConfig, PolicyLevel
from layeredrl.models.config import EnsembleConfig
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEMConfig, Planner, PlannerConfig
from layeredrl.skills import AtEnd, ModelBasedSkills, SkillLevel, SkillModelConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import Encoder, WorldModel

IN_A_MAZE: dict[str, Any] = {
    "model": EnsembleConfig(
        n_models=1,
        n_modes=4,
        hidden=(128, 128),
        frequencies=(pi / 2, pi, 2 * pi),  # walls are a metre apart
        weight_decay=(0.0,),
        propagation="mode",
        rollout_dtype="auto",
    ),
    "planner": PlannerConfig(
        icem=ICEMConfig(horizon=20, n_samples=128, n_iterations=8, n_elites=10, decay=1.1, init_std=1.0, execute="mean")
    ),
    "exploration": ExplorationConfig(to_random=0.1, to_plan=0.3, n_random_steps=20_000, effort=0.4),
    "sac": SACConfig(hidden=(64, 64), learning_rate=1e-3),
    "policy": PolicyLearningConfig(n_random_steps=2000, updates_per_transition=0.25),
}
"""Settings that suit mazes of a few metres, on one core."""

TRAINERS = {
    "demo": TrainerConfig(n_total_env_steps=150_000, checkpoint_every=20_000),
    "ant": TrainerConfig(n_total_env_steps=120_000, checkpoint_every=20_000),
}

ON_LEGS: dict[str, Any] = {
    "duration": 20,
    "hidden": ("achieved_goal",),
    "model": EnsembleConfig(
        n_models=1, n_modes=4, hidden=(128, 128), weight_decay=(0.0,), propagation="mode", rollout_dtype="auto"
    ),
    "planner": PlannerConfig(
        icem=ICEMConfig(horizon=10, n_samples=128, n_iterations=8, n_elites=10, decay=1.1, init_std=1.0, execute="mean")
    ),
    "exploration": ExplorationConfig(to_random=0.1, to_plan=0.3, n_random_steps=50_000, effort=0.4),
    "sac": SACConfig(hidden=(256, 256)),
    "policy": PolicyLearningConfig(n_random_steps=5000, updates_per_transition=0.25),
}
"""Settings for the plane and a robot with legs, with skills in x and y (DADS: the x-y prior)."""

DEBUG: dict[str, Any] = {
    "duration": 4,
    "model": EnsembleConfig(n_models=1, n_modes=2, hidden=(16,), weight_decay=(0.0,)),
    "skills": SkillModelConfig(n_first=24, batch_size=16, n_priors=4, refresh_every=20, report_every=20),
    "planner": PlannerConfig(icem=ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=3)),
    "exploration": ExplorationConfig(to_random=0.2, to_plan=0.5, n_random_steps=30),
    "sac": SACConfig(hidden=(16,)),
    "policy": PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10, replay_size=10_000),
}
"""Settings with which all parts learn within some hundred steps."""


@dataclass(frozen=True)
class SkillAgent(Recipe):
    """A planner over skills that are learned together with a model of their outcomes."""

    skill_dim: int = 2
    """Dimensions of a continuous skill in [-1, 1]; ignored with `n_skills`."""
    n_skills: int = 0
    """Number of discrete skills; 0 for continuous ones."""
    duration: int = 10
    """Duration of a skill in environment steps."""
    state: tuple[str, ...] = ("achieved_goal",)
    """Parts of the observation that skills change and the planner predicts; () for all but the goal."""
    hidden: tuple[str, ...] = ()
    """Parts of the observation that the policy does not see, such as a robot's position."""
    model: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The world model."""
    skills: SkillModelConfig = field(default_factory=SkillModelConfig)
    """When and how it is learned, and how the intrinsic reward uses it."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Planner and its settings; horizons count skills."""
    exploration: ExplorationConfig = field(
        default_factory=lambda: ExplorationConfig(to_random=0.1, to_plan=0.3, n_random_steps=20_000)
    )
    """How plans and random skills mix."""
    support_weight: float = 0.0
    """Penalty, in planning without exploration, for each step of the model to an unsupported state."""
    support: SupportKind = "cells"
    """Measure of support: visits of cells, or, for states of more than three dimensions, the nearest states."""
    support_cell: float = 0.25
    """Edge length of the cells, in the state's units."""
    support_visits: int = 4
    """Visits from which a cell counts as known."""
    sac: SACConfig = field(default_factory=SACConfig)
    """The policy's algorithm."""
    policy: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how the policy is learned."""
    at_end: AtEnd | None = None
    """Continuation of the policy's value after a skill's end: `zero`, the `same` skill again, or a `fresh` one; by
    default the method's own, fresh for SPlaTES and the same for DADS."""
    calm_skills: float = 0.5
    """Share of the skills that are executed without the policy's noise in training."""
    fresh_skills: float = 0.5
    """Share of the policy's transitions whose skill is replaced by one from the prior."""

    environment: ClassVar[str] = "Maze2D-Medium-v0"
    environments: ClassVar[Mapping[str, str]] = {"ant": "AntGoal-v0"}

    def __post_init__(self) -> None:
        require_counts(self, skill_dim=1, n_skills=0, duration=1)
        for name in ("calm_skills", "fresh_skills"):
            require_number(name, getattr(self, name), 0, 1)
        require_number("support_weight", self.support_weight, 0, inf)
        require_choice("support", self.support, get_args(SupportKind))
        if self.at_end is not None:
            require_choice("at_end", self.at_end, get_args(AtEnd))

    @property
    def space(self) -> spaces.Box | spaces.Discrete:
        """Skill space."""
        if self.n_skills:
            return spaces.Discrete(self.n_skills)
        return spaces.Box(-1.0, 1.0, (self.skill_dim,), np.float32)

    @abstractmethod
    def make_method(self, task: TaskSpec, device: torch.device) -> ModelBasedSkills:
        """The skill method, with its world model."""

    def make_encoder(self, task: TaskSpec) -> Encoder:
        """Encoder of the state that skills change and the planner predicts."""
        return Encoder(task, self.state or None)

    def make_world(
        self, task: TaskSpec, device: torch.device, *, steps: int, repeat: int = 1, **model: Any
    ) -> WorldModel:
        """The world model.

        Args:
            task: The task of the environment.
            device: Device of the model.
            steps: Environment steps of one step of the model.
            repeat: Steps of the model for which a skill is held.
            **model: Further arguments of `EnsembleConfig.build`.
        """
        encoder = self.make_encoder(task)
        return make_coarse_world(
            self,
            task,
            encoder,
            self.space,
            device,
            steps=steps,
            support_dims=tuple(range(encoder.state_dim)),
            repeat=repeat,
            **model,
        )

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task; networks are drawn from torch's global generator."""
        method = self.make_method(task, device)
        planner = PlannerLevel(
            method.world,
            self.make_planner(),
            self.space,
            duration=self.duration,
            exploration=self.exploration,
            seed=seed,
        )
        return Hierarchy([planner, *self.make_policies(method, task, device, seed)], task, device)

    def make_planner(self) -> Planner:
        """The planner over skills; a subclass may bring another one."""
        return self.planner.build(self.space)

    def make_policies(
        self, method: ModelBasedSkills, task: TaskSpec, device: torch.device, seed: int
    ) -> list[PolicyLevel]:
        """Levels that carry out the skills, top first."""
        return [self.make_skill_level(method, task.action_space, task, device, seed=seed)]

    def make_skill_level(
        self,
        method: ModelBasedSkills,
        space: spaces.Space[Any],
        task: TaskSpec,
        device: torch.device,
        *,
        seed: int,
        duration: int = 1,
    ) -> SkillLevel:
        """The level whose commands are skills; its own actions, in `space`, last `duration` environment steps."""
        return SkillLevel(
            self.sac.build(method.n_inputs, space, device),
            method,
            space,
            n_envs=task.n_envs,
            calm_skills=self.calm_skills,
            fresh_skills=self.fresh_skills,
            duration=duration,
            learning=self.policy,
            seed=seed,
        )
