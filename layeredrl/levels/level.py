"""The interface of levels: decision makers at one time scale."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.storage import Replay


@dataclass(frozen=True)
class Decision:
    """What a level decided for some environments, one row each."""

    action: Tensor
    """Command of the level below, or the environment's action, (n, A)."""
    duration: NDArray[np.int64]
    """Environment steps for which the action stands, (n,); cut short where the level's own command ends first."""
    memory: Batch
    """What the level wants to see again at its next decision; tensors with the environment first."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """What a person may want to know of it, (n,) each; NaN where there is nothing to tell."""
    forecast: Tensor | None = None
    """Predicted return of the next `forecast_steps` environment steps, (n,); NaN for none."""
    forecast_steps: int = 0


class Level(ABC):
    """Receives a command from the level above and emits actions, each of which stands for some environment steps.

    A level keeps what it has learned and its replay. What is under way in an environment is handed in and out with
    every call, so that one level can act in several sets of environments at once.

    Attributes:
        command_space: What it takes from the level above; None for the top level.
        action_space: What it emits.
        discount: Per environment step, for the reward that its transitions accumulate.
        replay: What it learns from; None if it keeps nothing.
    """

    command_space: spaces.Space[Any] | None = None
    action_space: spaces.Space[Any]
    discount: float = 1.0
    replay: Replay | None = None

    @abstractmethod
    def initial_memory(self, n_envs: int) -> Batch:
        """Memory for environments whose episode begins."""

    @abstractmethod
    def act(
        self,
        obs: Tensor,
        command: Batch | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        """Decide for n environments.

        Args:
            obs: Flat observations, (n, O).
            command: From the level above; None for the top level. Keys `action`, what is asked for (n, C); `obs`, the
                observation at which it was asked (n, O); `elapsed` and `remaining`, environment steps since then and
                for which it still stands, (n,).
            memory: From `initial_memory` or the last decision, n rows.
            explore: Whether to collect experience or to do as well as possible.
            generator: Source of randomness.
        """

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:  # noqa: B027  optional
        """Take in finished transitions at this level's time scale, as `Replay.add` does. The default forgets them.

        `info` holds their `duration` in environment steps and, below the top level, the `command` at their beginning,
        as `act` was given it. Where `command.remaining` is the duration, the command ended with the transition.
        """

    def abandon(self, env_ids: NDArray[np.int64]) -> None:
        """Episodes end, after their last transition, without anybody seeing how: by default that was a truncation."""
        if self.replay is not None:
            self.replay.truncate(env_ids)

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        """Learn from what was observed, if it is time for that.

        Args:
            n_total_env_steps: Environment steps so far, all instances summed.

        Returns:
            Metrics by name; empty if nothing was learned.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, as nested dicts of tensors and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(f"the level {type(self).__name__} has no state, but was given {', '.join(state)}")
