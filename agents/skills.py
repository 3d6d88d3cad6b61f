"""What the recipes of skill agents have in common: a planner over skills, and a policy below that carries them out."""

from abc import abstractmethod
from dataclasses import dataclass, field
from math import inf

import numpy as np
import torch
from gymnasium import spaces

from layeredrl.checks import require_counts, require_number
from layeredrl.ensemble_config import EnsembleConfig
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ExplorationConfig, PlannerLevel, PolicyLearningConfig
from layeredrl.levels.skill_level import SkillLevel
from layeredrl.objective import Objective
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEM, ICEMConfig
from layeredrl.skills import ModelBasedSkills, SkillModelConfig
from layeredrl.support import GridSupport
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, WorldModel


@dataclass(frozen=True)
class SkillAgent:
    """A planner over skills that are learned together with a model of what they lead to."""

    skill_dim: int = 2
    """Numbers that a skill is made of, each in [-1, 1]; with `n_skills`, ignored."""
    n_skills: int = 0
    """Skills to choose from; 0 for continuous ones."""
    duration: int = 10
    """Environment steps that a skill runs."""
    state: tuple[str, ...] = ("achieved_goal",)
    """Parts of the observation that skills change and the planner predicts; () for all but the goal."""
    model: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The world model."""
    skills: SkillModelConfig = field(default_factory=SkillModelConfig)
    """When and how it is learned, and how skills are paid by it."""
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    """The planner; its horizon counts skills."""
    exploration: ExplorationConfig = field(
        default_factory=lambda: ExplorationConfig(to_random=0.1, to_plan=0.3, n_random_steps=20_000)
    )
    """How plans and random skills mix."""
    support_weight: float = 0.0
    """Reward lost, in planning without exploration, for each step of the model to where the data never was."""
    support_cell: float = 0.25
    """Edge length of the cells whose visits tell that, in the state's units."""
    support_visits: int = 4
    """Visits from which on a cell counts as known."""
    sac: SACConfig = field(default_factory=SACConfig)
    """The policy's algorithm."""
    policy: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how the policy is learned."""
    fresh_skills: float = 0.5
    """Share of the policy's transitions that are learned from with another skill."""

    def __post_init__(self) -> None:
        require_counts(self, skill_dim=1, n_skills=0, duration=1)
        require_number("fresh_skills", self.fresh_skills, 0, 1)
        require_number("support_weight", self.support_weight, 0, inf)

    @property
    def space(self) -> spaces.Box | spaces.Discrete:
        """Of the skills."""
        if self.n_skills:
            return spaces.Discrete(self.n_skills)
        return spaces.Box(-1.0, 1.0, (self.skill_dim,), np.float32)

    @abstractmethod
    def make_method(self, task: TaskSpec, device: torch.device) -> ModelBasedSkills:
        """The skill method, with its world model."""

    def make_world(
        self, task: TaskSpec, device: torch.device, *, steps: int, repeat: int = 1, sb_start_duration: int = 0
    ) -> WorldModel:
        """The world model.

        Args:
            task: Of the environment.
            device: Where it computes.
            steps: Environment steps of one step of the model.
            repeat: Steps of the model for which a skill is held.
            sb_start_duration: Environment steps of the symmetry-breaking start; 0 for none.
        """
        encoder = Encoder(task, self.state or None)
        # A known reward takes a state of all parts, and a shorter one if that is how the long one begins.
        coarse = task.coarse(self.space, steps, known=encoder.begins_like(Encoder(task)))
        dynamics = self.model.build(
            encoder.state_space, encoder.context_space, self.space, device, sb_start_duration=sb_start_duration
        )
        dims = tuple(range(encoder.state_dim))
        objective = Objective(
            encoder.state_dim,
            support=GridSupport(dims, self.support_cell, self.support_visits) if self.support_weight else None,
            support_weight=self.support_weight,
        )
        return WorldModel(encoder, dynamics, coarse, objective=objective, repeat=repeat)

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task; networks are drawn from torch's global generator."""
        if not isinstance(task.action_space, spaces.Box):
            raise ValueError(f"the action space is {task.action_space}, expected a Box: SAC acts in nothing else")
        method = self.make_method(task, device)
        policy = SkillLevel(
            self.sac.build(method.n_inputs, task.action_space, device),
            method,
            task.action_space,
            n_envs=task.n_envs,
            fresh_skills=self.fresh_skills,
            learning=self.policy,
            seed=seed,
        )
        planner = PlannerLevel(
            method.world,
            ICEM(self.space, self.icem),
            self.space,
            duration=self.duration,
            exploration=self.exploration,
            seed=seed,
        )
        return Hierarchy([planner, policy], task, device)
