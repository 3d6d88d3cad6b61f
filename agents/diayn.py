"""DIAYN: skills that a discriminator recognises (Eysenbach et al. 2019, arXiv 1802.06070), drawn at random."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from agents.recipe import Recipe
from layeredrl.checks import require_counts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLearningConfig, RandomLevel
from layeredrl.off_policy import SACConfig
from layeredrl.skills import DIAYN, SkillLevel, SkillMethod
from layeredrl.skills.diayn import DiscriminatorConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import Encoder


@dataclass(frozen=True)
class DIAYNAgent(Recipe):
    """Skills without a model."""

    n_skills: int = 8
    """Number of skills."""
    duration: int = 50
    """Duration of a skill in environment steps."""
    state: tuple[str, ...] = ()
    """Parts of the observation that the discriminator sees; () for all but the goal."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Network of the discriminator, and when and how it learns."""
    sac: SACConfig = field(default_factory=SACConfig)
    """The policy's algorithm."""
    policy: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how the policy is learned."""

    environment: ClassVar[str] = "Maze2D-Medium-v0"
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {"demo": TrainerConfig(n_total_env_steps=100_000)}

    def __post_init__(self) -> None:
        require_counts(self, n_skills=1, duration=1)

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task; networks are drawn from torch's global generator."""
        method = self.make_method(task, device)
        algorithm = self.sac.build(method.n_inputs, task.action_space, device)
        policy = SkillLevel(algorithm, method, task.action_space, n_envs=task.n_envs, learning=self.policy, seed=seed)
        return Hierarchy([RandomLevel(method.space, duration=method.duration), policy], task, device)

    def make_method(self, task: TaskSpec, device: torch.device) -> SkillMethod:
        """The skill method; a subclass may bring another one."""
        encoder = Encoder(task, self.state or None).to(device)
        return DIAYN(task, encoder, self.n_skills, self.duration, config=self.discriminator)


DIAYNAgent.presets = {
    "demo": {
        "sac": SACConfig(hidden=(64, 64), learning_rate=1e-3),
        "policy": PolicyLearningConfig(n_random_steps=2000, updates_per_transition=0.5),
    },
    "debug": {
        "n_skills": 3,
        "duration": 5,
        "discriminator": DiscriminatorConfig(batch_size=16, report_every=20),
        "sac": SACConfig(hidden=(16,)),
        "policy": PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10, replay_size=10_000),
    },
}
