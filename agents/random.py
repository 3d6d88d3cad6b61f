"""The baseline that every agent must beat: uniformly random actions."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.task import TaskSpec


@dataclass(frozen=True)
class Random:
    """Uniformly random actions."""

    presets: ClassVar[dict[str, "Random"]] = {}

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task."""
        return Hierarchy([RandomLevel(task.action_space)], task, device)
