"""Replay buffer of tianshou, extended by numbers of rows, ends of their episodes and a state to save."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tianshou.data import Batch, ReplayBuffer, ReplayBufferManager, VectorReplayBuffer
from tianshou.data.batch import alloc_by_keys_diff, create_value


class Counters:
    """Counters of all rings, one array (E,) each, so that adding rows takes no loop over rings.

    Args:
        n_rings: Number of rings E.
        size: Number of rows that each of them keeps.
    """

    def __init__(self, n_rings: int, size: int) -> None:
        self.n_added, self.size, self.insertion, self.newest = (np.zeros(n_rings, np.int64) for _ in range(4))
        self.length, self.start = (np.zeros(n_rings, np.int64) for _ in range(2))  # of the running episodes
        self.episode_return = np.zeros(n_rings)
        self.last = np.full((n_rings, size), -1)


def _counter(name: str, kind: type[int] | type[float] = int) -> Any:
    """Return a property of `Ring` that lives in `Counters`."""

    def get(ring: "Ring") -> Any:
        return kind(getattr(ring.counters, name)[ring.i])

    def put(ring: "Ring", value: Any) -> None:
        getattr(ring.counters, name)[ring.i] = value

    return property(get, put)


class Ring(ReplayBuffer):
    """A `ReplayBuffer` that numbers all rows ever added and knows the last row of each row's episode.

    Args:
        size: Number of rows kept.
        seed: Seed of the sampling.
        counters: Counters of all rings; `last` has the numbers of these last rows, -1 while the episode continues.
        i: Index of this ring.
    """

    n_added = _counter("n_added")
    _size = _counter("size")
    _insertion_idx = _counter("insertion")
    _ep_len = _counter("length")
    _ep_start_idx = _counter("start")
    _ep_return = _counter("episode_return", float)

    def __init__(self, size: int, seed: int, counters: Counters, i: int) -> None:
        self.counters, self.i = counters, i  # before tianshou sets the properties
        super().__init__(size, random_seed=seed)

    @property
    def last_index(self) -> NDArray[np.int64]:
        """Index of the newest row, (1,)."""
        return self.counters.newest[self.i : self.i + 1]

    @last_index.setter
    def last_index(self, value: NDArray[np.int64]) -> None:
        self.counters.newest[self.i] = value[0]

    def close(self, length: int) -> None:
        """Record the newest row as the last one of an episode of `length` rows."""
        rows = np.arange(self.n_added - min(length, self.maxsize), self.n_added)
        self.counters.last[self.i, rows % self.maxsize] = self.n_added - 1

    def finish_episode(self) -> None:
        """End the episode, as tianshou does after a row that is done; the next transition begins another."""
        self.close(self._ep_len)
        self._ep_return, self._ep_len, self._ep_start_idx = 0.0, 0, self._insertion_idx

    def find_ends(self, done: NDArray[np.bool_]) -> None:
        """Set the last rows of all episodes from the flags `done` (size,) of the rows."""
        numbers = np.arange(self.n_added - len(self), self.n_added)
        ends = np.where(done[numbers % self.maxsize], numbers, np.iinfo(np.int64).max)
        ends = np.minimum.accumulate(ends[::-1])[::-1]
        self.counters.last[self.i, numbers % self.maxsize] = np.where(ends < self.n_added, ends, -1)

    def restore(self, n_added: int, episode: tuple[float, int, int]) -> None:
        """Restore the counters that belong to saved rows."""
        self.n_added = n_added
        self._size, self._insertion_idx = min(n_added, self.maxsize), n_added % self.maxsize
        self.last_index = np.array([(n_added - 1) % self.maxsize if n_added else 0])
        self._ep_return, self._ep_len, self._ep_start_idx = episode

    @property
    def episode(self) -> tuple[float, int, int]:
        """Return, length and first index of the running episode."""
        return self._ep_return, self._ep_len, self._ep_start_idx


class Rings(VectorReplayBuffer):
    """A `VectorReplayBuffer` with a seed for each ring: with tianshou's shared seed the rings' samples correlate."""

    def __init__(self, size: int, n_envs: int, seed: int) -> None:
        seeds = np.random.SeedSequence(seed).generate_state(n_envs)
        self.counters = Counters(n_envs, size // n_envs)
        self.rings = [Ring(size // n_envs, int(s), self.counters, i) for i, s in enumerate(seeds)]
        ReplayBufferManager.__init__(self, cast(list[ReplayBuffer], self.rings))
        self._lengths = self.counters.size

    def _compile(self) -> None:
        """Skip compilation, which takes seconds: functions that are called compile themselves."""

    def add(self, batch: Any, buffer_ids: Any = None) -> Any:
        """Add one row to each of some rings, for which tianshou takes a loop over them.

        Args:
            batch: Rows (n,).
            buffer_ids: Indices of the rings (n,), in ascending order; by default of all.

        Returns:
            Indices of the rows, returns and lengths of the episodes, 0 unless they end, and indices of their first
            rows, (n,) each.
        """
        rows = Batch()
        for key in set(self._reserved_keys).intersection(batch.get_keys()):
            rows.__dict__[key] = batch[key]
        done = rows.__dict__["done"] = np.logical_or(batch.terminated, batch.truncated)
        counters, (n_rings, size) = self.counters, self.counters.last.shape
        everywhere = buffer_ids is None or len(buffer_ids) == n_rings
        ids = np.arange(n_rings) if everywhere else np.asarray(buffer_ids)
        some: Any = slice(None) if everywhere else ids  # a slice is faster
        slots = counters.insertion[some].copy()
        counters.newest[some], counters.insertion[some] = slots, (slots + 1) % size
        counters.size[some] = np.minimum(counters.size[some] + 1, size)
        counters.last[ids, slots] = -1
        counters.n_added[some] += 1
        counters.episode_return[some] += batch.rew
        counters.length[some] += 1
        returns, lengths = counters.episode_return[some] * done, counters.length[some] * done
        starts = counters.start[some] + self._offset[some]
        for i in ids[done] if done.any() else ():
            self.rings[i].finish_episode()
        indices = slots + self._offset[some]
        self.last_index[some] = indices
        try:
            self._meta[indices] = rows
        except ValueError:  # the first rows, or rows with a new key
            if not self._meta.get_keys():
                self._meta = cast(Any, create_value(rows, self.maxsize, stack=False))
            else:
                alloc_by_keys_diff(self._meta, rows, self.maxsize, False)
            self._set_batch_for_children()
            self._meta[indices] = rows
        return indices, returns, lengths, starts

    def slots(self, start: Iterable[int], stop: Iterable[int]) -> NDArray[np.int64]:
        """Return the indices of rows by their numbers since the beginning of the run, environment by environment."""
        bounds = zip(self._offset, self.rings, start, stop, strict=True)
        return np.concatenate([offset + np.arange(a, b) % ring.maxsize for offset, ring, a, b in bounds])

    def steps_left(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of rows that follow each row in its episode, (n,)."""
        size = self.counters.last.shape[1]
        n_added = self.counters.n_added[indices // size]
        number = n_added - 1 - (n_added - 1 - indices) % size
        last = self.counters.last.reshape(-1)[indices]
        return np.where(last < 0, n_added - 1, last) - number

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that hold the rows, those of nested keys under names such as `info.duration`."""
        return _columns(cast(Batch, self._meta), "")

    def restore(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays of the rows, after the rings."""
        self.last_index = self._offset + self.counters.newest
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
