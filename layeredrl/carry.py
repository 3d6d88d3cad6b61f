"""State of acting in a set of environments, which the caller of a hierarchy owns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch

from layeredrl import memory as memories
from layeredrl.levels.forecasts import Forecasts
from layeredrl.memory import require_shape
from layeredrl.randomness import generator_state, restore_generator


@dataclass
class LevelCarry:
    """State of one level in each of E environments."""

    memory: Batch
    """Memory of the level, on its device."""
    action: NDArray[Any]
    """Current action, (E, A)."""
    obs: NDArray[np.float32]
    """Observation at which it was chosen, (E, O)."""
    remaining: NDArray[np.int64]
    """Environment steps until the action ends, (E,); zero: a decision is due."""
    elapsed: NDArray[np.int64]
    """Environment steps since it was chosen, (E,)."""
    reward: NDArray[np.float64]
    """Reward accumulated since then, each step's discounted to the start, (E,)."""
    forecasts: Forecasts
    """Predicted returns, until they can be compared with the achieved ones."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors."""
        return {
            "memory": memories.state_of(self.memory),
            "forecasts": self.forecasts.state_dict(),
            **{name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        memories.restore(self.memory, state["memory"])
        for name in _ARRAYS:
            require_shape(name, state[name], getattr(self, name).shape)
            getattr(self, name)[:] = state[name].cpu().numpy()
        self.forecasts.load_state_dict(state["forecasts"])


_ARRAYS = ("action", "obs", "remaining", "elapsed", "reward")


@dataclass
class Carry:
    """State of acting in a set of environments. The caller owns it; the agent's levels keep none of it."""

    levels: list[LevelCarry]
    """State of each level, top first."""
    generator: torch.Generator
    """Randomness of acting in these environments."""
    metrics: dict[str, tuple[NDArray[np.int64], NDArray[Any]]]
    """Metrics of the last step by name: environments (n,) and values (n,)."""
    unobserved: NDArray[np.bool_]
    """True in environments whose last action has not been observed yet, (E,)."""

    def last_metrics(self) -> dict[str, NDArray[np.float32]]:
        """Metrics of the last step by name, each of shape (E,); NaN where a level reported none."""
        columns = {}
        for name, (env_ids, values) in self.metrics.items():
            columns[name] = np.full(len(self.levels[0].remaining), np.nan, np.float32)
            columns[name][env_ids] = values
        return columns

    def state_dict(self) -> dict[str, Any]:
        """The state from which acting continues."""
        return {
            "levels": [level.state_dict() for level in self.levels],
            **generator_state(self.generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in as many environments; another kind of device draws other numbers."""
        if len(state["levels"]) != len(self.levels):
            raise ValueError(f"the carry has {len(state['levels'])} levels, expected {len(self.levels)}")
        for level, saved in zip(self.levels, state["levels"], strict=True):
            level.load_state_dict(saved)
        self.unobserved[:] = False  # a step that was not observed is taken again
        restore_generator(self.generator, state)
