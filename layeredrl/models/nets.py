"""Default networks of the recipes."""

import math
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise

import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete, flatdim
from torch import Tensor, nn

from layeredrl.checks import require_number
from layeredrl.models.density import probability
from layeredrl.models.normalization import Moments, pooled, scale_of
from layeredrl.models.outputs import StepOutput
from layeredrl.models.stacked.layers import StackedSequential
from layeredrl.task import StateDims

MAX_INPUT = 10.0
"""Largest standardised input: far from the data, what a network computes has no meaning, and may be of any size."""


def mlp(
    widths: Sequence[int], activation: Callable[[], nn.Module] = nn.SiLU, *, layer_norm: bool = False
) -> nn.Sequential:
    """Make linear layers with activations between them, none after the last.

    Weights are drawn from a normal distribution with standard deviation 1 / (2 sqrt(fan_in)), truncated at two standard
    deviations, and biases are zero, as in PETS.

    Args:
        widths: Input width, hidden widths, output width.
        activation: Function that makes the activation module.
        layer_norm: If True, apply a layer norm before each activation.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out)
        std = 0.5 / max(fan_in, 1) ** 0.5
        nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LayerNorm(fan_out), activation()] if layer_norm else [linear, activation()]
    return nn.Sequential(*layers[: -2 if layer_norm else -1])


class InputStandardizer(nn.Module):
    """Subtracts the mean and divides by the standard deviation of fitted data; the identity before the first fit.

    Dimensions that vary by no more than rounding are only centred.

    Args:
        width: Number of dimensions.
        alike: Groups of dimensions that share the mean and standard deviation of all their values.
        limit: Largest absolute value of the result after a fit.
    """

    mean: Tensor
    inverse_std: Tensor
    bound: Tensor

    def __init__(self, width: int, alike: Sequence[Sequence[int]] = (), *, limit: float = math.inf) -> None:
        super().__init__()
        self.alike, self.limit = alike, limit
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("inverse_std", torch.ones(width))
        self.register_buffer("bound", torch.full((width,), math.inf))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * self.inverse_std
        return x if self.limit == math.inf else x.clamp(-self.bound, self.bound)

    def fit(self, x: Tensor) -> None:
        """Set the statistics to those of `x`, shape (N, width)."""
        self.set(Moments.of(x))

    @torch.no_grad()
    def set(self, moments: Moments) -> None:
        """Set the statistics to moments of data (N, width)."""
        _, mean, variance = moments
        if self.alike:
            common = pooled(mean, self.alike)
            variance, mean = pooled(variance + (mean - common).square(), self.alike), common
        std = variance.sqrt()
        self.mean.copy_(mean)
        std = scale_of(std, mean.abs(), self.mean.dtype)
        self.inverse_std.copy_(std.to(self.mean.dtype).reciprocal())
        self.bound.fill_(self.limit)


class BoundedStd(nn.Module):
    """Standard deviation between two learned bounds (PETS, appendix A.1).

    PETS bounds the log-variance `raw` softly, first from above, `v = upper - softplus(upper - raw)`, then from below,
    `lower + softplus(v - lower)`. The exponential of that is `exp(lower) + exp(upper) * sigmoid(raw - upper)`. Here
    the network's output is `raw - upper`: the same functions, with the last layer's bias shifted.
    """

    def __init__(self, width: int, lower: float = -10.0, upper: float = 0.5) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.full((width,), lower))
        self.upper = nn.Parameter(torch.full((width,), upper))

    def variances(self) -> tuple[Tensor, Tensor]:
        """Lowest variance `exp(lower)` and its maximal increase `exp(upper)`, (width,) each."""
        return self.lower.exp(), self.upper.exp()

    def forward(self, share: Tensor) -> Tensor:
        """Standard deviation (..., width) for `share` = sigmoid(raw - upper) in [0, 1], (..., width)."""
        lowest, room = self.variances()
        return torch.addcmul(lowest, room, share).sqrt()

    def penalty(self) -> Tensor:
        """Sum of the distances between the bounds, a scalar; small if the bounds are tight."""
        return self.upper.sum() - self.lower.sum()


class FixedStd(nn.Module):
    """Constant standard deviation with the interface of `BoundedStd`."""

    lowest: Tensor
    room: Tensor

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.full((width,), std**2))
        self.register_buffer("room", torch.zeros(width))

    def variances(self) -> tuple[Tensor, Tensor]:
        """Variance and its maximal increase, zero, (width,) each."""
        return self.lowest, self.room

    def forward(self, share: Tensor) -> Tensor:
        """Standard deviation (..., width), independent of the values of `share` (..., width)."""
        return torch.addcmul(self.lowest, self.room, share).sqrt()

    def penalty(self) -> Tensor:
        """Zero, a scalar."""
        return self.room.sum()


class GaussianMixtureMLP(nn.Module):
    """Predicts a mixture of diagonal Gaussians and a termination probability.

    Satisfies the network contract of `layeredrl.models`; use it as
    `partial_net=functools.partial(GaussianMixtureMLP, hidden=(200, 200))`.

    Args:
        state_space: Box of shape (S,).
        context_space: Box of shape (C,), C may be zero.
        action_space: Box of shape (A,), or Discrete, whose actions are one-hot encoded inside.
        n_modes: Number of Gaussians K.
        hidden: Widths of the hidden layers.
        activation: Function that makes the activation module.
        layer_norm: If True, apply a layer norm before each activation.
        bound_penalty: Weight of the penalty on the distance between the log-variance bounds (PETS: 0.01).
        frequencies: Frequencies, in radians per unit of the state, of sines and cosines of each dimension of the state
            that are extra inputs: dynamics that change within a short distance, such as at a wall, are learned faster
            (Tancik et al. 2020, arXiv 2006.10739).
        angle_dims: Dimensions of the state that are angles, in radians: their sine and cosine are inputs instead. The
            angles themselves are predicted.
        unseen_dims: Dimensions of the state that are not inputs; they are predicted like the others.
        alike_dims: Groups of dimensions of the state, neither angles nor unseen, with a common mean and standard
            deviation as inputs.
        fixed_std: Standard deviation of all predictions, in the network's units, instead of a learned one. The fit then
            minimises squared errors.
    """

    def __init__(
        self,
        state_space: Box,
        context_space: Box,
        action_space: Box | Discrete,
        n_modes: int = 1,
        *,
        hidden: Sequence[int] = (200, 200, 200, 200),
        activation: Callable[[], nn.Module] = nn.SiLU,
        layer_norm: bool = False,
        bound_penalty: float = 0.01,
        frequencies: Sequence[float] = (),
        angle_dims: Sequence[int] = (),
        unseen_dims: Sequence[int] = (),
        alike_dims: Sequence[Sequence[int]] = (),
        fixed_std: float | None = None,
    ) -> None:
        super().__init__()
        self.n_modes = n_modes
        self.frequencies = tuple(frequencies)
        self.state_dim = flatdim(state_space)
        self.n_choices = int(action_space.n) if isinstance(action_space, Discrete) else 0
        self.bound_penalty = bound_penalty
        dims = StateDims(angle=tuple(angle_dims), unseen=tuple(unseen_dims), alike=tuple(map(tuple, alike_dims)))
        dims.check(self.state_dim)
        if fixed_std is not None:
            require_number("fixed_std", fixed_std, 0, math.inf, open_low=True)
        # Slices, because indexing with a list or a tensor costs more in every step of a rollout.
        self.angles = _runs(set(dims.angle))
        self.raw = _runs(set(range(self.state_dim)) - set(dims.angle) - set(dims.unseen))
        n_raw = sum(stop - start for start, stop in self.raw)
        n_seen = n_raw * (1 + 2 * len(self.frequencies)) + 2 * len(dims.angle)
        n_inputs = n_seen + flatdim(context_space) + flatdim(action_space)
        self.n_gaussian = n_modes * self.state_dim
        # Means, shares of the variance, termination, modes; and unused outputs up to a multiple of 16: an output layer
        # of width 16 takes a third of the time of one of width 9.
        parts = [self.n_gaussian, self.n_gaussian, 1, n_modes if n_modes > 1 else 0]
        self.parts = [*parts, -sum(parts) % 16]
        seen = {dim: place for place, dim in enumerate(dim for start, stop in self.raw for dim in range(start, stop))}
        groups = tuple(tuple(seen[dim] for dim in group) for group in dims.alike)
        self.standardizer = InputStandardizer(n_inputs, groups, limit=MAX_INPUT)
        self.layers = mlp([n_inputs, *hidden, sum(self.parts)], activation, layer_norm=layer_norm)
        self.bounds = BoundedStd(self.n_gaussian) if fixed_std is None else FixedStd(self.n_gaussian, fixed_std)

    def _inputs(self, state: Tensor, context: Tensor, action: Tensor) -> Tensor:
        if self.n_choices:
            action = self._one_hot(action, state.dtype)
        raw, angles = ([state[..., start:stop] for start, stop in runs] for runs in (self.raw, self.angles))
        parts = [part * frequency for frequency in self.frequencies for part in raw] + angles
        if not parts:
            return torch.cat([*raw, context, action], dim=-1)
        phases = torch.cat(parts, dim=-1)
        return torch.cat([*raw, phases.sin(), phases.cos(), context, action], dim=-1)

    def _one_hot(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        return F.one_hot(action.long().squeeze(-1), self.n_choices).to(dtype)

    def forward(self, state: Tensor, context: Tensor, action: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Predict for state (..., S), context (..., C) and action (..., A) or (..., 1) of integers.

        Returns:
            ((mean, std), weights, term_prob) of shapes (..., K, S), (..., K, S), (..., K), (...).
        """
        modes = (self.n_modes, self.state_dim)
        out: Tensor = self.layers(self.standardizer(self._inputs(state, context, action)))
        mean, share, logit, gates, _ = torch.split(out, self.parts, -1)
        lead = out.shape[:-1]
        std = self.bounds(torch.sigmoid(share)).view(*lead, *modes)
        weights = torch.softmax(gates, -1) if self.n_modes > 1 else out.new_ones(()).expand(*lead, 1)
        return (mean.view(*lead, *modes), std), weights, probability(logit.squeeze(-1))

    def prepared(self) -> Callable[[Tensor, Tensor, Tensor], StepOutput]:
        """Return `forward` for the steps of a rollout, with its constants computed in advance and fewer calls."""
        n, k, modes = self.n_gaussian, self.n_modes, (self.n_modes, self.state_dim)
        means, shares, gates = (..., slice(n)), (..., slice(n, 2 * n + 1)), (..., slice(2 * n + 1, 2 * n + 1 + k))
        center, inverse_std, bound = self.standardizer.mean, self.standardizer.inverse_std, self.standardizer.bound
        lowest_input = -bound
        layers = self.layers.prepared() if isinstance(self.layers, StackedSequential) else self.layers
        lowest, room = self.bounds.variances()

        def step(state: Tensor, context: Tensor, action: Tensor) -> StepOutput:
            inputs = (self._inputs(state, context, action) - center).mul_(inverse_std)
            out = layers(inputs.clamp_(lowest_input, bound))
            share = torch.sigmoid(out[shares])  # one call for standard deviations and termination
            mean, std, term_prob = out[means], torch.addcmul(lowest, room, share[means]).sqrt_(), share[..., n]
            if k == 1:
                return StepOutput(mean, std, None, term_prob)
            mean, std = (x.view(*x.shape[:-1], *modes) for x in (mean, std))
            return StepOutput(mean, std, torch.softmax(out[gates], -1), term_prob)

        return step

    def regularization(self) -> Tensor:
        """Penalty on the log-variance bounds, a scalar (PETS, appendix A.1)."""
        return self.bound_penalty * self.bounds.penalty()

    def fit_inputs(self, state: Tensor, context: Tensor, action: Tensor) -> None:
        """Set the input statistics to those of data of shapes (N, S), (N, C), (N, A) or (N, 1)."""
        self.set_input_moments(self.input_moments(state, context, action))

    @torch.no_grad()
    def input_moments(self, state: Tensor, context: Tensor, action: Tensor) -> Moments:
        """Moments of the inputs of the first layer, of a part of the data; arguments of `fit_inputs`."""
        return Moments.of(self._inputs(state, context, action))

    def set_input_moments(self, moments: Moments) -> None:
        """Set the input statistics to merged moments of all the data."""
        self.standardizer.set(moments)


