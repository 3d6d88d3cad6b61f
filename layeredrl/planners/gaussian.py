"""Gaussian distributions over sequences of continuous actions, kept in bounds as in iCEM or as in PETS."""

import math

import torch
from gymnasium.spaces import Box
from torch import Tensor

from layeredrl.planners.noise import colored_noise, colored_noise_basis
from layeredrl.planners.search import Belief, Search, weighted_mean
from layeredrl.task import check_action_box

CUT = 2.0
"""Number of standard deviations at which samples are truncated."""
TAIL = 0.5 * math.erfc(CUT / math.sqrt(2))
"""Probability of a normal sample beyond `CUT`, on one side."""


class _Gaussian(Search):
    def __init__(self, space: Box, horizon: int, init_std: float) -> None:
        check_action_box(space)
        self.horizon = horizon
        self.init_std = init_std
        self.low = torch.as_tensor(space.low, dtype=torch.float32)
        self.high = torch.as_tensor(space.high, dtype=torch.float32)

    def initial_center(self, n_envs: int, device: torch.device) -> Tensor:
        low, high = self._bounds(device)
        return ((low + high) / 2).repeat(n_envs, self.horizon, 1)

    def begin(self, center: Tensor) -> Belief:
        low, high = self._bounds(center.device)
        return Belief(center, (self.init_std * (high - low) / 2).expand_as(center))

    def sequence(self, center: Tensor) -> Tensor:
        return center

    def inside(self, sequences: Tensor) -> Tensor:
        return sequences.clamp(*self._bounds(sequences.device))

    def largest_variance(self, belief: Belief) -> Tensor:
        assert belief.std is not None
        return belief.std.flatten(1).amax(1).square()

    def _bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.low.device != device:
            self.low, self.high = self.low.to(device), self.high.to(device)
        return self.low, self.high


class ClippedGaussian(_Gaussian):
    """Gaussian with noise that may be correlated over time; samples are clipped to the bounds (iCEM, sec. 3.1; MPPI).

    Args:
        space: Box of shape (A,) with finite bounds.
        horizon: Length H of the sequences.
        init_std: Initial standard deviation of a decision, in units of half the action range.
        noise_exponent: Exponent of the noise's power spectrum over time; 0 is white.
    """

    def __init__(self, space: Box, horizon: int, init_std: float, noise_exponent: float = 0.0) -> None:
        super().__init__(space, horizon, init_std)
        self._basis = colored_noise_basis(horizon, noise_exponent) if noise_exponent else None

    def sample(self, belief: Belief, n: int, generator: torch.Generator) -> Tensor:
        assert belief.std is not None
        e, h, a = belief.center.shape
        if self._basis is not None:
            self._basis = self._basis.to(generator.device)
        noise = colored_noise((e, n, h, a), self._basis, generator)
        return self.inside(torch.addcmul(belief.center.unsqueeze(1), noise, belief.std.unsqueeze(1)))

    def refit(self, belief: Belief, sequences: Tensor, weights: Tensor | None, momentum: float) -> Belief:
        assert belief.std is not None
        if weights is None:
            std, mean = torch.std_mean(sequences, 1, correction=0)
        else:
            mean = weighted_mean(sequences, weights)
            std = weighted_mean((sequences - mean.unsqueeze(1)).square(), weights).sqrt()
        # Clipped: rounding may move the average of actions on a bound beyond it.
        return Belief(self.inside(torch.lerp(mean, belief.center, momentum)), torch.lerp(std, belief.std, momentum))


class TruncatedGaussian(_Gaussian):
    """Gaussian truncated at two standard deviations, narrowed so that these stay within the bounds (PETS's code).

    Args:
        space: Box of shape (A,) with finite bounds.
        horizon: Length H of the sequences.
        init_std: Initial standard deviation of a decision, in units of half the action range.
    """

    def sample(self, belief: Belief, n: int, generator: torch.Generator) -> Tensor:
        mean, std = belief.center, belief.std
        assert std is not None
        low, high = self._bounds(mean.device)
        room = torch.minimum(mean - low, high - mean) / CUT
        noise = _truncated_normal((len(mean), n, *mean.shape[1:]), generator)
        return self.inside(torch.addcmul(mean.unsqueeze(1), noise, torch.minimum(std, room).unsqueeze(1)))

    def refit(self, belief: Belief, sequences: Tensor, weights: Tensor | None, momentum: float) -> Belief:
        assert belief.std is not None
        mean = weighted_mean(sequences, weights)
        variance = weighted_mean((sequences - mean.unsqueeze(1)).square(), weights)
        variance = torch.lerp(variance, belief.std.square(), momentum)
        return Belief(self.inside(torch.lerp(mean, belief.center, momentum)), variance.sqrt())


def _truncated_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal samples truncated at two standard deviations, by inverse transform."""
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    normal: Tensor = torch.special.ndtri(TAIL + (1 - 2 * TAIL) * uniform)
    return normal
