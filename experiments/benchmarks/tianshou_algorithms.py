"""SAC and TD3 of tianshou itself, with the networks of this library's: the standard for results and speed."""

import math
from typing import Any, cast

import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.sac import SAC, AutoAlpha
from tianshou.algorithm.modelfree.td3 import TD3
from tianshou.algorithm.optim import TorchOptimizerFactory
from tianshou.exploration import GaussianNoise
from torch import Tensor, nn

from layeredrl.off_policy import ActorCriticConfig, SACConfig, TD3Config
from layeredrl.off_policy.actors import DeterministicPolicy, SquashedGaussianPolicy
from layeredrl.off_policy.stacked_mlp import mlp


class _GaussianActor(nn.Module):
    """Actor of SAC."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[tuple[Tensor, Tensor], Any]:
        mean, log_std = self.net(torch.as_tensor(obs)).chunk(2, -1)
        return (mean, log_std.clamp(-20, 2).exp()), state


class _DeterministicActor(nn.Module):
    """Actor of TD3."""

    max_action = 1.0

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        return self.net(torch.as_tensor(obs)).tanh(), state


class _Critic(nn.Module):
    """Critic of both."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Any, act: Any, info: Any = None) -> Tensor:
        value: Tensor = self.net(torch.cat([torch.as_tensor(obs), torch.as_tensor(act)], -1))
        return value


def _networks(config: ActorCriticConfig, n_inputs: int, n_outputs: int, n_actions: int) -> tuple[nn.Sequential, ...]:
    """Actor and critics, drawn in the order in which this library draws them."""
    actor = mlp([n_inputs, *config.hidden, n_outputs])
    widths = [n_inputs + n_actions, *config.hidden, 1]
    return actor, *(mlp(widths, layer_norm=config.critic_layer_norm) for _ in range(2))


def make_tianshou(config: SACConfig | TD3Config, n_inputs: int, space: spaces.Box) -> SAC[Any] | TD3:
    """Build what `config.build` builds, on the CPU, with the same parameters for the same seed of torch.

    Args:
        config: Settings.
        n_inputs: Width of the policy's inputs.
        space: Action space.
    """
    return _make_sac(config, n_inputs, space) if isinstance(config, SACConfig) else _make_td3(config, n_inputs, space)


def _make_sac(config: SACConfig, n_inputs: int, space: spaces.Box) -> SAC[Any]:
    n_actions = space.shape[0]
    net, *critics = _networks(config, n_inputs, 2 * n_actions, n_actions)
    adam = TorchOptimizerFactory(torch.optim.Adam, lr=config.learning_rate, fused=True)
    alpha: float | AutoAlpha
    if config.alpha is None:
        target = -float(n_actions) if config.target_entropy is None else config.target_entropy
        alpha = AutoAlpha(target, math.log(config.initial_alpha), adam)
    else:
        alpha = float(config.alpha)
    policy = SquashedGaussianPolicy(actor=_GaussianActor(net), action_space=space)
    return SAC(policy=policy, alpha=alpha, **_critics(config, critics, adam))


def _make_td3(config: TD3Config, n_inputs: int, space: spaces.Box) -> TD3:
    net, *critics = _networks(config, n_inputs, space.shape[0], space.shape[0])
    adam = TorchOptimizerFactory(torch.optim.Adam, lr=config.learning_rate, fused=True)
    noise = GaussianNoise(sigma=config.exploration_noise) if config.exploration_noise else None
    actor = cast(Any, _DeterministicActor(net))
    return TD3(
        policy=DeterministicPolicy(actor=actor, exploration_noise=noise, action_space=space),
        policy_noise=config.policy_noise,
        noise_clip=config.noise_clip,
        update_actor_freq=config.actor_every,
        **_critics(config, critics, adam),
    )


def _critics(config: ActorCriticConfig, nets: list[nn.Sequential], adam: TorchOptimizerFactory) -> dict[str, Any]:
    return {
        "critic": _Critic(nets[0]),
        "critic2": _Critic(nets[1]),
        "policy_optim": adam,
        "critic_optim": adam,
        "tau": config.tau,
        "gamma": config.discount,
    }
