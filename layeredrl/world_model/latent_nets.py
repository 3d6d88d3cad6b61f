"""Parts of the networks of a latent world model (TD-MPC2, Hansen et al. 2024, arXiv 2310.16828)."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, cast

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
    bins are clipped.

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


_Calls = list[tuple[Callable[..., Tensor], tuple[Any, ...]]]
"""Functions of layers, each with its arguments after the first."""


def _call_all(calls: _Calls, x: Tensor) -> Tensor:
    for function, arguments in calls:
        x = function(x, *arguments)
    return x


def _calls(layers: Iterable[nn.Module]) -> _Calls:
    """Calls of layers; activations are computed in place, which keeps few rows in the cache."""
    calls: _Calls = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            calls.append((F.linear, (layer.weight, layer.bias)))
        elif isinstance(layer, nn.LayerNorm):
            calls.append((torch.layer_norm, (layer.normalized_shape, layer.weight, layer.bias, layer.eps)))
        elif type(layer) in _IN_PLACE:
            calls.append((_IN_PLACE[type(layer)], (True,)))
        else:
            calls.append((layer.forward, ()))
    return calls


_IN_PLACE: dict[type[nn.Module], Callable[..., Tensor]] = {nn.Mish: F.mish, nn.SiLU: F.silu, nn.ReLU: F.relu}


class Chain(nn.Sequential):
    """Layers, one after the other, of which each activation follows another layer.

    Without gradients the layers' functions are called directly: a decision runs hundreds of layers on few rows, and
    calls of modules would take a tenth of its time. Layers must not be replaced, and hooks have no effect there.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self._calls = _calls(layers)  # the parameters stay the same objects, also on another device

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _call_all(self._calls, x)
        out: Tensor = cast(Any, super()).forward(x)  # untyped in torch
        return out

    def enter(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """Outputs of the first layer, which is linear, without gradients.

        Args:
            x: Inputs (n, S + A); with `own` their first part, (E, S), each row of which is that of N inputs.
            own: Second part of inputs (E N, A).
        """
        function, (weight, bias) = self._calls[0]
        if own is None:
            return function(x, weight, bias)
        width = x.shape[1]
        shared = function(x, weight[:, :width], bias).unsqueeze(1).expand(-1, len(own) // len(x), -1)
        return torch.addmm(shared.reshape(len(own), -1), own, weight[:, width:].mT)

    def go_on(self, x: Tensor) -> Tensor:
        """Outputs of the layers that follow the first, of its outputs, without gradients."""
        return _call_all(self._calls[1:], x)


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
        # Of the same shape, but stored by inputs: products with few rows take a tenth less on a CPU.
        linear.weight.data = linear.weight.data.mT.contiguous().mT
        layers.append(linear)
        if dropout and i == 0:
            layers.append(nn.Dropout(dropout))
        if i < len(widths) - 2:
            layers += [nn.LayerNorm(n_out), _ACTIVATIONS[activation]()]
        elif zero:
            nn.init.zeros_(linear.weight)
    return nn.Sequential(*layers)


def simplicial(width: int, group: int) -> Chain:
    """Layer norm and simplicial normalisation of vectors (..., width)."""
    return Chain(nn.LayerNorm(width), SimNorm(group))


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
        self.net = Chain(*normed_mlp([*widths, 2 * action_dim], activation))

    def forward(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in (-1, 1), and the logarithm of their density.

        Args:
            state: Latent states, (..., S).
            noise: Standard normal noise, (..., A).

        Returns:
            Actions (..., A), and log densities (...).
        """
        mean, log_std = self._moments(state)
        action = torch.addcmul(mean, noise, log_std.exp()).tanh()
        density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        return action, (density - (1 - action.square() + 1e-6).log()).sum(-1)

    def act(self, state: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (..., A) alone; without noise the most probable ones."""
        if noise is None:
            outputs: Tensor = self.net(state)
            return outputs[..., : self.n_actions].tanh()
        mean, log_std = self._moments(state)
        return torch.addcmul(mean, noise, log_std.exp()).tanh()

    def _moments(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation before squashing, (..., A)."""
        mean, spread = self.net(state).chunk(2, -1)
        half = (HIGHEST_LOG_STD - LOWEST_LOG_STD) / 2
        return mean, spread.tanh() * half + (LOWEST_LOG_STD + half)


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
        self._members: list[_Calls] = []

    def forward(self, inputs: Tensor, members: Tensor | None = None) -> Tensor:
        """Logits (k, n, n_bins) by some critics, all by default, for states and actions (n, S + A).

        Args:
            inputs: States and actions.
            members: Indices (k,) of critics, which then drop nothing out, and whose parameters get no gradients.
        """
        if members is None:
            out: Tensor = self.layers(inputs.expand(self.n_critics, *inputs.shape))
            return out
        if inputs.device.type == "cpu":  # one by one, because copies of their parameters would take longer
            calls = self._calls_by_member()
            return torch.stack([_call_all(calls[i], inputs) for i in members.tolist()])
        h = inputs.expand(len(members), *inputs.shape)
        for layer in self._kept():
            if isinstance(layer, StackedLinear):
                weight, bias = _parameters(layer)
                h = torch.baddbmm(bias[members], h, weight[members])
            elif isinstance(layer, StackedLayerNorm):
                weight, bias = _parameters(layer)
                h = torch.addcmul(bias[members], F.layer_norm(h, h.shape[-1:], eps=layer.eps), weight[members])
            else:
                h = layer(h)
        return h

    def _calls_by_member(self) -> list[_Calls]:
        """Calls of each critic with views of its parameters, made anew where these are elsewhere now."""
        weight = next(layer for layer in self.layers.children() if isinstance(layer, StackedLinear)).weight
        if not self._members or self._members[0][0][1][0].data_ptr() != weight.data_ptr():
            self._members = [self._calls_of(i) for i in range(self.n_critics)]
        return self._members

    def _calls_of(self, i: int) -> _Calls:
        calls: _Calls = []
        for layer in self._kept():
            if isinstance(layer, StackedLinear):
                weight, bias = _parameters(layer)
                calls.append((F.linear, (weight[i].mT, bias[i, 0])))
            elif isinstance(layer, StackedLayerNorm):
                weight, bias = _parameters(layer)
                calls.append((torch.layer_norm, (weight.shape[-1:], weight[i, 0], bias[i, 0], layer.eps)))
            else:
                calls += _calls([layer])
        return calls

    def _kept(self) -> list[nn.Module]:
        """All layers but dropout."""
        return [layer for layer in self.layers.children() if not isinstance(layer, nn.Dropout)]


def _parameters(layer: StackedLinear | StackedLayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias, without gradients."""
    assert layer.bias is not None
    return layer.weight.detach(), layer.bias.detach()
