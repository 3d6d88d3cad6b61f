"""Replay of the transitions of a level on the device of its environments."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.randomness import generator_state, restore_generator
from layeredrl.storage.replay import Replay
from layeredrl.storage.tensor_ring import TensorRing

_STATE_KEYS = {"ring", "n_envs", "layout", "episode", "together", "generator", "device"}
_BLOCKS = {"floats": torch.float32, "integers": torch.int32}
"""Columns are stored in two blocks, so that a row is added and read in two operations."""
_TYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
)


class TensorReplay:
    """Transitions of vectorised environments in one ring of tensors, in the order of time; `Replay` without copies.

    Rows that are added together are those of as many environments. Adding and sampling are a fixed number of
    operations, whatever the number of environments, and a GPU never waits for one.

    Args:
        size: Largest number of transitions of all environments together; new ones overwrite the oldest.
        n_envs: Number of environments E.
        device: Device of the transitions.
        seed: Seed of the sampling.
    """

    def __init__(self, size: int, n_envs: int, *, device: torch.device, seed: int = 0) -> None:
        if size < n_envs:
            raise ValueError(f"size is {size}, expected at least one transition for each of {n_envs} environments")
        self.n_envs, self.device = n_envs, device
        self.ring = TensorRing(size // n_envs * n_envs, device)
        self._episode = torch.zeros(n_envs, dtype=torch.int64, device=device)
        self._layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}  # type and shape of the columns
        self._together = True  # each `add` had all environments: rows of one are E apart
        self._generator = torch.Generator(device).manual_seed(seed)

    @classmethod
    def like(cls, replay: "Replay | TensorReplay", device: torch.device) -> "TensorReplay":
        """A replay with the settings of an empty one in the memory of the host; one on a device is returned itself."""
        if isinstance(replay, TensorReplay):
            return replay
        if len(replay):
            raise ValueError(f"the replay in the memory of the host has {len(replay)} transitions, expected none")
        return cls(replay.size, replay.n_envs, device=device, seed=replay.seed)

    def __len__(self) -> int:
        return len(self.ring)

    @property
    def n_added(self) -> int:
        """Number of transitions that were ever stored."""
        return self.ring.n_added

    def add(self, transitions: Batch, env_ids: Tensor) -> None:
        """Store one transition for each of some environments.

        Args:
            transitions: Tensors with the keys of `Replay.add`, the environment first. Floats are stored as float32,
                integers as int32.
            env_ids: Indices of their environments (n,), in ascending order.
        """
        columns = _columns(transitions, "")
        columns["episode"] = self._episode if len(env_ids) == self.n_envs else self._episode[env_ids]
        if not self._layout:
            for name, x in columns.items():
                if x.dtype not in _TYPES:
                    raise TypeError(f"{name} has dtype {x.dtype}, expected one of {', '.join(map(str, _TYPES))}")
            self._layout = {name: (x.dtype, tuple(x.shape[1:])) for name, x in columns.items()}
        if columns.keys() != self._layout.keys():
            raise ValueError(f"transitions have {', '.join(columns)}, expected {', '.join(self._layout)}")
        n = len(env_ids)
        places = self.ring.reserve(n)
        if places is None:
            widths = {block: sum(math.prod(self._layout[name][1]) for name in self._in(block)) for block in _BLOCKS}
            places = {block: self._episode.new_zeros(n, widths[block], dtype=_BLOCKS[block]) for block in _BLOCKS}
            self._write(columns, places)
            self.ring.add(places)
        else:
            self._write(columns, places)
        done = transitions.terminated | transitions.truncated
        if len(env_ids) == self.n_envs:
            self._episode = self._episode + done
        else:
            self._episode = self._episode.index_add(0, env_ids, done.long())
            self._together = False

    def _write(self, columns: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
        """Write columns into rows of the blocks (n, W)."""
        starts = dict.fromkeys(_BLOCKS, 0)
        for name, (dtype, shape) in self._layout.items():
            block = "floats" if dtype.is_floating_point else "integers"
            start, stop = starts[block], starts[block] + math.prod(shape)
            starts[block] = stop
            places[block][:, start:stop] = columns[name].reshape(-1, stop - start)

    def truncate(self, over: Tensor) -> None:
        """End the running episodes of some environments, a mask (E,), after their newest transition."""
        self._episode = self._episode + over

    def sample(self, n: int) -> tuple[Batch, Tensor]:
        """Draw n transitions uniformly, with replacement.

        Returns:
            The transitions, floats as float32 and other types as they were added, and their indices (n,).
        """
        index = self.sample_indices(n)
        return self.rows(index), index

    def sample_indices(self, n: int) -> Tensor:
        """Draw the indices (n,) of transitions as `sample` does."""
        return self.ring.draw(n, len(self.ring), self._generator)

    def newest(self, n: int, share: float) -> Tensor:
        """Draw the indices (n,) of transitions uniformly among the newest share, in (0, 1]."""
        n_rounds = max(1, round(share * len(self.ring) / self.n_envs))
        return self.ring.draw(n, min(n_rounds * self.n_envs, len(self.ring)), self._generator)

    def rows(self, index: Tensor) -> Batch:
        """Return the transitions at indices of any shape."""
        nested: dict[str, Any] = {}
        for name, values in self._unpacked(self.ring.at(index)).items():
            *keys, last = name.split(".")
            reduce(lambda part, key: part.setdefault(key, {}), keys, nested)[last] = values
        return Batch(nested)

    def _in(self, block: str) -> list[str]:
        """Names of the columns in a block."""
        return [name for name, (dtype, _) in self._layout.items() if dtype.is_floating_point == (block == "floats")]

    def _unpacked(self, blocks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Columns by name, from rows of the blocks (..., W)."""
        found: dict[str, Tensor] = {}
        for block, rows in blocks.items():
            names = self._in(block)
            shapes = [self._layout[name][1] for name in names]
            parts = torch.split(rows, [math.prod(shape) for shape in shapes], -1)
            for name, shape, part in zip(names, shapes, parts, strict=True):
                values = part.reshape(*part.shape[:-1], *shape)
                found[name] = values if block == "floats" else values.to(self._layout[name][0])
        return {name: found[name] for name in self._layout}

    def column(self, name: str, index: Tensor | None = None) -> Any:
        """Return one key of the transitions at some indices, by default of all in the order of time; see `Replay`."""
        return self.columns((name,), self.indices() if index is None else index)[0]

    def columns(self, names: Sequence[str], index: Tensor) -> list[Any]:
        """Return some keys of the transitions at indices of any shape; see `Replay`."""
        rows = self.rows(index)
        return [reduce(getitem, name.split("."), rows) for name in names]

    def all(self) -> Batch:
        """Return all transitions, in the order of time."""
        if not len(self):
            raise ValueError("the replay is empty, expected at least one transition")
        return self.rows(self.indices())

    def indices(self) -> Tensor:
        """Indices of all transitions, in the order of time."""
        return self.ring.places(len(self.ring))

    def follows(self, index: Tensor, steps: Tensor) -> Tensor:
        """Return True where the transition `steps` later, or earlier, is stored and in the same episode.

        Args:
            index: Indices of transitions; the result has their shape.
            steps: Number of transitions of the same environment, negative for earlier ones; as `index` or a number.
        """
        self._require_together()
        age = (self.ring.n_added - 1 - index) % self.ring.size
        there = age - steps * self.n_envs
        stored = (there >= 0) & (there < len(self.ring))
        episode = self.ring.column("integers")[:, -1]  # it was added last
        return stored & (episode[self.later(index, steps)] == episode[index])

    def steps_left(self, index: Tensor, most: int) -> Tensor:
        """Return the number of later transitions of the same episode for each index (n,), counted up to `most`."""
        steps = torch.arange(1, most + 1, device=index.device)
        return self.follows(index[:, None], steps).sum(1)

    def later(self, index: Tensor, steps: Tensor) -> Tensor:
        """Return the indices of the transitions `steps` later, which `follows` says are there."""
        self._require_together()
        return (index + steps * self.n_envs) % self.ring.size

    def _require_together(self) -> None:
        if not self._together:
            raise ValueError(
                "transitions were added for some environments alone, expected all at once, as those of actions that "
                "last for one step: the order of the others is not kept on a device"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return a state for `Checkpoints.save`, with only the transitions that the last checkpoint lacks."""
        return {
            "ring": self.ring.state_dict(),
            "n_envs": self.n_envs,
            "layout": [(name, str(dtype), shape) for name, (dtype, shape) in self._layout.items()],
            "episode": self._episode.clone(),
            "together": self._together,
            **generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `Checkpoints.load` for `state_dict`.

        Raises:
            ValueError: It is the state of another kind of replay, or of another number of environments.
        """
        if state.keys() != _STATE_KEYS:
            raise ValueError(
                "the state is that of a replay in the memory of the host, expected one on a device: a run goes on "
                "where its environments live"
            )
        if state["n_envs"] != self.n_envs:
            raise ValueError(f"the replay's state is of {state['n_envs']} environments, expected {self.n_envs}")
        self.ring.load_state_dict(state["ring"])
        types = {str(dtype): dtype for dtype in _TYPES}
        self._layout = {name: (types[dtype], tuple(shape)) for name, dtype, shape in state["layout"]}
        self._episode = state["episode"].to(self.device)
        self._together = bool(state["together"])
        restore_generator(self._generator, state)


def _columns(batch: Batch, prefix: str) -> dict[str, Tensor]:
    """Tensors by name, nested ones with dots between the keys."""
    found: dict[str, Tensor] = {}
    for key, value in batch.items():
        found |= _columns(value, f"{prefix}{key}.") if isinstance(value, Batch) else {prefix + key: value}
    return found
