"""Guidance of planning by a policy and critics that are learned beside the model."""

from dataclasses import dataclass, field, replace

import torch

from layeredrl.checks import require_counts, require_number, require_reward_scale
from layeredrl.levels import ExplorationConfig, GuidedLevel, ImaginingLevel, PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.planners import Planner
from layeredrl.world_model import Imagination, ImaginationConfig, ModelLearningConfig, WorldModelLearner


@dataclass(frozen=True)
class GuidanceConfig:
    """A policy that proposes plans, and critics whose value plans end in."""

    n_proposals: int = 8
    """Number of the policy's sequences among the planner's candidates, an eighth of the usual ones; 0 for the value
    alone."""
    noise: float = 0.1
    """Standard deviation of the noise of planned actions while exploring, as TD3's: without it, critics see few actions
    beside the best ones."""
    real_share: float = 1.0
    """Share of real transitions in a batch of the policy; below 1, the others are imagined."""
    reward_scale: float | None = None
    """Factor of rewards in the policy's updates; None for one over the root mean square of those before the first fit,
    at most one."""
    sac: SACConfig = field(default_factory=lambda: SACConfig(critic_layer_norm=True))
    """Policy and critics; their discount is that of planning."""
    learning: PolicyLearningConfig = field(default_factory=lambda: PolicyLearningConfig(n_random_steps=0))
    """When and how they learn, from the first fit of the model on."""
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    """How much and how far to imagine."""

    def __post_init__(self) -> None:
        require_counts(self, n_proposals=0)
        require_number("noise", self.noise, 0, float("inf"))
        require_number("real_share", self.real_share, 0, 1)
        require_reward_scale(self.reward_scale)
        if self.learning.replay_size != PolicyLearningConfig().replay_size:
            raise ValueError(
                f"guidance.learning.replay_size is {self.learning.replay_size}, expected the default: "
                "there is one replay, of learning.replay_size transitions"
            )
        if self.learning.n_random_steps:
            raise ValueError(
                f"guidance.learning.n_random_steps is {self.learning.n_random_steps}, expected 0: "
                "actions are random for learning.n_random_steps steps, not by this setting, whose usual default is 1000"
            )

    def build(
        self, learner: WorldModelLearner, planner: Planner, device: torch.device, *, common_noise: bool, seed: int
    ) -> GuidedLevel:
        """Make the level.

        Args:
            learner: Learns the world model.
            planner: Plans with it.
            device: Device of the agent.
            common_noise: As of `PlannerLevel`.
            seed: Seed of imagination and replay.
        """
        world, fitting = learner.world, learner.config
        assert isinstance(fitting, ModelLearningConfig), "fits need a ModelLearningConfig"
        policy = ImaginingLevel(
            self.sac.build(world.task.observation_dim, world.task.action_space, device),
            world.task.action_space,
            learner,
            Imagination(world, self.imagination, self.sac.discount, seed=seed),
            real_share=self.real_share,
            reward_scale=self.reward_scale,
            learning=replace(self.learning, replay_size=fitting.replay_size),
            seed=seed,
        )
        exploration = ExplorationConfig(noise=self.noise)
        return GuidedLevel(
            policy, planner, n_proposals=self.n_proposals, exploration=exploration, common_noise=common_noise
        )
