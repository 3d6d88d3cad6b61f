"""Checks of what a caller gives to a vector environment: seeds, a mask of resets, actions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import iterate


def seeds_for(n_envs: int, seed: int | Sequence[int | None] | None) -> list[int | None]:
    """Return a seed for each environment; one number is that of the first, from which they count upwards."""
    if seed is None:
        return [None] * n_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(n_envs)]
    if len(seed) != n_envs:
        raise ValueError(f"there are {len(seed)} seeds, expected {n_envs}")
    return [None if s is None else int(s) for s in seed]


def masked(n_envs: int, options: Mapping[str, Any]) -> list[int]:
    """Return the indices of the environments that `reset_mask` of a reset's options selects."""
    mask = options["reset_mask"]
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] is {mask!r}, expected an array of booleans")
    if mask.shape != (n_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask'] is {mask}, expected shape ({n_envs},) and at least one True")
    return [int(i) for i in np.flatnonzero(mask)]


def split(space: gym.Space[Any], n_envs: int, actions: Any) -> Iterable[Any]:
    """Return the action of each environment from an element of the batched action space."""
    shape = space.shape
    if shape is None:
        parts = list(iterate(space, actions))
        if len(parts) != n_envs:
            raise ValueError(f"there are {len(parts)} actions, expected {n_envs}")
        return parts
    array = np.asarray(actions)
    if array.shape != shape:
        raise ValueError(f"actions have shape {array.shape}, expected {shape}")
    return array
