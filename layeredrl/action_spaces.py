"""Action spaces as tensors: widths, random actions, one-hot features, units.

Actions are floats (..., A) in a Box, integers (..., 1) in Discrete, and integers (..., A) in MultiDiscrete.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from layeredrl.checks import require_flat


def is_discrete(space: spaces.Space[Any]) -> bool:
    """Return True if actions are integers."""
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete)


def width(space: spaces.Space[Any]) -> int:
    """Width A of an action; raises unless the space is a one-dimensional Box, Discrete or MultiDiscrete."""
    if isinstance(space, spaces.Discrete):
        return 1
    if not isinstance(space, spaces.Box | spaces.MultiDiscrete):
        raise ValueError(f"action space is {space}, expected a Box, Discrete or MultiDiscrete")
    require_flat("action space", space)
    return int(space.shape[0])


def same(space: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Return True if two spaces are equal or differ in dtype alone: agents compute in their own."""
    if isinstance(space, spaces.Box) and isinstance(other, spaces.Box):
        pairs = (space.low, other.low), (space.high, other.high)
        return space.shape == other.shape and all(np.allclose(a, b) for a, b in pairs)
    if isinstance(space, spaces.Dict) and isinstance(other, spaces.Dict):
        return space.keys() == other.keys() and all(same(space[key], other[key]) for key in space)
    if isinstance(space, spaces.Discrete) and isinstance(other, spaces.Discrete):
        return bool(space.n == other.n and space.start == other.start)
    if isinstance(space, spaces.MultiDiscrete) and isinstance(other, spaces.MultiDiscrete):
        return np.array_equal(space.nvec, other.nvec) and np.array_equal(space.start, other.start)
    return bool(space == other)


def unit_box(shape: tuple[int, ...]) -> spaces.Box:
    """Box of [-1, 1] and float32, in which agents act."""
    return spaces.Box(-1.0, 1.0, shape, np.float32)


class Rescaling:
    """Converts actions in [-1, 1] to those of a bounded Box, in its dtype; the result is always inside.

    gymnasium's `RescaleAction` leaves the Box by rounding, and gives NaN where bounds are equal,
    infinity where they are enormous.

    Args:
        box: Its bounds are finite; an integer Box gets the nearest integers.
    """

    def __init__(self, box: spaces.Box) -> None:
        self._box = box
        # Computed in float64 and rounded once. Halves first: a difference of enormous bounds is infinite.
        self._low, self._high = (np.asarray(x, np.float64) for x in (box.low, box.high))
        self._middle, self._half = self._low / 2 + self._high / 2, self._high / 2 - self._low / 2

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert actions (..., A); those beyond -1 and 1 become the bounds."""
        scaled = self._middle + self._half * actions
        if self._box.dtype.kind != "f":
            scaled = np.rint(scaled)
        with np.errstate(invalid="ignore"):  # bounds of 64-bit integers may be rounded up; they are replaced below
            result: NDArray[Any] = np.clip(scaled, self._low, self._high).astype(self._box.dtype)
        np.copyto(result, self._box.low, where=actions <= -1)
        np.copyto(result, self._box.high, where=actions >= 1)
        return result


def require_unit_box(space: spaces.Space[Any]) -> spaces.Box:
    """Return `space` if it is a flat Box of [-1, 1], the only kind that SAC and TD3 act in; raise otherwise."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and ((space.low == -1) & (space.high == 1)).all():
        return space
    hint = "" if isinstance(space, spaces.Box) else "; `pets`, which plans without a policy, takes discrete actions"
    raise ValueError(f"the action space is {space}, expected a flat Box of [-1, 1]{hint}")


def choices(space: spaces.Discrete | spaces.MultiDiscrete) -> tuple[list[int], list[int]]:
    """Number of choices and lowest value of each discrete action."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)], [int(space.start)]
    return space.nvec.tolist(), np.broadcast_to(space.start, space.nvec.shape).tolist()


def uniform(space: spaces.Space[Any], lead: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw actions uniformly, `(*lead, A)`.

    Raises:
        ValueError: The space has no uniform distribution.
    """
    a, device = width(space), generator.device
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        draws = [
            start + torch.randint(n, (*lead, 1), generator=generator, device=device)
            for n, start in zip(*choices(space), strict=True)
        ]
        return draws[0] if len(draws) == 1 else torch.cat(draws, -1)
    assert isinstance(space, spaces.Box)
    if not space.is_bounded():
        raise ValueError(f"action space is {space}, expected bounds to draw uniformly between")
    low, high = (np.asarray(x, np.float32) for x in (space.low, space.high))
    drawn = torch.rand((*lead, a), generator=generator, device=device)
    if a and (low == low[0]).all() and (high == high[0]).all():  # numbers need no copy to a device
        return drawn.mul_(float(high[0] - low[0])).add_(float(low[0]))
    bottom, top = (torch.as_tensor(x, device=device) for x in (low, high))
    return bottom + (top - bottom) * drawn


def features(space: spaces.Space[Any], actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Actions (..., A) as network inputs (..., F): one-hot in `dtype` if discrete, unchanged if from a Box."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return actions
    counts, starts = choices(space)
    parts = [F.one_hot(actions[..., i].long() - starts[i], n) for i, n in enumerate(counts)]
    return torch.cat(parts, -1).to(dtype)


def n_features(space: spaces.Space[Any]) -> int:
    """Width F of `features`."""
    return int(spaces.flatdim(space))


def to_env(space: spaces.Space[Any], actions: NDArray[Any]) -> NDArray[Any]:
    """Actions (n, A) in the form and dtype that a vector environment of this action space takes: (n,) for Discrete."""
    taken = actions[:, 0] if isinstance(space, spaces.Discrete) else actions
    return taken.astype(space.dtype, copy=False)


def model_space(space: spaces.Space[Any]) -> spaces.Box | spaces.Discrete:
    """Action space of a dynamics model: MultiDiscrete becomes a Box of one-hot features, others stay the same."""
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.Box(0.0, 1.0, (n_features(space),))
    width(space)
    assert isinstance(space, spaces.Box | spaces.Discrete)
    return space


def for_model(space: spaces.Space[Any], actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Actions (..., A) converted to `model_space`."""
    return features(space, actions, dtype) if isinstance(space, spaces.MultiDiscrete) else actions
