"""A level of uniformly random actions: the baseline that every agent must beat."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_count
from layeredrl.levels.level import Decision, Level


class RandomLevel(Level):
    """Uniformly random actions of a fixed duration.

    Args:
        action_space: A bounded Box, Discrete or MultiDiscrete.
        command_space: Space of commands from above, which it ignores.
        duration: Environment steps for which an action lasts.
        name: Name of the level.
    """

    def __init__(
        self,
        action_space: spaces.Space[Any],
        command_space: spaces.Space[Any] | None = None,
        *,
        duration: int = 1,
        name: str = "random",
    ) -> None:
        self.action_space, self.command_space, self.name = action_space, command_space, name
        require_count("duration", duration)
        self.duration = duration
        action_spaces.uniform(action_space, (1,), torch.Generator())  # refuses what it cannot draw from, now

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch()

    def act(
        self,
        obs: Tensor,
        command: Batch | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        action = action_spaces.uniform(self.action_space, (len(obs),), generator)
        return Decision(action, np.full(len(obs), self.duration), memory)
