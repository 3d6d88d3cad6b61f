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
    """Decisions of a level for n environments, one row each."""

    action: Tensor
    """Command of the level below, or the environment's action, (n, A)."""
    duration: NDArray[np.int64]
    """Environment steps for which the action lasts, (n,); cut short where the level's own command ends first."""
    memory: Batch
    """Memory for the level's next decision; tensors, or Batches of them, with the environment first."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Metrics by name, (n,) each; NaN where there is none."""
    forecast: Tensor | None = None
    """Predicted return of the next `forecast_steps` environment steps, (n,); NaN for none."""
    forecast_steps: int = 0


class Level(ABC):
    """Receives a command from the level above and emits actions, each of which lasts some environment steps.

    A level keeps what it has learned and its replay. The memory of an environment is an argument and a result of every
    call, so that one level can act in several sets of environments at once.

    Attributes:
        name: Name of the level, in metrics and checkpoints.
        command_space: Space of commands from the level above; None for the top level.
        action_space: Action space of the level.
        discount: Discount per environment step, of the reward that its transitions accumulate.
        replay: Transitions that it learns from; None if it keeps none.
    """

    name: str = "level"
    command_space: spaces.Space[Any] | None = None
    action_space: spaces.Space[Any]
    discount: float = 1.0
    replay: Replay | None = None

    @abstractmethod
    def initial_memory(self, n_envs: int) -> Batch:
        """Memory of environments whose episode begins."""

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
            command: Command from the level above; None for the top level. Keys `action` (n, C), the command itself;
                `obs` (n, O), the observation at which it was given; `elapsed` and `remaining` (n,), environment steps
                since then and until its end.
            memory: From `initial_memory` or the last decision, n rows.
            explore: True to collect experience, False to act as well as possible.
            generator: Source of randomness.
        """

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:  # noqa: B027  optional
        """Store finished transitions at this level's time scale, as `Replay.add` takes them. The default ignores them.

        `info` holds their `duration` in environment steps and, below the top level, the `command` at their start, as
        given to `act`. Where `command.remaining` equals the duration, the command ended with the transition.
        """

    def abandon(self, env_ids: NDArray[np.int64]) -> None:
        """End episodes whose end was not observed, after their last transition; by default as truncated."""
        if self.replay is not None:
            self.replay.truncate(env_ids)

    @property
    def host_only(self) -> str | None:
        """Reason why transitions of environments on a device cannot stay there; None if they can."""
        if self.replay is None and type(self).observe is Level.observe:
            return None
        return f"{type(self).__name__} keeps its transitions in the memory of the host"

    def keep_on_device(self) -> None:  # noqa: B027  optional
        """Keep transitions on the level's device from now on, where `host_only` is None.

        `observe` then gets tensors, for one transition of each of some environments.
        """

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        """Learn from observed transitions, if learning is due.

        Args:
            n_total_env_steps: Environment steps so far, all instances summed.

        Returns:
            Metrics by name; empty if nothing was learned.
        """
        return {}

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        """CPU time of this level's learning in seconds, by part; by default it is not measured."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, as nested dicts of tensors and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(f"the level {type(self).__name__} has no state, but was given {', '.join(state)}")
