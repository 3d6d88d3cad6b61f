"""Replay of the transitions of a level on the device of its environments."""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.randomness import generator_state, restore_generator
from layeredrl.storage.replay import Replay
from layeredrl.storage.tensor_ring import TensorRing

_STATE_KEYS = {"ring", "n_envs", "layout", "episode", "newest", "marked", "generator", "device"}
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

    Attributes:
        marked: Numbers of the stored transitions that `truncate` has marked, counted from the first one ever added.
        n_loads: Number of states that were loaded; each replaces all transitions.
    """

    def __init__(self, size: int, n_envs: int, *, device: torch.device, seed: int = 0) -> None:
        if size < n_envs:
            raise ValueError(f"size is {size}, expected at least one transition for each of {n_envs} environments")
        self.n_envs, self.device = n_envs, device
        self.ring = TensorRing(size // n_envs * n_envs, device)
        self._episode = torch.zeros(n_envs, dtype=torch.int64, device=device)
        self._layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}  # type and shape of the columns
        self._spans: dict[str, tuple[str, int, int]] = {}  # block, start and stop of the columns
        # Numbers of the newest transitions, (E,); None while each `add` had all environments: rows of one are E apart.
        self._newest: Tensor | None = None
        self.marked: list[int] = []
        self.n_loads = 0
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
        n, everywhere = len(env_ids), len(env_ids) == self.n_envs
        columns["episode"] = self._episode if everywhere else self._episode[env_ids]
        if not self._layout:
            for name, x in columns.items():
                if x.dtype not in _TYPES:
                    raise TypeError(f"{name} has dtype {x.dtype}, expected one of {', '.join(map(str, _TYPES))}")
            self._set_layout({name: (x.dtype, tuple(x.shape[1:])) for name, x in columns.items()})
        if columns.keys() != self._layout.keys():
            raise ValueError(f"transitions have {', '.join(columns)}, expected {', '.join(self._layout)}")
        if not everywhere:
            self._newest = self._numbers_of_newest()
        places = self.ring.reserve(n)
        if places is None:
            widths = {block: stop for block, _, stop in self._spans.values()}  # of the last column of each block
            places = {
                block: self._episode.new_zeros(n, widths.get(block, 0), dtype=dtype) for block, dtype in _BLOCKS.items()
            }
            self._write(columns, places)
            self.ring.add(places)
        else:
            self._write(columns, places)
        done = transitions.terminated | transitions.truncated
        if everywhere:
            self._episode = self._episode + done
        else:
            self._episode = self._episode.index_add(0, env_ids, done.long())
        if self._newest is not None:
            numbers = torch.arange(self.n_added - n, self.n_added, device=self.device)
            self._newest = self._newest.index_copy(0, env_ids, numbers)

    def _set_layout(self, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """Set type and shape of the columns, which lie in the blocks in this order."""
        self._layout, self._spans, widths = dict(layout), {}, dict.fromkeys(_BLOCKS, 0)
        for name, (dtype, shape) in layout.items():
            block = "floats" if dtype.is_floating_point else "integers"
            start, widths[block] = widths[block], widths[block] + math.prod(shape)
            self._spans[name] = block, start, widths[block]

    def _write(self, columns: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
        """Write columns into rows of the blocks (n, W)."""
        for name, (block, start, stop) in self._spans.items():
            places[block][:, start:stop] = columns[name].reshape(-1, stop - start)

    def truncate(self, over: Tensor) -> None:
        """End the running episodes of some environments, a mask (E,), after their newest transition.

        It is marked as truncated, unless it is done or not stored. The host waits for a GPU, once.
        """
        self._episode = self._episode + over
        if not len(self):
            return
        newest, oldest = self._numbers_of_newest(), self.n_added - len(self)
        places = newest % self.ring.size
        terminated, truncated = self.columns(("terminated", "truncated"), places)
        marked = over & (newest >= oldest) & ~(terminated | truncated)
        # Added, not written: the place of a transition that is not stored any more is that of another one.
        self._flags().index_add_(0, places, marked.int())
        numbers = torch.where(marked, newest, -1).tolist()
        self.marked = [number for number in (*self.marked, *numbers) if number >= oldest]

    def _numbers_of_newest(self) -> Tensor:
        """Numbers (E,) of the newest transitions, counted from the first one ever added; negative for none."""
        if self._newest is not None:
            return self._newest
        return torch.arange(self.n_added - self.n_envs, self.n_added, device=self.device)

    def _flags(self) -> Tensor:
        """Column `truncated` of all places, to be written."""
        block, start, _ = self._spans["truncated"]
        return self.ring.column(block)[:, start]

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
        return _nested(self._read(self._layout, index))

    def column(self, name: str, index: Tensor | None = None) -> Any:
        """Return one key of the transitions at some indices, by default of all in the order of time; see `Replay`."""
        return self.columns((name,), self.indices() if index is None else index)[0]

    def columns(self, names: Sequence[str], index: Tensor) -> list[Any]:
        """Return some keys of the transitions at indices of any shape; see `Replay`."""
        asked = [x for x in self._layout if any(x == name or x.startswith(f"{name}.") for name in names)]
        rows = _nested(self._read(asked, index))
        return [reduce(getitem, name.split("."), rows) for name in names]

    def _read(self, names: Collection[str], index: Tensor) -> dict[str, Tensor]:
        """Columns by name; each block is read once, from the first to the last of its columns among them."""
        parts: dict[str, tuple[int, Tensor]] = {}
        for block in _BLOCKS:
            spans = [self._spans[name][1:] for name in names if self._spans[name][0] == block]
            if spans:
                first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
                parts[block] = first, self.ring.column(block)[:, first:last][index]
        found: dict[str, Tensor] = {}
        for name in names:
            (dtype, shape), (block, start, stop) = self._layout[name], self._spans[name]
            first, rows = parts[block]
            values = rows[..., start - first : stop - first].reshape(*rows.shape[:-1], *shape)
            found[name] = values if dtype.is_floating_point else values.to(dtype)
        return found

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
        if self._newest is not None:
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
            "newest": self._newest,  # never written in place
            "marked": list(self.marked),  # possibly after they were saved
            **generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `Checkpoints.load` for `state_dict`.

        Raises:
            ValueError: It is the state of another kind of replay, or of another number of environments.
        """
        if "ring" not in state:
            raise ValueError(
                "the state is that of a replay in the memory of the host, expected one on a device: a run goes on "
                "where its environments live"
            )
        if state.keys() != _STATE_KEYS:
            found, expected = (", ".join(sorted(keys)) for keys in (state, _STATE_KEYS))
            raise ValueError(f"the replay's state has the keys {found}, expected {expected}")
        if state["n_envs"] != self.n_envs:
            raise ValueError(f"the replay's state is of {state['n_envs']} environments, expected {self.n_envs}")
        self.n_loads += 1
        self.ring.load_state_dict(state["ring"])
        types = {str(dtype): dtype for dtype in _TYPES}
        self._set_layout({name: (types[dtype], tuple(shape)) for name, dtype, shape in state["layout"]})
        self._episode = state["episode"].to(self.device)
        self._newest = None if state["newest"] is None else state["newest"].to(self.device)
        self.marked = [number for number in state["marked"] if number >= self.n_added - len(self)]
        if self.marked:
            self._flags()[torch.tensor(self.marked, device=self.device) % self.ring.size] = 1
        restore_generator(self._generator, state)


def _nested(columns: Mapping[str, Tensor]) -> Batch:
    """Columns in a Batch, in parts of it where their names have dots."""
    nested: dict[str, Any] = {}
    for name, values in columns.items():
        *keys, last = name.split(".")
        reduce(lambda part, key: part.setdefault(key, {}), keys, nested)[last] = values
    return Batch(nested)


def _columns(batch: Batch, prefix: str) -> dict[str, Tensor]:
    """Tensors by name, nested ones with dots between the keys."""
    found: dict[str, Tensor] = {}
    for key, value in batch.items():
        found |= _columns(value, f"{prefix}{key}.") if isinstance(value, Batch) else {prefix + key: value}
    return found
