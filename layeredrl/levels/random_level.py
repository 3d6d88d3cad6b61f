"""A level that acts at random: the baseline that every agent must beat."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.levels.level import Decision, Level


def uniform_actions(space: spaces.Space[Any], n: int, generator: torch.Generator) -> Tensor:
    """Draw n actions uniformly: (n, A) from a bounded Box, (n, 1) of integers from Discrete."""
    device = generator.device
    if isinstance(space, spaces.Discrete):
        return int(space.start) + torch.randint(int(space.n), (n, 1), generator=generator, device=device)
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        raise ValueError(f"action space is {space}, expected a bounded Box or Discrete to draw uniformly from")
    low, high = (torch.as_tensor(x, dtype=torch.float32, device=device) for x in (space.low, space.high))
    return low + (high - low) * torch.rand((n, *space.shape), generator=generator, device=device)


class RandomLevel(Level):
    """Uniformly random actions of a fixed duration.

    Args:
        action_space: A bounded Box, or Discrete.
        command_space: What it takes from above, and ignores.
        duration: Environment steps for which an action stands.
    """

    def __init__(
        self, action_space: spaces.Space[Any], command_space: spaces.Space[Any] | None = None, *, duration: int = 1
    ) -> None:
        self.action_space, self.command_space = action_space, command_space
        if duration < 1:
            raise ValueError(f"duration is {duration}, expected at least 1")
        self.duration = duration
        uniform_actions(action_space, 1, torch.Generator())  # refuses what it cannot draw from, now

    def start(self, n_envs: int) -> Batch:
        return Batch()

    def act(
        self,
        obs: Tensor,
        command: Tensor | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        action = uniform_actions(self.action_space, len(obs), generator)
        return Decision(action, np.full(len(obs), self.duration), memory)
