"""The interface of planners: optimisers of action sequences that know nothing of models."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_count
from layeredrl.task import check_action_box

ScoreFunction = Callable[[Tensor], Tensor]
"""Candidate sequences (E, N, H, A) of E environments to scores (E, N), higher is better; NaN counts as worst."""


@dataclass(frozen=True)
class Plan:
    """What a planner found for E environments."""

    actions: Tensor
    """Chosen sequences, (E, H, A)."""
    expected_return: Tensor
    """Score of the best candidate of the last iteration, (E,)."""
    warm_start: Batch
    """What the next call of `plan` may start from; tensors with the environment first."""
    best_scores: Tensor
    """Best score of each iteration, (iterations, E)."""


class Planner(ABC):
    """Finds action sequences of high score, for a whole batch of environments at once.

    Environments do not influence each other. All state between calls is in the warm start, which the caller keeps.

    Args:
        action_space: Box of shape (A,) with finite bounds.
        horizon: Length H of the sequences.
    """

    def __init__(self, action_space: spaces.Space[object], horizon: int) -> None:
        if not isinstance(action_space, spaces.Box):
            raise ValueError(
                f"the planner {type(self).__name__} cannot handle the action space {action_space}, expected a Box"
            )
        check_action_box(action_space)
        require_count("horizon", horizon)
        self.action_space = action_space
        self.horizon = horizon
        self.action_dim = action_space.shape[0]
        self.low = torch.as_tensor(action_space.low, dtype=torch.float32)
        self.high = torch.as_tensor(action_space.high, dtype=torch.float32)

    @abstractmethod
    def start(self, n_envs: int, device: torch.device) -> Batch:
        """Warm start of environments that have no history."""

    @abstractmethod
    def plan(
        self,
        score: ScoreFunction,
        n_envs: int,
        warm_start: Batch,
        generator: torch.Generator,
        proposals: Tensor | None = None,
    ) -> Plan:
        """Find a good sequence for each of E environments.

        Args:
            score: The objective.
            n_envs: E.
            warm_start: From `start` or the previous plan, its rows in the order of the environments.
            generator: Source of randomness, on the device to plan on.
            proposals: Sequences (E, K, H, A) that somebody suggests; they compete with the planner's own candidates.
        """

    def check(self, n_envs: int, warm_start: Batch, proposals: Tensor | None) -> None:
        """Raise unless the arguments of `plan` fit together."""
        expected = (n_envs, self.horizon, self.action_dim)
        for key in warm_start.get_keys():
            shape = tuple(warm_start[key].shape)
            if shape[0] != n_envs or (key == "mean" and shape != expected):
                raise ValueError(
                    f"warm_start.{key} has shape {shape}, expected {expected if key == 'mean' else n_envs}"
                )
        if proposals is None:
            return
        if proposals.ndim != 4 or (len(proposals), *proposals.shape[2:]) != expected:
            wanted = f"({n_envs}, K, {self.horizon}, {self.action_dim})"
            raise ValueError(f"proposals has shape {tuple(proposals.shape)}, expected {wanted}")

    def bounds(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of an action, (A,) each, on a device."""
        if self.low.device != device:
            self.low, self.high = self.low.to(device), self.high.to(device)
        return self.low, self.high


def evaluate(score: ScoreFunction, candidates: Tensor) -> Tensor:
    """Scores (E, N) of candidates (E, N, H, A).

    Raises:
        ValueError: The score function returned another shape.
    """
    scores = score(candidates)
    if scores.shape != candidates.shape[:2]:
        raise ValueError(
            f"the score function returned shape {tuple(scores.shape)} for candidates of shape "
            f"{tuple(candidates.shape)}, expected {tuple(candidates.shape[:2])}"
        )
    return scores


def best_first(candidates: Tensor, scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n best of candidates (E, N, H, A) with scores (E, N), best first; ties keep their order, NaN comes last.

    Returns:
        Candidates (E, n, H, A) and their scores (E, n).
    """
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # Stable, because where many candidates tie, the mean, which comes first, is the calmest choice.
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :n]
    chosen = candidates.gather(1, order[..., None, None].expand(-1, -1, *candidates.shape[2:]))
    return chosen, scores.gather(1, order)


def shift(sequences: Tensor, last: Tensor) -> Tensor:
    """Drop the first action of sequences (..., H, A), which has been executed, and append `last` (..., A)."""
    return torch.cat([sequences[..., 1:, :], last.unsqueeze(-2)], dim=-2)
