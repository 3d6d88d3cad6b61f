"""Constant parts of observations that are too large for float32."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LARGE = 4096.0
"""Size of values that are shifted: float32 rounds larger ones to steps of 0.0005. Ordinary observations are smaller."""
N_WATCHED = 16
"""Number of changes between observations whose median is compared with the rounding."""


class ObservationOffset:
    """Offset that is subtracted from observations in float64, before they are rounded to float32.

    float32 keeps half metres of map coordinates and minutes of a time since 1970. The offset is the first observation
    where that is large, so that most tasks have none. It belongs to what an agent has learned, and is saved with it.

    Args:
        wide: Mask of dimensions that the environment has in higher precision than float32, (O,).
        groups: Groups of dimensions with the same offset, because their differences mean something.

    Attributes:
        values: Offset, (O,).
        used: If True, any of it is not 0.
    """

    def __init__(self, wide: NDArray[np.bool_], groups: Sequence[Sequence[int]] = ()) -> None:
        self.wide, self.groups = wide, groups
        self.values = np.zeros(len(wide))
        self.used = self._is_set = self._has_warned = False
        self._last, self._turn = np.zeros(len(wide)), -1  # environments are watched in turn
        self._changes: list[NDArray[np.float64]] = []
        self._tensors: dict[torch.device, Tensor] = {}

    def forget(self) -> None:
        """Become unset again, after observations that do not belong to the run."""
        self.set(np.zeros_like(self.values))
        self._is_set = self._has_warned = False
        self._last, self._changes = np.zeros(len(self.values)), []

    def subtract(self, observations: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return observations (n, O) without the offset, which is set by the first one."""
        if not self._is_set and len(observations):
            self.set(self._chosen(observations[0]))
        with np.errstate(over="ignore"):  # infinities are found where data enters the replay
            result = (observations - self.values if self.used else observations).astype(np.float32)
        if not self._has_warned and np.abs(result).max(initial=0.0) > LARGE:
            if not self._changes:
                self._turn += 1
            i = self._turn % len(result)
            self._watch(observations[i], result[i])
        return result

    def set(self, values: NDArray[np.float64]) -> None:
        """Use an offset (O,) from now on."""
        if values.shape != self.values.shape:
            raise ValueError(f"the offset of observations has shape {values.shape}, expected {self.values.shape}")
        self.values, self.used, self._is_set = values, bool(values.any()), True
        for device, tensor in self._tensors.items():
            tensor.copy_(torch.from_numpy(values).to(device))

    def on(self, device: torch.device) -> Tensor:
        """Return the offset (O,) as float64 on a device."""
        if device not in self._tensors:
            with torch.inference_mode(False):
                self._tensors[device] = torch.from_numpy(self.values.copy()).to(device)
        return self._tensors[device]

    def _chosen(self, first: NDArray[np.float64]) -> NDArray[np.float64]:
        large = self.wide & np.isfinite(first) & (np.abs(first) > LARGE)
        values = np.where(large, first, 0.0)
        for group in map(list, self.groups):
            some = values[group][values[group] != 0]
            if len(some):
                values[group] = some[0] if self.wide[group].all() else 0.0
        return values

    def _watch(self, observation: NDArray[np.float64], rounded: NDArray[np.float32]) -> None:
        """Warn once if float32 loses the changes of an environment's observation (O,)."""
        self._changes.append(np.abs(observation - self._last))
        self._last = observation.copy()
        if len(self._changes) <= N_WATCHED:  # the first change is that from another time
            return
        typical, self._changes = np.median(self._changes[1:], axis=0), []
        lost = self.wide & (typical > 0) & (np.spacing(np.abs(rounded)) > 0.1 * typical)
        if lost.any():
            i = int(lost.argmax())
            self._has_warned = True
            warnings.warn(
                f"dimension {i} of the observation is {observation[i]:g} and changes by {typical[i]:g} in a step, "
                f"which is lost in the precision of float32, {np.spacing(np.abs(rounded[i])):g} there; another unit or "
                "origin would help",
                RuntimeWarning,
                stacklevel=4,
            )


@dataclass(frozen=True)
class AtOffset:
    """A known function of the environment's observations, for those from which the offset is subtracted.

    It computes in float64 where there is an offset, and is the function itself where there is none.
    """

    function: Any
    """Function of (state (..., S), context (..., C), action (..., A)), and next state (..., S) where it takes one."""
    offset: ObservationOffset
    goal: slice
    """Dimensions of the observation that are the context; the others are the state."""
    returns_state: bool = False
    """If True, it returns a state."""

    def __call__(self, state: Tensor, context: Tensor, action: Tensor, *after: Tensor) -> Any:
        if not self.offset.used:
            return self.function(state, context, action, *after)
        values = self.offset.on(state.device)
        own, goal = torch.cat([values[: self.goal.start], values[self.goal.stop :]]), values[self.goal]

        def whole(x: Tensor, offset: Tensor) -> Tensor:
            return x.double() + offset[: x.shape[-1]]  # a state may have the first dimensions alone

        action = action.double() if action.is_floating_point() else action
        context = whole(context, goal)
        result = self.function(whole(state, own), context, action, *(whole(x, own) for x in after))
        if self.returns_state:
            result = result - own[: result.shape[-1]]
        return result.to(state.dtype) if result.is_floating_point() else result
