"""The interface of planners: optimisers of action sequences, independent of any model."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_count
from layeredrl.planners.search import Search

ScoreFunction = Callable[[Tensor], Tensor]
"""Candidate sequences (E, N, H, A) of E environments to scores (E, N): higher is better, non-finite is worst."""


@dataclass(frozen=True)
class Plan:
    """The result of planning for E environments."""

    actions: Tensor
    """Chosen sequences, (E, H, A); integers for discrete actions. Meaningless where nothing was `found`."""
    score: Tensor
    """Score of the best candidate of the last iteration, (E,). The best of many noisy scores is optimistic."""
    warm_start: Batch
    """Warm start of the next call of `plan`; tensors with the environment first."""
    best_scores: Tensor
    """Best score of each iteration, (iterations, E)."""
    std: Tensor | None = None
    """Standard deviations of the first action after the last iteration, (E, A); None if the planner has none."""

    @property
    def found(self) -> Tensor:
        """True where a candidate had a finite score in any iteration, (E,)."""
        return (self.best_scores > -torch.inf).any(0)


class Planner(ABC):
    """Finds action sequences of high score, for a batch of environments at once.

    Environments do not influence each other. All state between calls is in the warm start, which the caller keeps.

    Args:
        action_space: Box of shape (A,) with finite bounds, Discrete (A = 1) or MultiDiscrete of shape (A,).
        horizon: Length H of the sequences.

    Attributes:
        ends_with_std: True if plans of continuous actions have a `std`.
    """

    ends_with_std: ClassVar[bool] = False

    def __init__(self, action_space: spaces.Space[object], horizon: int) -> None:
        require_count("horizon", horizon)
        self.action_space = action_space
        self.horizon = horizon

    def lighter(self, share: float) -> "Planner":
        """The same planner with a share of its candidates; both accept the warm starts of either.

        Raises:
            TypeError: It has no `config` with `n_samples`.
        """
        config: Any = getattr(self, "config", None)
        if not hasattr(config, "n_samples"):
            raise TypeError(f"{type(self).__name__} has no config with n_samples, expected one to plan with fewer")
        least = getattr(config, "n_elites", None) or 1
        fewer = replace(config, n_samples=max(least, round(share * config.n_samples)))
        make: Any = type(self)
        return cast(Planner, make(self.action_space, fewer))

    @abstractmethod
    def initial_warm_start(self, n_envs: int, device: torch.device) -> Batch:
        """Warm start of environments that have no history."""

    def plan(
        self,
        score: ScoreFunction,
        n_envs: int,
        warm_start: Batch,
        generator: torch.Generator,
        proposals: Tensor | None = None,
    ) -> Plan:
        """Search for a sequence of high score in each of E environments.

        Args:
            score: The objective.
            n_envs: E.
            warm_start: From `initial_warm_start` or the previous plan, rows in the order of the environments.
            generator: Source of randomness, on the device to plan on.
            proposals: Suggested sequences, (E, K, H, A); they compete with the planner's own candidates.

        Returns:
            The plan. Its `found` is False in environments in which no candidate had a finite score.

        Raises:
            ValueError: Shapes do not fit together.
        """
        self._check(n_envs, warm_start, proposals)
        return self._plan(score, n_envs, warm_start, generator, proposals)

    @abstractmethod
    def _plan(
        self,
        score: ScoreFunction,
        n_envs: int,
        warm_start: Batch,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> Plan:
        """`plan` for arguments that have been checked."""

    @cached_property
    def _row_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the rows of a warm start."""
        one = self.initial_warm_start(1, torch.device("cpu"))
        return {key: one[key].shape[1:] for key in one.get_keys()}

    def _check(self, n_envs: int, warm_start: Batch, proposals: Tensor | None) -> None:
        for key, row in self._row_shapes.items():
            if key not in warm_start:
                raise ValueError(f"warm_start lacks {key}, expected one from this planner's initial_warm_start or plan")
            if warm_start[key].shape != (n_envs, *row):
                raise ValueError(
                    f"warm_start.{key} has shape {tuple(warm_start[key].shape)}, expected {(n_envs, *row)}"
                )
        if proposals is None:
            return
        width = action_spaces.width(self.action_space)
        if proposals.ndim != 4 or (len(proposals), *proposals.shape[2:]) != (n_envs, self.horizon, width):
            raise ValueError(
                f"proposals has shape {tuple(proposals.shape)}, expected ({n_envs}, K, {self.horizon}, {width})"
            )


def evaluate(score: ScoreFunction, candidates: Tensor) -> Tensor:
    """Scores (E, N) of candidates (E, N, H, A); those that are not finite become minus infinity.

    Raises:
        ValueError: The score function returned another shape.
    """
    scores = score(candidates)
    if scores.shape != candidates.shape[:2]:
        raise ValueError(
            f"the score function returned shape {tuple(scores.shape)} for candidates of shape "
            f"{tuple(candidates.shape)}, expected {tuple(candidates.shape[:2])}"
        )
    if not scores.is_floating_point():  # numbers of matches, say: minus infinity would not fit in
        scores = scores.float()
    return scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def best_first(candidates: Tensor, scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n best of candidates (E, N, H, A) with scores (E, N), best first; ties keep their order.

    Returns:
        Candidates (E, n, H, A) and their scores (E, n). Where fewer than n have a finite score, the best one replaces
        the others, with a score of minus infinity.
    """
    # Stable, because where many candidates tie, the mean, which comes first, is the calmest choice.
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :n]
    best_scores = scores.gather(1, order)
    order = torch.where(best_scores == -torch.inf, order[:, :1], order)
    chosen = candidates.gather(1, order[..., None, None].expand(-1, -1, *candidates.shape[2:]))
    return chosen, best_scores


class Contest:
    """Ranks candidates, together with the proposals in every iteration.

    Args:
        score: The objective.
        search: Projects proposals into the action space.
        proposals: Sequences (E, K, H, A), projected and scored once; None for none.
    """

    def __init__(self, score: ScoreFunction, search: Search, proposals: Tensor | None) -> None:
        self.score = score
        self.proposals = proposals if proposals is None else search.inside(proposals)
        self._proposals_scores: Tensor | None = None

    def best(self, candidates: Tensor, n: int | None) -> tuple[Tensor, Tensor]:
        """The n best (None: all, sorted) of candidates (E, N, H, A) and the proposals, as from `best_first`."""
        if self.proposals is None:
            scores = evaluate(self.score, candidates)
        elif self._proposals_scores is None:
            n_own = candidates.shape[1]
            candidates = torch.cat([candidates, self.proposals], 1)
            scores = evaluate(self.score, candidates)
            self._proposals_scores = scores[:, n_own:]
        else:
            scores = torch.cat([evaluate(self.score, candidates), self._proposals_scores], 1)
            candidates = torch.cat([candidates, self.proposals], 1)
        return best_first(candidates, scores, candidates.shape[1] if n is None else n)


def shift(x: Tensor, last: Tensor, dim: int = 1) -> Tensor:
    """Drop the first entry along time, the dimension `dim`: it has been executed; append `last`, which lacks `dim`."""
    return torch.cat([x.narrow(dim, 1, x.shape[dim] - 1), last.unsqueeze(dim)], dim)
