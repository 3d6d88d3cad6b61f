"""A learned value of the last state of a plan, so that planning sees beyond its horizon.

Planning over H steps with a value at the end looks as far as the value does (Lowrey et al. 2019, POLO, arXiv
1811.01848; Sikchi et al. 2021, LOOP, arXiv 2008.10066). The value here is that of the behaviour in the replay, which is
the planner's own and improves with it; it is learned from n-step returns, and no policy is.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from layeredrl.checks import require_counts, require_number
from layeredrl.models.fitting import FitConfig
from layeredrl.models.nets import MAX_INPUT, InputStandardizer, mlp
from layeredrl.models.normalization import Moments
from layeredrl.models.optimizer import descend, restore_optimizer
from layeredrl.models.stacked.layers import StackedLinear, stack_modules
from layeredrl.world_model.encoders import Encoder
from layeredrl.world_model.transitions import Transitions


@dataclass(frozen=True)
class ValueConfig:
    """Settings of a learned value."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    n_members: int = 4
    """Number of networks; a plan ends in the least of their values."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    n_steps: int = 10
    """Rewards of the replay that a target sums up before it continues with the value."""
    target_rate: float = 0.02
    """Share by which the target networks follow in an optimiser step."""
    batch_size: int = 128
    """Transitions of an optimiser step, for each network."""

    def __post_init__(self) -> None:
        require_counts(self, n_members=1, n_steps=1, batch_size=1)
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected widths of at least 1")
        require_number("learning_rate", self.learning_rate, 0, math.inf, open_low=True)
        require_number("target_rate", self.target_rate, 0, 1, open_low=True)


class ValueNet(nn.Module):
    """Values of a state by several networks that learn independently.

    Args:
        n_inputs: Width of state and context.
        config: Settings.
        device: Device of the parameters.
    """

    scale: Tensor

    def __init__(self, n_inputs: int, config: ValueConfig, device: torch.device) -> None:
        super().__init__()
        self.inputs = InputStandardizer(n_inputs, limit=MAX_INPUT)
        widths = [n_inputs, *config.hidden, 1]
        self.layers = stack_modules([mlp(widths, layer_norm=True) for _ in range(config.n_members)])
        self.register_buffer("scale", torch.ones(()))
        with torch.no_grad():
            last_layer(self.layers).weight.zero_()  # nothing is worth anything before the first fit
        self.to(device)

    def members(self, inputs: Tensor) -> Tensor:
        """Values by each network, (K, N), of its own inputs (K, N, D), in units of `scale`."""
        out: Tensor = self.layers(self.inputs(inputs))
        return out.squeeze(-1)

    def forward(self, state: Tensor, context: Tensor) -> Tensor:
        """Least value over the networks, (..., S) and (..., C) -> (...)."""
        inputs = torch.cat([state, context], -1)
        rows = inputs.reshape(1, -1, inputs.shape[-1]).expand(len(last_layer(self.layers).weight), -1, -1)
        return (self.members(rows).amin(0) * self.scale).view(inputs.shape[:-1])

    @torch.no_grad()
    def set_scales(self, inputs: Moments, scale: float, *others: nn.Module) -> None:
        """Set the statistics of the inputs, and the unit of the outputs; the latter leaves values as they are.

        Args:
            inputs: Moments of inputs (N, D).
            scale: Unit of the networks' outputs.
            others: Other layers with outputs in this unit, such as those of target networks.
        """
        self.inputs.set(inputs)
        for layers in (self.layers, *others):
            for parameter in last_layer(layers).parameters():
                parameter.mul_(self.scale / scale)
        self.scale.fill_(scale)


def last_layer(layers: nn.Module) -> StackedLinear:
    """Return the output layer of stacked networks."""
    return cast(StackedLinear, cast(nn.Sequential, layers)[-1])


class ValueLearner:
    """Learns a value from the replay, by n-step temporal differences.

    Args:
        net: The value.
        encoder: Encoder of observations.
        discount: Discount per step, below one.
        config: Settings.
    """

    def __init__(self, net: ValueNet, encoder: Encoder, discount: float, config: ValueConfig) -> None:
        if not discount < 1:
            raise ValueError(f"discount is {discount} with a learned value, expected less than 1")
        self.net, self.encoder, self.discount, self.config = net, encoder, discount, config
        self.target = copy.deepcopy(net.layers)
        self.optimizer = torch.optim.Adam(net.layers.parameters(), lr=config.learning_rate, fused=True)

    @torch.no_grad()
    def moments(self, obs: Tensor, rewards: Tensor) -> dict[str, Moments]:
        """Moments of a part of the transitions, to be merged for `fit`: observations (N, O) and rewards (N,)."""
        return {"value_inputs": Moments.of(self._inputs(obs)), "value_reward": Moments.of(rewards.unsqueeze(-1))}

    def fit(
        self, data: Transitions, moments: Mapping[str, Moments], config: FitConfig, generator: torch.Generator
    ) -> float:
        """Take as many optimiser steps as `config` allows; return their mean loss.

        Args:
            data: Transitions, as of `WorldModelLearner`.
            moments: Merged results of `moments` for all of them.
            config: Only `epochs` and `max_steps` are used.
            generator: Source of randomness, on the transitions' device.
        """
        _, mean, variance = moments["value_reward"]
        size = float((variance + mean.square()).sqrt()) / (1 - self.discount)
        self.net.set_scales(moments["value_inputs"], max(size, 1e-6), self.target)
        n_steps = config.epochs * -(-len(data) // self.config.batch_size)
        losses = [self._step(data, generator) for _ in range(min(n_steps, config.max_steps or n_steps))]
        return float(torch.stack(losses).mean())

    def _step(self, data: Transitions, generator: torch.Generator) -> Tensor:
        shape = self.config.n_members, self.config.batch_size
        index = torch.randint(len(data), shape, generator=generator, device=generator.device)
        inputs, targets = self.batch(data, index)
        loss = (self.net.members(inputs) - targets / self.net.scale).square().mean()
        descend(loss, self.optimizer)
        with torch.no_grad():
            for target, own in zip(self.target.parameters(), self.net.layers.parameters(), strict=True):
                target.lerp_(own, self.config.target_rate)
        return loss.detach()

    @torch.no_grad()
    def batch(self, data: Transitions, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (K, N, D) and targets (K, N), in the rewards' units, of transitions (K, N)."""
        ahead, valid = data.ahead(index, self.config.n_steps)
        rows = data.take(ahead)  # (K, N, n)
        powers = self.discount ** torch.arange(ahead.shape[-1], dtype=rows.rew.dtype, device=index.device)
        end = (valid.sum(-1, keepdim=True) - 1).clamp(min=0)
        last = data.take(ahead.gather(-1, end).squeeze(-1))
        rest = self._target_values(self._inputs(last.obs_next)) * ~last.terminated
        total = (rows.rew * valid * powers).sum(-1) + self.discount * powers[end.squeeze(-1)] * rest
        return self._inputs(data.take(index).obs), total

    def _target_values(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.target(self.net.inputs(inputs))
        return out.squeeze(-1) * self.net.scale

    def _inputs(self, obs: Tensor) -> Tensor:
        return torch.cat(self.encoder(obs), -1)

    def state_dict(self) -> dict[str, Any]:
        """The states of the optimiser and of the target networks; the value itself belongs to the world model."""
        return {"optimizer": self.optimizer.state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        restore_optimizer("the value's optimizer", self.optimizer, state["optimizer"])
        self.target.load_state_dict(state["target"])
