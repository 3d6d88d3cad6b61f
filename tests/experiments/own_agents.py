"""Agents of a user, and some that cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.pets import PETS
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.planners import Planner, RandomShooting, RandomShootingConfig
from layeredrl.task import TaskSpec


@dataclass(frozen=True)
class Hold:
    """Random actions, each held for some steps."""

    duration: int = 2
    """Environment steps."""

    presets: ClassVar[dict[str, dict[str, int]]] = {"debug": {"duration": 5}}

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        return Hierarchy([RandomLevel(task.action_space, duration=self.duration)], task, device)


@dataclass(frozen=True)
class Strange(Hold):
    """Has a setting that config.json cannot hold."""

    function: Callable[[int], int] | torch.Tensor | None = None

    presets: ClassVar[dict[str, dict[str, int]]] = {}


@dataclass(frozen=True)
class Shooting(PETS):
    """PETS with another planner and another discount, with the presets of PETS."""

    discount: float = 0.9

    def make_planner(self, task: TaskSpec) -> Planner:
        return RandomShooting(
            task.action_space, RandomShootingConfig(horizon=self.planner.settings.horizon, n_samples=10)
        )


class NoDataclass:
    """Has a method build, but no settings."""

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        raise NotImplementedError
