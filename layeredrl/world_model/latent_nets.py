"""Parts of the networks of a latent world model (TD-MPC2, Hansen et al. 2024, arXiv 2310.16828)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layeredrl.models.stacked.layers import StackedLayerNorm, StackedLinear, stack_modules


def symlog(x: Tensor) -> Tensor:
    """Logarithm of the size, with the sign kept: sign(x) log(1 + abs(x))."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class SimNorm(nn.Module):
    """Simplicial normalisation: a softmax over each group of `group` dimensions.

    Dimensions of a group are S / group apart, not neighbours, which is the same to a network and a tenth of the time.

    Args:
        group: Number of dimensions of a simplex, of which the width S is a multiple.
    """

    def __init__(self, group: int = 8) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        return x.reshape(*shape[:-1], self.group, -1).softmax(-2).view(shape)


class TwoHot(nn.Module):
    """Two-hot encoding of numbers, by bins that are equally spaced in `symlog`: regression as classification.

    A number has the weights of its two nearest bins, so that their mean is the number. Numbers beyond the outermost
    bins count as these.

    Args:
        n_bins: Number of bins.
        limit: Largest `symlog` of a number.
    """

    bins: Tensor

    def __init__(self, n_bins: int = 101, limit: float = 10.0) -> None:
        super().__init__()
        self.limit, self.step = limit, 2 * limit / (n_bins - 1)
        self.register_buffer("bins", torch.linspace(-limit, limit, n_bins), persistent=False)

    def decode(self, logits: Tensor) -> Tensor:
        """Numbers (...) of logits (..., n_bins)."""
        return symexp(logits.softmax(-1) @ self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (...) of logits (..., n_bins) against targets (...), in nats."""
        place = (symlog(target).clamp(-self.limit, self.limit) + self.limit) / self.step
        low = place.floor().clamp(max=len(self.bins) - 2)
        share = (place - low).unsqueeze(-1)
        index = low.nan_to_num(0.0).long().unsqueeze(-1)
        at_low, at_high = logits.gather(-1, index), logits.gather(-1, index + 1)
        return logits.logsumexp(-1) - torch.lerp(at_low, at_high, share).squeeze(-1)


Activation = Literal["mish", "silu", "relu"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"mish": nn.Mish, "silu": nn.SiLU, "relu": nn.ReLU}


def normed_mlp(
    widths: Sequence[int], activation: Activation, *, dropout: float = 0.0, zero: bool = False
) -> nn.Sequential:
    """Make linear layers, each but the last followed by layer norm and activation.

    Weights are drawn from a truncated normal distribution with standard deviation 0.02, biases are zero.

    Args:
        widths: Input width, hidden widths, output width.
        activation: Activation.
        dropout: Probability of dropping an output of the first linear layer.
        zero: If True, the last layer's weights are zero, so that nothing is predicted at first.
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        linear = nn.Linear(n_in, n_out)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if dropout and i == 0:
            layers.append(nn.Dropout(dropout))
        if i < len(widths) - 2:
            layers += [nn.LayerNorm(n_out), _ACTIVATIONS[activation]()]
        elif zero:
            nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers)


def simplicial(width: int, group: int) -> nn.Sequential:
    """Layer norm and simplicial normalisation of vectors (..., width)."""
    return nn.Sequential(nn.LayerNorm(width), SimNorm(group))


class LatentPolicy(nn.Module):
    """Squashed Gaussian policy.

    Args:
        widths: Width of the latent state, hidden widths.
        action_dim: Number of actions A.
        activation: Activation.
    """

    def __init__(self, widths: Sequence[int], action_dim: int, activation: Activation) -> None:
        super().__init__()
        self.n_actions = action_dim
        self.net = normed_mlp([*widths, 2 * action_dim], activation)

    def forward(self, state: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Actions in (-1, 1), and the logarithm of their density.

        Args:
            state: Latent states, (..., S).
            noise: Standard normal noise, (..., A); None for the most probable action.

        Returns:
            Actions (..., A), and log densities (...), zero without noise.
        """
        mean, spread = self.net(state).chunk(2, -1)
        if noise is None:
            return mean.tanh(), mean.new_zeros(mean.shape[:-1])
        log_std = LOWEST_LOG_STD + (HIGHEST_LOG_STD - LOWEST_LOG_STD) * (spread.tanh() + 1) / 2
        action = torch.addcmul(mean, noise, log_std.exp()).tanh()
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return action, (density - (1 - action.square() + 1e-6).log()).sum(-1)


LOWEST_LOG_STD, HIGHEST_LOG_STD = -10.0, 2.0
"""Bounds of the logarithm of the policy's standard deviation before squashing."""


class LatentCritics(nn.Module):
    """Several critics, evaluated together.

    Args:
        widths: Width of state and action, hidden widths, number of bins.
        n_critics: Number K of critics.
        activation: Activation.
        dropout: As of `normed_mlp`.
    """

    def __init__(self, widths: Sequence[int], n_critics: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        members = [normed_mlp(widths, activation, dropout=dropout, zero=True) for _ in range(n_critics)]
        self.layers = stack_modules(members)
        self.n_critics = n_critics

    def forward(self, inputs: Tensor, members: Tensor | None = None) -> Tensor:
        """Logits (k, n, n_bins) by some critics, all by default, for states and actions (n, S + A).

        Args:
            inputs: States and actions.
            members: Indices (k,) of critics, which then drop nothing out.
        """
        if members is None:
            out: Tensor = self.layers(inputs.expand(self.n_critics, *inputs.shape))
            return out
        h = inputs.expand(len(members), *inputs.shape)
        for layer in self.layers.children():
            if isinstance(layer, StackedLinear):
                assert layer.bias is not None
                h = torch.baddbmm(layer.bias[members], h, layer.weight[members])
            elif isinstance(layer, StackedLayerNorm):
                assert layer.bias is not None
                normed = F.layer_norm(h, h.shape[-1:], eps=layer.eps)
                h = torch.addcmul(layer.bias[members], normed, layer.weight[members])
            elif not isinstance(layer, nn.Dropout):
                h = layer(h)
        return h
