"""Bounds of imagination: disagreement between an ensemble's members, and information lost by its predictions.

All in the networks' units, for members with a Gaussian each: means and variances (M, n, S).
"""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

BITS_AT_ZERO = math.log2(1e-6)
"""Base-2 logarithm of the resolution of information losses, in the networks' units."""


def divergence(mean: Tensor, variance: Tensor) -> Tensor:
    """Mean geometric Jensen-Shannon divergence over all pairs of members, in nats, (n,).

    That of two Gaussians is the mean of their Kullback-Leibler divergences to their normalised geometric mean
    (Nielsen 2019, arXiv 1904.04017); as a bound of imagination: MACURA (Frauenknecht et al. 2024, arXiv 2405.19014).

    Args:
        mean: Members' means, (M, n, S), of at least two members.
        variance: Their variances, (M, n, S).
    """
    precision, logs = variance.reciprocal(), variance.log()
    weighted = precision * mean
    total = torch.zeros_like(mean[0])
    for a, b in combinations(range(len(mean)), 2):  # all pairs at once would leave the cache: slower, and much memory
        middle_precision = (precision[a] + precision[b]) / 2
        middle = (weighted[a] + weighted[b]) / 2 / middle_precision
        second_moments = variance[a] + variance[b] + (mean[a] - middle).square() + (mean[b] - middle).square()
        total += middle_precision * second_moments / 2 - middle_precision.log()
    terms = total / math.comb(len(mean), 2) - 1 - logs.mean(0)
    return terms.sum(-1) / 2


class Fused(NamedTuple):
    """Estimate of the environment's next state; see `fuse`."""

    state: Tensor
    """Next state, (n, S)."""
    bits: Tensor
    """Information lost in each dimension, in bits above the resolution, (n, S)."""


def fuse(mean: Tensor, variance: Tensor, drawn: Tensor) -> Fused:
    """Estimate the environment's next state from one drawn of the ensemble (Frauenknecht et al. 2025, Infoprop).

    The environment's own distribution is taken to be the normalised geometric mean of the members' densities. A draw of
    the ensemble has the error of the members' means in addition, which a Kalman filter removes (arXiv 2501.16918,
    section 4).

    Args:
        mean: Members' means, (M, n, S).
        variance: Their variances, (M, n, S).
        drawn: Draw of one of them, (n, S).
    """
    own = variance.reciprocal().mean(0).reciprocal()
    center = own * (mean / variance).mean(0)
    error = (mean - center).square().mean(0)
    gain = own / (own + error)
    left = ((1 - gain) * own).clamp(min=torch.finfo(own.dtype).tiny)
    bits = 0.5 * torch.log2(2 * math.pi * math.e * left) - BITS_AT_ZERO
    return Fused(center + gain * (drawn - center), bits.clamp(min=0))


class Trust(Protocol):
    """A bound of imagined branches by what the members predict."""

    def measure(self, mean: Tensor, variance: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next states (n, S), from one drawn of the ensemble, and measures (n, D) of doubt about them.

        Arguments are those of `fuse`.
        """
        ...

    def fit(self, measures: Tensor) -> None:
        """Set the bounds by measures (N, D) of first steps from real states; those not finite are left out."""
        ...

    def holds(self, measures: Tensor, so_far: Tensor) -> Tensor:
        """Return True for branches that go on, (n,), by measures (n, D) of a step and their sums (n, D) with it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that bounds depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class DivergenceTrust:
    """Goes on while members agree (MACURA): below a multiple of a quantile of divergences, averaged over all fits.

    Args:
        factor: The multiple.
        quantile: The quantile.
    """

    def __init__(self, factor: float, quantile: float) -> None:
        self.factor, self.quantile = factor, quantile
        self.total, self.n_fits = 0.0, 0

    def measure(self, mean: Tensor, variance: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        return drawn, divergence(mean, variance).unsqueeze(-1)

    def fit(self, measures: Tensor) -> None:
        finite = measures[measures.isfinite()]
        if len(finite):
            self.total += float(torch.quantile(finite, self.quantile))
            self.n_fits += 1

    def holds(self, measures: Tensor, so_far: Tensor) -> Tensor:
        del so_far
        return measures.squeeze(-1) <= self.factor * self.total / max(self.n_fits, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "n_fits": self.n_fits}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.n_fits = state["total"], state["n_fits"]


class InformationTrust:
    """Goes on while information about the environment's state is left (Infoprop).

    In every dimension, the loss of a step is bounded by a high quantile of the losses at first steps, and the loss so
    far by a low quantile times the largest number of steps. The paper takes the quantiles over real transitions; here
    the first steps begin at real states, and have actions of the current policy.

    Args:
        quantiles: High quantile, for the loss of a step, and low quantile, for the loss so far.
        n_steps: Largest number of steps.
    """

    def __init__(self, quantiles: tuple[float, float], n_steps: int) -> None:
        self.quantiles, self.n_steps = quantiles, n_steps
        self.bounds: Tensor | None = None  # (2, S): of a step and of all steps

    def measure(self, mean: Tensor, variance: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        return fuse(mean, variance, drawn)

    def fit(self, measures: Tensor) -> None:
        finite = measures[measures.isfinite().all(-1)]
        if not len(finite):
            self.bounds = measures.new_full((2, measures.shape[-1]), -torch.inf)
            return
        step, least = (torch.quantile(finite, quantile, 0) for quantile in self.quantiles)
        self.bounds = torch.stack([step, self.n_steps * least])

    def holds(self, measures: Tensor, so_far: Tensor) -> Tensor:
        assert self.bounds is not None, "fit comes first"
        step, branch = self.bounds
        kept: Tensor = ((measures <= step) & (so_far <= branch)).all(-1)
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state  # bounds are set anew at every fit, before they are used
