"""Replay buffer of tianshou, extended by numbers of rows, ends of their episodes and a state to save."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tianshou.data import Batch, ReplayBuffer, ReplayBufferManager, VectorReplayBuffer


class Ring(ReplayBuffer):
    """A `ReplayBuffer` that numbers all rows ever added and knows the last row of each row's episode.

    Args:
        size: Number of rows kept.
        seed: Seed of the sampling.
        last: Array for the numbers of these last rows, (size,); -1 while the episode continues.
    """

    def __init__(self, size: int, seed: int, last: NDArray[np.int64]) -> None:
        super().__init__(size, random_seed=seed)
        self.n_added = 0
        self.last = last

    def _update_state_pre_add(self, rew: float | NDArray[Any], done: bool) -> tuple[int, float, int, int]:
        length = self._ep_len + 1
        result = super()._update_state_pre_add(rew, done)
        self.last[self.n_added % self.maxsize] = -1
        self.n_added += 1
        if done:
            self._close(length)
        return result

    def _close(self, length: int) -> None:
        """Record the newest row as the last one of an episode of `length` rows."""
        rows = np.arange(self.n_added - min(length, self.maxsize), self.n_added)
        self.last[rows % self.maxsize] = self.n_added - 1

    def finish_episode(self) -> None:
        """End the episode, as tianshou does after a row that is done; the next transition begins another."""
        self._close(self._ep_len)
        self._ep_return, self._ep_len, self._ep_start_idx = 0.0, 0, self._insertion_idx

    def find_ends(self, done: NDArray[np.bool_]) -> None:
        """Set the last rows of all episodes from the flags `done` (size,) of the rows."""
        numbers = np.arange(self.n_added - len(self), self.n_added)
        ends = np.where(done[numbers % self.maxsize], numbers, np.iinfo(np.int64).max)
        ends = np.minimum.accumulate(ends[::-1])[::-1]
        self.last[numbers % self.maxsize] = np.where(ends < self.n_added, ends, -1)

    def restore(self, n_added: int, episode: tuple[float, int, int]) -> None:
        """Restore the counters that belong to saved rows."""
        self.n_added = n_added
        self._size, self._insertion_idx = min(n_added, self.maxsize), n_added % self.maxsize
        self.last_index = np.array([(n_added - 1) % self.maxsize if n_added else 0])
        self._ep_return, self._ep_len, self._ep_start_idx = episode

    @property
    def episode(self) -> tuple[float, int, int]:
        """Return, length and first index of the running episode."""
        return float(self._ep_return), self._ep_len, self._ep_start_idx


class Rings(VectorReplayBuffer):
    """A `VectorReplayBuffer` with a seed for each ring: with tianshou's shared seed the rings' samples correlate."""

    def __init__(self, size: int, n_envs: int, seed: int) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(n_envs)
        self.last = np.full((n_envs, size // n_envs), -1)
        self.rings = [Ring(size // n_envs, int(s), last) for s, last in zip(seeds, self.last, strict=True)]
        ReplayBufferManager.__init__(self, cast(list[ReplayBuffer], self.rings))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for ring, last in zip(self.rings, self.last, strict=True):
            ring.last = last  # otherwise each ring of a copy has an array of its own

    def _compile(self) -> None:
        """Skip compilation, which takes seconds: functions that are called compile themselves."""

    def slots(self, start: Iterable[int], stop: Iterable[int]) -> NDArray[np.int64]:
        """Return the indices of rows by their numbers since the beginning of the run, environment by environment."""
        bounds = zip(self._offset, self.rings, start, stop, strict=True)
        return np.concatenate([offset + np.arange(a, b) % ring.maxsize for offset, ring, a, b in bounds])

    def steps_left(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of rows that follow each row in its episode, (n,)."""
        size = self.last.shape[1]
        n_added = np.array([ring.n_added for ring in self.rings])[indices // size]
        number = n_added - 1 - (n_added - 1 - indices) % size
        last = self.last.reshape(-1)[indices]
        return np.where(last < 0, n_added - 1, last) - number

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that hold the rows, those of nested keys under names such as `info.duration`."""
        return _columns(cast(Batch, self._meta), "")

    def restore(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays of the rows, after the rings."""
        self._lengths = np.array([len(ring) for ring in self.rings])
        self.last_index = self._offset + np.array([ring.last_index[0] for ring in self.rings])
        nested: dict[str, Any] = {}
        for name, column in columns.items():
            *keys, last = name.split(".")
            part = nested
            for key in keys:
                part = part.setdefault(key, {})
            part[last] = column
        self._meta = Batch(nested)
        if columns:
            self._set_batch_for_children()
            for ring, done in zip(self.rings, np.split(columns["done"], len(self.rings)), strict=True):
                ring.find_ends(done)
        else:
            for ring in self.rings:
                ring._meta = Batch()

    @property
    def generators(self) -> list[np.random.RandomState]:
        """Generators that sampling draws from."""
        return [self._random_state, *[ring._random_state for ring in self.rings]]


def _columns(batch: Batch, prefix: str) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for key, value in batch.items():
        name = prefix + key
        if "." in key:
            raise ValueError(f"transitions have a key {name!r}, expected none with a dot")
        if isinstance(value, Batch):
            found |= _columns(value, name + ".")
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[name] = value
        else:
            kind = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else f"type {type(value).__name__}"
            raise TypeError(f"{name} of the transitions has {kind}, expected arrays of numbers")
    return found
