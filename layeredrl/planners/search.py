"""Interface of the distributions over action sequences from which planners draw candidates."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Belief(NamedTuple):
    """Parameters of the distributions of E environments, for each step and action dimension."""

    center: Tensor
    """Means (E, H, A), or probabilities of C choices (E, H, A, C)."""
    std: Tensor | None
    """Standard deviations (E, H, A); None for choices."""


class Search(ABC):
    """Family of distributions over sequences: initialise, sample, refit to elites."""

    @abstractmethod
    def initial_center(self, n_envs: int, device: torch.device) -> Tensor:
        """Centre for environments without a history, (E, H, A) or (E, H, A, C)."""

    @abstractmethod
    def begin(self, center: Tensor) -> Belief:
        """Initial distributions of a decision around a centre, equally wide in every decision."""

    @abstractmethod
    def sample(self, belief: Belief, n: int, generator: torch.Generator) -> Tensor:
        """Draw n sequences for each environment, (E, n, H, A), within the action space."""

    @abstractmethod
    def refit(self, belief: Belief, sequences: Tensor, weights: Tensor | None, momentum: float) -> Belief:
        """Refit to sequences.

        Args:
            belief: Distributions that the sequences were drawn from.
            sequences: Elites, (E, K, H, A).
            weights: Weights (E, K) that sum to one over K; None for equal weights.
            momentum: Weight of the old parameters.
        """

    @abstractmethod
    def sequence(self, center: Tensor) -> Tensor:
        """Sequence (E, H, A) of a centre: the means, or the likeliest choices."""

    @abstractmethod
    def inside(self, sequences: Tensor) -> Tensor:
        """Clip sequences (..., H, A) to the action space."""

    @abstractmethod
    def largest_variance(self, belief: Belief) -> Tensor:
        """Largest variance of an action per environment, (E,); small where the search has converged."""


def weighted_mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of x (E, K, ...) over K, with weights (E, K) that sum to one; None: equal weights."""
    if weights is None:
        return x.mean(1)
    return (weights.view(*weights.shape, *[1] * (x.ndim - 2)) * x).sum(1)


def where(rows: Tensor, new: Belief, old: Belief) -> Belief:
    """Select the new parameters where `rows` (E,) is True, the old ones elsewhere."""
    center = torch.where(rows.view(-1, *[1] * (new.center.ndim - 1)), new.center, old.center)
    if new.std is None or old.std is None:
        return Belief(center, None)
    return Belief(center, torch.where(rows.view(-1, 1, 1), new.std, old.std))