def _runs(dims: AbstractSet[int]) -> tuple[tuple[int, int], ...]:
    """Group dimensions into runs (start, stop): {0, 2, 3} becomes ((0, 1), (2, 4))."""
    starts = [dim for dim in sorted(dims) if dim - 1 not in dims]
    stops = [dim + 1 for dim in sorted(dims) if dim + 1 not in dims]
    return tuple(zip(starts, stops, strict=True))


class TerminationMLP(nn.Module):
    """Predicts whether an episode ends in a state: (..., S), (..., C) -> probability (...).

    It is trained on batches of which half are terminations; `set_odds` says how rare they are. Before the first
    termination in the data it predicts probability 0.

    Args:
        n_inputs: Width of state and context.
        hidden: Widths of the hidden layers.
        caution: 0 for unbiased probabilities, 1 for those of the balanced batches; in between, the logarithm of their
            odds is a linear blend.
    """

    log_odds: Tensor

    def __init__(self, n_inputs: int, hidden: Sequence[int] = (64, 64), *, caution: float = 0.0) -> None:
        super().__init__()
        self.caution = caution
        self.inputs = InputStandardizer(n_inputs, limit=MAX_INPUT)
        self.layers = mlp([n_inputs, *hidden, 1])
        self.register_buffer("log_odds", torch.tensor(math.inf))

    def set_odds(self, n_terminated: int, n: int) -> None:
        """Set the number of terminations among n transitions.

        Of a batch, half are drawn from the terminations and half from all transitions: a termination is drawn (n + m) /
        m times as often as another transition, where m is their number.
        """
        if n_terminated:  # else they may have left the replay, and would be as rare as before
            self.log_odds.fill_((1 - self.caution) * math.log((n + n_terminated) / n_terminated))

    def logit(self, inputs: Tensor) -> Tensor:
        """Logarithm of the odds within such batches, (..., n_inputs) -> (...)."""
        out: Tensor = self.layers(self.inputs(inputs))
        return out.squeeze(-1)

    def forward(self, next_state: Tensor, context: Tensor) -> Tensor:
        return (self.logit(torch.cat([next_state, context], -1)) - self.log_odds).sigmoid()


