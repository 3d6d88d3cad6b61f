"""Exploration of planning levels: how they mix plans with random actions, and what these are."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_counts, require_number


@dataclass(frozen=True)
class ExplorationConfig:
    """How a planning level mixes its plans with random actions while it collects experience.

    Each environment is in one of two modes, planning or random, which may change at every decision.
    """

    to_random: float = 0.0
    """Probability of changing from planning to random actions."""
    to_plan: float = 1.0
    """Probability of changing from random actions to planning."""
    n_random_steps: int = 0
    """Environment steps before the first plan."""
    persistence: float = 0.0
    """Probability with which a random action is repeated in the next decision. Above 0, each dimension of a random
    action is at one of its bounds: such actions lead farther than uniform ones, which cancel each other."""
    effort: float = 1.0
    """Share of the planner's candidates that are used while exploring."""
    noise: float = 0.0
    """Standard deviation of the noise of planned actions, in the level's own units of actions."""
    spread: float = 0.0
    """Factor of the standard deviation that the search ended with, which is added to that of the noise (TD-MPC2: 1)."""

    def __post_init__(self) -> None:
        require_number("effort", self.effort, 0, 1, open_low=True)
        for name in ("to_random", "to_plan", "persistence"):
            require_number(name, getattr(self, name), 0, 1)
        require_counts(self, n_random_steps=0)
        for name in ("noise", "spread"):
            require_number(name, getattr(self, name), 0, math.inf)


class RandomActions:
    """Random actions of environments, which may persist from decision to decision.

    Args:
        space: Space of the actions.
        persistence: Probability with which an action is repeated; see `ExplorationConfig.persistence`.
        device: Device of the actions.

    Raises:
        TypeError: Actions are to persist, but have no bounds.
    """

    def __init__(self, space: spaces.Space[Any], persistence: float, device: torch.device) -> None:
        if persistence and not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise TypeError(f"persistence is {persistence}, expected 0 for the action space {space}")
        self.space, self.persistence = space, persistence
        if isinstance(space, spaces.Box):
            self.low, self.high = (torch.as_tensor(x, device=device) for x in (space.low, space.high))

    def initial_memory(self, n_envs: int) -> dict[str, Tensor]:
        """Memory between decisions, for so many environments; no action is held."""
        return {"held": self.low.new_full((n_envs, *self.low.shape), torch.nan)} if self.persistence else {}

    def draw(self, memory: Batch, generator: torch.Generator) -> tuple[Tensor, Batch]:
        """Draw an action for each row of a level's memory; returns them and the memory with those that are held."""
        n = len(memory.random)
        action = action_spaces.uniform(self.space, (n,), generator)
        if not self.persistence:
            return action, memory
        action = torch.where(action > (self.low + self.high) / 2, self.high, self.low)
        kept = torch.rand((n, 1), generator=generator, device=action.device) < self.persistence
        action = torch.where(kept & memory.held.isfinite(), memory.held, action)
        return action, Batch(dict(memory) | {"held": action})
