"""Actors of SAC and TD3, and the policies of tianshou that they act by."""

from typing import Any, cast

import torch
from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
from tianshou.algorithm.modelfree.sac import SACPolicy, correct_log_prob_gaussian_tanh
from tianshou.data import Batch
from tianshou.exploration import GaussianNoise
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from layeredrl.off_policy.stacked_mlp import StackedMLP


class GaussianActor(nn.Module):
    """Actor of SAC: mean and logarithm of the standard deviation before squashing.

    Args:
        net: Single perceptron with outputs of width 2A.
    """

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = StackedMLP([net])

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[tuple[Tensor, Tensor], Any]:
        """Mean and standard deviation (n, A) before squashing, for inputs (n, I)."""
        mean, log_std = self.net(obs)[0].chunk(2, -1)
        return (mean, log_std.clamp(-20, 2).exp()), state


class DeterministicActor(nn.Module):
    """Actor of TD3.

    Args:
        net: Single perceptron with outputs of width A.
    """

    max_action = 1.0

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = StackedMLP([net])

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        """Actions (n, A), for inputs (n, I)."""
        return self.net(obs)[0].tanh(), state


class SquashedGaussianPolicy(SACPolicy):
    """Policy of SAC. Does without tianshou's compilation of return functions, which takes seconds."""

    @staticmethod
    def _compile() -> None:
        pass

    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
        """Actions and what tianshou adds to them; on a GPU without checks, for which it would wait."""
        (mean, std), hidden = self.actor(batch.obs, state=state, info=batch.info)
        normal: Any = Normal(mean, std, validate_args=mean.device.type == "cpu")
        dist: Any = Independent(normal, 1, validate_args=False)
        drawn = dist.mode if self.deterministic_eval and not self.is_within_training_step else dist.rsample()
        action = drawn.tanh()
        log_prob = correct_log_prob_gaussian_tanh(dist.log_prob(drawn).unsqueeze(-1), action)
        return Batch(logits=(mean, std), act=action, state=hidden, dist=dist, log_prob=log_prob)

    def act(self, inputs: Tensor, *, explore: bool) -> Tensor:
        """Actions (n, A) of `forward` for inputs (n, I), without distribution and log-probability."""
        (mean, std), _ = self.actor(inputs)
        if self.deterministic_eval and not explore:
            return cast(Tensor, mean.tanh())
        noise = torch.empty_like(mean).normal_()  # as `Normal.rsample` draws it
        return cast(Tensor, (mean + noise * std).tanh())

    @property
    def explores_on_device(self) -> bool:
        """True unless tianshou has to add a noise that was given."""
        return self.exploration_noise is None

    def explore(self, action: Tensor) -> Tensor:
        """Return the actions themselves: they are drawn already."""
        return action


class DeterministicPolicy(ContinuousDeterministicPolicy):
    """Policy of TD3, without compilation as well."""

    _compile = staticmethod(SquashedGaussianPolicy._compile)

    def act(self, inputs: Tensor, *, explore: bool) -> Tensor:
        """Actions (n, A) for inputs (n, I), before the exploration noise."""
        del explore
        return cast(Tensor, self.actor(inputs)[0])

    @property
    def explores_on_device(self) -> bool:
        """True unless tianshou has to add a noise of another kind."""
        noise = self.exploration_noise
        return noise is None or (type(noise) is GaussianNoise and not noise._mu)

    def explore(self, action: Tensor) -> Tensor:
        """Add the exploration noise to actions (n, A), on their device; tianshou's noise is an array."""
        if self.exploration_noise is None:
            return action
        return action + cast(GaussianNoise, self.exploration_noise)._sigma * torch.randn_like(action)