class ScalarMLP(nn.Module):
    """Predicts one number from a transition, such as its reward: (..., S), (..., C), (..., A), (..., S) -> (...).

    Inputs are standardised with statistics of the fitted data and the output is scaled to the fitted targets, so
    that one learning rate works for rewards of any size.
    """

    def __init__(self, n_inputs: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.inputs = InputStandardizer(n_inputs, limit=MAX_INPUT)
        self.targets = InputStandardizer(1)
        self.layers = mlp([n_inputs, *hidden, 1])

    def fit_scales(self, inputs: Tensor, targets: Tensor) -> None:
        """Set the statistics to those of inputs (N, n_inputs) and targets (N,)."""
        self.set_scales(Moments.of(inputs), Moments.of(targets.unsqueeze(-1)))

    def set_scales(self, inputs: Moments, targets: Moments) -> None:
        """Set the statistics to moments of inputs (N, n_inputs) and targets (N, 1)."""
        self.inputs.set(inputs)
        self.targets.set(targets)

    def to_units(self, targets: Tensor) -> Tensor:
        """Convert targets (N,) to the units of `normalized`."""
        scaled: Tensor = self.targets(targets.unsqueeze(-1))
        return scaled.squeeze(-1)

    def normalized(self, inputs: Tensor) -> Tensor:
        """Output in units of the fitted targets' standard deviation, (..., n_inputs) -> (...)."""
        out: Tensor = self.layers(self.inputs(inputs))
        return out.squeeze(-1)

    def forward(self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        inputs = torch.cat([state, context, action, next_state], dim=-1)
        return self.normalized(inputs) / self.targets.inverse_std + self.targets.mean
