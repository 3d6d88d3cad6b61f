"""Uniformly random actions: the baseline that every agent must beat."""

from dataclasses import dataclass

import torch

from agents.recipe import Recipe
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.task import TaskSpec


@dataclass(frozen=True)
class Random(Recipe):
    """Uniformly random actions."""

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task."""
        return Hierarchy([RandomLevel(task.action_space)], task, device)
