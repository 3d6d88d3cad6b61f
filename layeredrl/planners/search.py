"""What planners draw their candidates from: a distribution over action sequences for each environment."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Belief(NamedTuple):
    """Parameters of the distributions of E environments: every action has its own."""

    center: Tensor
    """Means (E, H, A), or probabilities of the choices (E, H, A, C)."""
    std: Tensor | None
    """Standard deviations (E, H, A); None for choices."""


class Search(ABC):
    """A family of distributions over sequences: how to begin, draw, and refit to what turned out well."""

    @abstractmethod
    def initial_center(self, n_envs: int, device: torch.device) -> Tensor:
        """Centre for environments that have no history."""

    @abstractmethod
    def begin(self, center: Tensor) -> Belief:
        """What a decision starts from, around a centre; wide, whatever earlier decisions have narrowed down."""

    @abstractmethod
    def sample(self, belief: Belief, n: int, generator: torch.Generator) -> Tensor:
        """Draw n sequences for each environment, (E, n, H, A), within the action space."""

    @abstractmethod
    def refit(self, belief: Belief, sequences: Tensor, weights: Tensor | None, momentum: float) -> Belief:
        """Fit to sequences (E, K, H, A).

        Args:
            belief: What they were drawn from.
            sequences: (E, K, H, A).
            weights: (E, K), summing to one; None for equal ones.
            momentum: Weight of the old parameters.
        """

    @abstractmethod
    def sequence(self, center: Tensor) -> Tensor:
        """The sequence (E, H, A) that a centre stands for."""

    @abstractmethod
    def inside(self, sequences: Tensor) -> Tensor:
        """Sequences (..., H, A) brought into the action space."""

    @abstractmethod
    def largest_variance(self, belief: Belief) -> Tensor:
        """Largest variance of an action, (E,): small where the search has settled."""


def weighted_mean(x: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of x (E, K, ...) over K, with weights (E, K) that sum to one, or equal ones."""
    if weights is None:
        return x.mean(1)
    return (weights.view(*weights.shape, *[1] * (x.ndim - 2)) * x).sum(1)


def where(rows: Tensor, new: Belief, old: Belief) -> Belief:
    """The new parameters in the environments that `rows` (E,) marks, the old ones elsewhere."""
    center = torch.where(rows.view(-1, *[1] * (new.center.ndim - 1)), new.center, old.center)
    if new.std is None or old.std is None:
        return Belief(center, None)
    return Belief(center, torch.where(rows.view(-1, 1, 1), new.std, old.std))
