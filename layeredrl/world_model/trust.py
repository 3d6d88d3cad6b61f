"""How far an ensemble is to be trusted: where its members disagree, and what its predictions lose of information.

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
    pairs = torch.tensor(list(combinations(range(len(mean)), 2)), device=mean.device)
    a, b = pairs.unbind(1)
    precision = variance.reciprocal()
    middle_precision = (precision[a] + precision[b]) / 2
    weighted = precision * mean
    middle = (weighted[a] + weighted[b]) / 2 / middle_precision
    spread = ((mean[a] - middle).square() + (mean[b] - middle).square()) / 2
    logs = variance.log()
    terms = middle_precision * ((variance[a] + variance[b]) / 2 + spread) - 1
    terms = terms - middle_precision.log() - (logs[a] + logs[b]) / 2
    return terms.sum(-1).mean(0) / 2


class Fused(NamedTuple):
    """Members' predictions fused, and what a drawn next state tells of the true one; see `fuse`."""

    state: Tensor
    """Next state, (n, S)."""
    bits: Tensor
    """Information lost in each dimension, in bits above the resolution, (n, S)."""


def fuse(mean: Tensor, variance: Tensor, drawn: Tensor) -> Fused:
    """Estimate the environment's next state from one drawn of the ensemble (Frauenknecht et al. 2025, Infoprop).

    The environment's own distribution is taken to be the members' product; a draw of the ensemble has the error of the
    members' means on top, which a Kalman filter takes out (arXiv 2501.16918, section 4).

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

    In every dimension, less has to be lost in a step than in nearly all real transitions, and less so far than in the
    clearest of them in as many steps as a branch has at most.

    Args:
        quantiles: Of the losses in real transitions, that for a step and that for all steps.
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
