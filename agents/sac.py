"""SAC or TD3: a policy learned model-free, the baseline of agents that learn a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from agents.recipe import Choice, Recipe
from layeredrl.checks import require_choice
from layeredrl.environments import TaskFacts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLearningConfig, PolicyLevel
from layeredrl.off_policy import SACConfig, TD3Config
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig


@dataclass(frozen=True)
class SAC(Recipe):
    """Model-free reinforcement learning."""

    algorithm: Literal["sac", "td3"] = "sac"
    """Algorithm."""
    sac: SACConfig = field(default_factory=SACConfig)
    """Settings of SAC."""
    td3: TD3Config = field(default_factory=TD3Config)
    """Settings of TD3."""
    learning: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how it learns."""

    trainers: ClassVar[Mapping[str, TrainerConfig]] = {
        "demo": TrainerConfig(n_total_env_steps=10_000),
        "paper": TrainerConfig(n_total_env_steps=1_000_000),
    }

    @classmethod
    def suited(cls, facts: TaskFacts) -> list[Choice]:
        """Settings that suit a task, on one core."""
        small, size = facts.state_dim <= 6, f"{facts.state_dim} observation dimensions"
        hidden = (64, 64) if small else (256, 256)
        return [
            *(Choice(f"{kind}.hidden", hidden, size) for kind in ("sac", "td3")),
            *(Choice(f"{kind}.learning_rate", 1e-3, "few steps") for kind in ("sac", "td3")),
            Choice("learning.n_random_steps", 500 if small else 1000, size),
            Choice("trainer.n_total_env_steps", 10_000 if small else 100_000, size),
        ]

    def __post_init__(self) -> None:
        require_choice("algorithm", self.algorithm, ("sac", "td3"))

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task; networks are drawn from torch's global generator."""
        config = self.sac if self.algorithm == "sac" else self.td3
        algorithm = config.build(task.observation_dim, task.action_space, device)
        level = PolicyLevel(algorithm, task.action_space, n_envs=task.n_envs, learning=self.learning, seed=seed)
        return Hierarchy([level], task, device)


SAC.presets = {
    # Small networks and a higher learning rate: tasks of the classic kind within minutes.
    "demo": {
        "sac": SACConfig(hidden=(64, 64), learning_rate=1e-3),
        "td3": TD3Config(hidden=(64, 64), learning_rate=1e-3),
        "learning": PolicyLearningConfig(n_random_steps=500),
    },
    "debug": {
        "sac": SACConfig(hidden=(16,)),
        "td3": TD3Config(hidden=(16,)),
        "learning": PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10, replay_size=10_000),
    },
    # Haarnoja et al. 2018, arXiv 1812.05905, appendix D; 10,000 random steps as in their released code.
    "paper": {"learning": PolicyLearningConfig(n_random_steps=10_000)},
}
