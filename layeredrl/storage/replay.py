"""Replay of the transitions of a level."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_finite_rows
from layeredrl.randomness import require_twister
from layeredrl.storage.rings import Rings
from layeredrl.storage.segments import Increment

_STATE_KEYS = {"rows", "ring_size", "truncated", "episodes", "generators"}

_DTYPES = {
    **dict.fromkeys(("obs", "act", "obs_next"), None),
    "rew": "float64",
    **dict.fromkeys(("terminated", "truncated", "done"), "bool"),
}
"""Dtypes of the columns that every replay has; None where any dtype is allowed."""


class Replay:
    """Transitions of vectorised environments in tianshou's `VectorReplayBuffer`, one ring for each environment.

    Args:
        size: Largest number of transitions of all environments together; an environment's newest transitions
            overwrite its oldest.
        n_envs: Number of environments.
        seed: Seed of the sampling.
    """

    def __init__(self, size: int, n_envs: int, *, seed: int = 0) -> None:
        if size < n_envs:
            raise ValueError(f"size is {size}, expected at least one transition for each of {n_envs} environments")
        self.size, self.n_envs, self.seed = size, n_envs, seed
        self.buffer = Rings(size, n_envs, seed)
        self._saved = [0] * n_envs  # number of transitions in checkpoints, by environment
        self._saved_layout: object = None
        self._truncated: list[list[int]] = [[] for _ in range(n_envs)]  # by `truncate`, possibly after they were saved

    def __len__(self) -> int:
        return len(self.buffer)

    def add(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        """Store one transition for each of some environments.

        Args:
            transitions: Keys `obs`, `act`, `rew`, `terminated`, `truncated`, `obs_next`, and `info` for all else, the
                environment first. Floats are stored as float32, rewards as float64.
            env_ids: Indices of their environments (n,), in ascending order.

        Raises:
            ValueError: A number is not finite, or not finite in the precision in which it is stored.
        """
        floats = {k: transitions[k] for k in ("obs", "act", "obs_next") if transitions[k].dtype == np.float64}
        with np.errstate(over="ignore"):  # infinities are found below
            converted = {key: values.astype(np.float32) for key, values in floats.items()}
            if transitions.rew.dtype != np.float64:  # tianshou sums the episode's return in this dtype
                converted["rew"] = transitions.rew.astype(np.float64)
        for key in ("obs", "act", "rew", "obs_next"):
            stored = converted.get(key, transitions[key])
            name = f"{key} as {stored.dtype}" if key in converted else key
            require_finite_rows(name, stored, env_ids)
        if converted:
            transitions = Batch({**transitions, **converted})
        self.buffer.add(transitions, buffer_ids=env_ids)

    def truncate(self, env_ids: Iterable[int]) -> None:
        """Mark the newest transition of some environments as truncated, unless it is done or there is none."""
        for i in env_ids:
            ring, newest = self.buffer.rings[i], self.buffer.last_index[i]
            if len(ring) and not self.buffer.done[newest]:
                self.buffer.truncated[newest] = self.buffer.done[newest] = True
                ring.finish_episode()
                self._truncated[i].append(ring.n_added - 1)

    def all(self) -> Batch:
        """Return all transitions, environment by environment, each in the order of time."""
        if not len(self):
            raise ValueError("the replay is empty, expected at least one transition")
        return cast(Batch, self.buffer[self.buffer.sample_indices(0)])

    def indices(self) -> NDArray[np.int64]:
        """Indices of all transitions, in the order of `all`."""
        return cast(NDArray[np.int64], self.buffer.sample_indices(0))

    @property
    def n_added(self) -> int:
        """Number of transitions that were ever stored."""
        return int(self.buffer.counters.n_added.sum())

    def sample(self, n: int) -> tuple[Batch, NDArray[np.int64]]:
        """Draw n transitions uniformly, with replacement, in random order.

        Returns:
            The transitions, as they were added, and their indices (n,).
        """
        indices = self.sample_indices(n)
        return self.rows(indices), indices

    def sample_indices(self, n: int) -> NDArray[np.int64]:
        """Draw the indices (n,) of transitions as `sample` does."""
        # tianshou draws ring by ring: parts of the sample, as batches of several updates, would mix few environments.
        return self.buffer.generators[0].permutation(self.buffer.sample_indices(n))

    def sequences(self, n: int, length: int) -> tuple[Batch, NDArray[np.bool_]]:
        """Draw n sequences of transitions that follow each other, each within an episode, with replacement.

        Every transition is equally likely to be the first. Where an episode, or what is stored of it, has fewer than
        `length` from there on, its last one is repeated.

        Args:
            n: Number of sequences.
            length: Number of transitions L.

        Returns:
            The transitions, of shape (L, n, ...), and where they are no repetitions, (L, n).
        """
        first = self.sample_indices(n)
        left, steps = self.steps_left(first), np.arange(length)[:, None]
        return self.rows(self.later(first, np.minimum(steps, left))), steps <= left

    def rows(self, indices: NDArray[np.int64]) -> Batch:
        """Return the transitions at some indices (n,), or of any other shape."""
        return cast(Batch, self.buffer._meta[indices])

    def newest(self, n: int, share: float) -> NDArray[np.int64]:
        """Draw the indices (n,) of transitions uniformly among the newest share, in (0, 1], of each environment's."""
        counters, size = self.buffer.counters, self.buffer.rings[0].maxsize
        lengths = np.where(counters.size, np.maximum(1, np.round(share * counters.size)), 0).astype(np.int64)
        ring = self.buffer.generators[0].choice(len(lengths), n, p=lengths / lengths.sum())
        age = (self.buffer.generators[0].random_sample(n) * lengths[ring]).astype(np.int64)
        newest = counters.n_added[ring] - 1
        indices: NDArray[np.int64] = ring * size + (newest - age) % size
        return indices

    def column(self, name: str, indices: NDArray[np.int64] | None = None) -> Any:
        """Return one key of the transitions at some indices, by default of `all`: an array, or a Batch of arrays.

        Args:
            name: The key; of nested ones with dots between them, such as `info.duration`.
            indices: Indices of any shape.
        """
        column: Any = reduce(getitem, name.split("."), self.buffer._meta)
        return column[self.buffer.sample_indices(0) if indices is None else indices]

    def columns(self, names: Sequence[str], indices: NDArray[np.int64]) -> list[Any]:
        """Return some keys of the transitions at indices of any shape, as `column` does."""
        return [self.column(name, indices) for name in names]

    def steps_left(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of later transitions of the same episode for each index, (n,)."""
        return self.buffer.steps_left(indices)

    def follows(self, indices: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return True where the transition `steps` later, at least 0, is stored and in the same episode."""
        result: NDArray[np.bool_] = steps <= self.steps_left(indices)
        return result

    def later(self, indices: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices (n,) of the transitions `steps` (n,) later, which are at most `steps_left`."""
        size = self.buffer.rings[0].maxsize
        return indices // size * size + (indices % size + steps) % size

    def state_dict(self) -> dict[str, Any]:
        """Return a state for `Checkpoints.save`, with only the transitions that the last checkpoint lacks.

        Raises:
            TypeError: Transitions hold values that are not numbers.
        """
        rings = self.buffer.rings
        columns = self.buffer.columns()
        layout = _layout(columns)
        stop = [ring.n_added for ring in rings]
        keep_from = [ring.n_added - len(ring) for ring in rings]
        start = keep_from  # a new key changes all transitions: they are written again
        if layout == self._saved_layout:
            start = [max(pair) for pair in zip(self._saved, keep_from, strict=True)]
        slots = self.buffer.slots(start, stop)
        self._truncated = [[t for t in ts if t >= k] for ts, k in zip(self._truncated, keep_from, strict=True)]

        def on_saved() -> None:
            self._saved, self._saved_layout = stop, layout

        rows = {name: torch.from_numpy(column[slots]) for name, column in columns.items()}
        states = [generator.get_state(legacy=False) for generator in self.buffer.generators]
        return {
            "rows": Increment(rows, start, stop, keep_from, on_saved),
            "ring_size": rings[0].maxsize,
            "truncated": [list(numbers) for numbers in self._truncated],
            "episodes": [ring.episode for ring in rings],
            "generators": {
                "keys": torch.from_numpy(np.stack([state["state"]["key"] for state in states])),
                "rest": [(int(x["state"]["pos"]), int(x["has_gauss"]), float(x["gauss"])) for x in states],
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved replay.

        Args:
            state: The result of `Checkpoints.load` for `state_dict`.

        Raises:
            ValueError: The state is that of another kind of replay. This replay is unchanged.
        """
        self._require_fit(state)
        rings, generators = self.buffer.rings, state["generators"]
        rows, start, stop = state["rows"]["rows"], state["rows"]["start"], state["rows"]["stop"]
        slots = self.buffer.slots(start, stop)
        columns = {}
        for name, tensor in rows.items():
            values = tensor.cpu().numpy()
            columns[name] = np.zeros((self.buffer.maxsize, *values.shape[1:]), values.dtype)
            columns[name][slots] = values
        for name in ("truncated", "done") if columns else ():
            for i, ring in enumerate(rings):
                first = i * ring.maxsize
                columns[name][[first + number % ring.maxsize for number in state["truncated"][i]]] = True

        for ring, n_added, episode in zip(rings, stop, state["episodes"], strict=True):
            ring.restore(n_added, episode)
        self.buffer.restore(columns)
        for generator, key, rest in zip(
            self.buffer.generators, generators["keys"].cpu().numpy(), generators["rest"], strict=True
        ):
            generator.set_state(("MT19937", key.astype(np.uint32), *rest))
        self._truncated = [list(numbers) for numbers in state["truncated"]]
        self._saved, self._saved_layout = list(stop), _layout(columns)

    def _require_fit(self, state: Mapping[str, Any]) -> None:
        """Raise unless the state is that of a replay with the same sizes and columns."""
        if "ring" in state:
            raise ValueError(
                "the state is that of a replay on a device, expected one in the memory of the host: a run goes on "
                "where its environments live"
            )
        if state.keys() != _STATE_KEYS:
            raise ValueError(f"the replay's state has the keys {_listed(state)}, expected {_listed(_STATE_KEYS)}")
        rings, ring_size = self.buffer.rings, self.buffer.rings[0].maxsize
        rows, start, stop = state["rows"]["rows"], state["rows"]["start"], state["rows"]["stop"]
        if len(stop) != len(rings):
            raise ValueError(f"the replay's state is of {len(stop)} environments, expected {len(rings)}")
        if state["ring_size"] != ring_size:
            raise ValueError(
                f"the replay's state has room for {state['ring_size']} transitions of each environment, "
                f"expected {ring_size}"
            )
        if start != [max(0, n - ring_size) for n in stop]:
            raise ValueError(f"the replay's state holds transitions {start} to {stop}, expected the last {ring_size}")
        keys, rest = state["generators"]["keys"], state["generators"]["rest"]
        of_rings = len(state["truncated"]), len(state["episodes"]), len(rest) - 1, *keys.shape
        if of_rings != (*[len(rings)] * 3, len(rings) + 1, 624):
            raise ValueError("the replay's state has other numbers of episodes or generators than of environments")
        for i, (words, (position, has_gauss, gauss)) in enumerate(zip(keys.cpu().numpy(), rest, strict=True)):
            require_twister(f"generator {i} of the replay", words, position, has_gauss, gauss)
        for i, numbers in enumerate(state["truncated"]):
            if not all(start[i] <= number < stop[i] for number in numbers):
                raise ValueError(f"truncated of environment {i} is {numbers}, expected {start[i]} to {stop[i] - 1}")
        if sum(stop):
            self._require_rows(rows, sum(stop) - sum(start))

    def _require_rows(self, rows: Mapping[str, Tensor], n_rows: int) -> None:
        if not rows.keys() >= _DTYPES.keys():
            raise ValueError(f"the replay's state has rows of {_listed(rows)}, expected at least {_listed(_DTYPES)}")
        expected: dict[str, tuple[Any, Any]] = {name: (dtype, None) for name, dtype in _DTYPES.items()}
        if len(self):
            expected = _layout(self.buffer.columns())
            if rows.keys() != expected.keys():
                raise ValueError(f"the replay's state has rows of {_listed(rows)}, expected {_listed(expected)}")
        for name, tensor in rows.items():
            dtype, shape = expected.get(name, (None, None))
            found = tensor.numpy().dtype
            if dtype is not None and found != dtype:
                raise ValueError(f"{name} of the replay's state has dtype {found}, expected {dtype}")
            if len(tensor) != n_rows or (shape is not None and tensor.shape[1:] != shape):
                wanted = (n_rows, *shape) if shape is not None else f"({n_rows}, ...)"
                raise ValueError(f"{name} of the replay's state has shape {tuple(tensor.shape)}, expected {wanted}")


def _layout(columns: Mapping[str, NDArray[Any]]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    return {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
