"""Settings of SAC and TD3, which build the algorithms."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.sac import AutoAlpha
from tianshou.algorithm.optim import TorchOptimizerFactory
from tianshou.exploration import GaussianNoise

from layeredrl import action_spaces
from layeredrl.checks import require_counts, require_finite_number, require_number
from layeredrl.models.fused_adam import FusedAdam
from layeredrl.off_policy.actor_critic import Critics, StackedSAC, StackedTD3
from layeredrl.off_policy.actors import DeterministicActor, DeterministicPolicy, GaussianActor, SquashedGaussianPolicy
from layeredrl.off_policy.algorithm import OffPolicyAlgorithm
from layeredrl.off_policy.stacked_mlp import mlp

LARGEST_ENTROPY = 0.6836
"""Largest entropy of tanh(x) for a normal x, in nats: at a mean of 0 and a standard deviation of 0.875."""


@dataclass(frozen=True)
class ActorCriticConfig:
    """Settings of both SAC and TD3."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    learning_rate: float = 3e-4
    """Learning rate of Adam, for actor and critics."""
    discount: float = 0.99
    """Discount per environment step."""
    tau: float = 0.005
    """Step size of the target networks towards the networks, at every update of the actor."""
    critic_layer_norm: bool = False
    """Layer norm in the critics, before each ReLU: for many updates per transition."""
    pessimism: float = 1.0
    """How far a value lies below the mean of both critics, in halves of their difference: 1 for the lower of them, 0
    for their mean, which suits critics with layer norm (BRO, Nauman et al. 2024, arXiv 2405.16158). TD3's policy goes
    by its first critic alone."""

    def __post_init__(self) -> None:
        if min(self.hidden, default=0) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected at least one width of at least 1")
        require_number("learning_rate", self.learning_rate, 0, math.inf, open_low=True)
        require_number("discount", self.discount, 0, 1)
        require_number("tau", self.tau, 0, 1, open_low=True)
        require_number("pessimism", self.pessimism, 0, 1)

    def _settings(self, n_inputs: int, action_space: spaces.Box, device: torch.device) -> dict[str, Any]:
        """Two independent critics, and the other settings of both algorithms."""
        widths = [n_inputs + action_space.shape[0], *self.hidden, 1]
        critics = Critics([mlp(widths, layer_norm=self.critic_layer_norm) for _ in range(2)])
        return {
            "critics": critics.to(device),
            "optim": self._adam(self.learning_rate, device),
            "tau": self.tau,
            "gamma": self.discount,
            "pessimism": self.pessimism,
        }

    def _adam(self, learning_rate: float, device: torch.device) -> TorchOptimizerFactory:
        return TorchOptimizerFactory(FusedAdam, lr=learning_rate, fused=True, capturable=device.type == "cuda")


@dataclass(frozen=True)
class SACConfig(ActorCriticConfig):
    """Soft actor-critic with a tuned entropy coefficient (Haarnoja et al. 2018, arXiv 1812.05905)."""

    alpha: float | None = None
    """Entropy coefficient; None to tune it."""
    initial_alpha: float = 1.0
    """Initial value of a tuned coefficient."""
    target_entropy: float | None = None
    """Entropy to which alpha is tuned, in nats; None for minus the number of actions A. The policy's,
    of actions in [-1, 1], is at most 0.6836 A, below A log 2 of uniform actions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            require_number("alpha", self.alpha, 0, math.inf)
        if self.target_entropy is not None:
            require_finite_number("target_entropy", self.target_entropy)
        require_number("initial_alpha", self.initial_alpha, 0, math.inf, open_low=True)

    def build(self, n_inputs: int, action_space: spaces.Space[Any], device: torch.device) -> OffPolicyAlgorithm:
        """The algorithm, with networks drawn from torch's global generator.

        Args:
            n_inputs: Width of the policy's inputs.
            action_space: A flat Box of [-1, 1].
            device: Device of the networks.
        """
        space = action_spaces.require_unit_box(action_space)
        actor = GaussianActor(mlp([n_inputs, *self.hidden, 2 * space.shape[0]])).to(device)
        alpha: float | AutoAlpha
        if self.alpha is None:
            target, largest = self.target_entropy, space.shape[0] * LARGEST_ENTROPY
            if target is None:
                target = -float(space.shape[0])
            if target >= largest:
                raise ValueError(
                    f"target_entropy is {target}, expected less than {largest:.3f}, the largest entropy of the policy: "
                    f"{LARGEST_ENTROPY} for each of {space.shape[0]} action dimensions"
                )
            alpha = AutoAlpha(target, math.log(self.initial_alpha), self._adam(self.learning_rate, device)).to(device)
        else:
            alpha = float(self.alpha)
        policy = SquashedGaussianPolicy(actor=actor, action_space=space)
        return StackedSAC(policy=policy, alpha=alpha, **self._settings(n_inputs, space, device))


@dataclass(frozen=True)
class TD3Config(ActorCriticConfig):
    """Twin delayed deterministic policy gradients (Fujimoto et al. 2018, arXiv 1802.09477)."""

    exploration_noise: float = 0.1
    """Standard deviation of the noise added to actions while exploring."""
    policy_noise: float = 0.2
    """Standard deviation of the noise of the target's actions."""
    noise_clip: float = 0.5
    """Largest noise of the target's actions."""
    actor_every: int = 2
    """Updates of the critics for each of the actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("exploration_noise", "policy_noise"):
            require_number(name, getattr(self, name), 0, math.inf)
        require_number("noise_clip", self.noise_clip, 0, math.inf, open_low=True)  # tianshou's 0 is no limit at all
        require_counts(self, actor_every=1)

    def build(self, n_inputs: int, action_space: spaces.Space[Any], device: torch.device) -> OffPolicyAlgorithm:
        """The algorithm, as `SACConfig.build` makes it."""
        space = action_spaces.require_unit_box(action_space)
        actor = DeterministicActor(mlp([n_inputs, *self.hidden, space.shape[0]])).to(device)
        noise = GaussianNoise(sigma=self.exploration_noise) if self.exploration_noise else None
        policy = DeterministicPolicy(actor=cast(Any, actor), exploration_noise=noise, action_space=space)
        return StackedTD3(
            policy=policy,
            policy_noise=self.policy_noise,
            noise_clip=self.noise_clip,
            update_actor_freq=self.actor_every,
            **self._settings(n_inputs, space, device),
        )
