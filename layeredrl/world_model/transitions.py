"""Transitions as the fit of a world model reads them: batch by batch, from a Batch or in place from a replay."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.models.normalization import CHUNK, Moments, merged
from layeredrl.storage import Replay

GROWTH = 1.125
"""Factor by which the room for rows on a device grows: all rows are then copied anew, eight times in their life."""
LEAST_BLOCK = 256
"""Smallest number of rows of an environment whose statistics are kept together."""

MomentsOf = Callable[[Batch], dict[str, Moments]]


class Transitions(Protocol):
    """Transitions that are read in batches."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Batch:
        """Transitions at indices (...): keys as of `WorldModelLearner.fit`, each (...) or (..., D)."""
        ...

    def ahead(self, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Indices (..., n) of transitions (...) and of those that follow each, and which of them do, (..., n).

        None follows the last one of an episode. Where the order of the transitions is not known, none follows any.
        """
        ...

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        """Moments of all transitions, merged from those that `of` returns for parts of them."""
        ...


class BatchTransitions:
    """The transitions of a Batch, (N, ...) by key."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch.obs)

    def take(self, index: Tensor) -> Batch:
        return Batch({key: self.batch[key][index] for key in self.batch.get_keys()})

    def ahead(self, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
        return alone(index)

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        return merged([of(self.take(index)) for index in chunks(len(self), self.batch.obs.device)])


class ReplayTransitions:
    """The transitions of a replay that lasted as long as they should, as of the last `update`, in the order of `all`.

    An action that the end of an episode cut short says nothing about its outcome, unless it ended the episode.

    On a CPU the replay's arrays are read in place. Another device has a copy, to which `update` appends what is new.
    Moments are kept for blocks of rows, and computed again only for blocks that have changed; they depend on nothing
    but the replay, so that a run that goes on from a checkpoint computes the same.

    Args:
        replay: Replay with the key `info.duration`.
        duration: Environment steps for which an action should last.
        device: Device of the transitions.
    """

    def __init__(self, replay: Replay, duration: int, device: torch.device) -> None:
        self.replay, self.duration, self.device = replay, duration, device
        self._source: object = None  # the replay's rows; another object once it has loaded a state
        self._columns: dict[str, Tensor] = {}
        self._room = 0  # rows of each environment that the columns have room for
        self._seen: list[int] = []  # transitions ever added, by environment, at the last update
        self._moments: dict[tuple[int, int], dict[str, Moments] | None] = {}

    def update(self) -> None:
        """Bring the transitions up to date with the replay."""
        rings, source = self.replay.buffer.rings, self.replay.buffer._meta
        self._size, stop = rings[0].maxsize, [ring.n_added for ring in rings]
        self._lengths = np.array([len(ring) for ring in rings])
        first = [n - length for n, length in zip(stop, self._lengths, strict=True)]
        self._oldest = np.where(self._lengths == self._size, np.array(stop) % self._size, 0)
        if source is not self._source:
            self._source, self._moments, self._room, self._seen = source, {}, 0, first
        # The newest row of the last time again: `Replay.truncate` may have marked it since.
        start = [max(seen - 1, oldest) for seen, oldest in zip(self._seen, first, strict=True)]
        self._seen = stop
        for i, (a, b) in enumerate(zip(start, stop, strict=True)):
            for block in {n % self._size // self._block for n in range(a, b)}:
                self._moments.pop((i, block), None)
        self._copy(start, first, stop)
        self._ends = np.cumsum(self._lengths)
        self._starts = self._tensor(self._ends - self._lengths)
        self._kept = self._find_kept()

    def _copy(self, start: list[int], first: list[int], stop: list[int]) -> None:
        """Take the rows of these numbers from the replay; all of them if there is no room left."""
        columns = self.replay.buffer.columns()
        names = ("obs", "obs_next", "act", "rew", "terminated", "truncated")
        if self._in_place:
            self._columns = {name: torch.from_numpy(columns[name]) for name in names}
            self._room = self._size
            return
        longest = int(self._lengths.max())
        if longest > self._room:
            self._room, start = min(self._size, int(GROWTH * longest) + 1), first
            self._columns = {}  # freed before their successors are allocated
            for name in names:
                dtype = _dtype(torch.from_numpy(columns[name][:0]))
                shape = (len(stop) * self._room, *columns[name].shape[1:])
                self._columns[name] = torch.empty(shape, dtype=dtype, device=self.device)
        here = self.replay.buffer.slots(start, stop)
        there = here // self._size * self._room + here % self._size
        for i in range(0, len(here), CHUNK):
            index = self._tensor(there[i : i + CHUNK])
            for name, column in self._columns.items():
                rows = torch.from_numpy(columns[name][here[i : i + CHUNK]]).to(column.dtype)
                column[index] = rows.to(self.device)

    @property
    def _in_place(self) -> bool:
        return self.device.type == "cpu"

    def _find_kept(self) -> Tensor | None:
        """Places of the transitions that lasted as long as they should; None for all."""
        if self.duration == 1:
            return None
        order = self.replay.buffer.sample_indices(0)
        info = self.replay.column("info", order)
        whole = (info.duration == self.duration) | self.replay.column("terminated", order)
        return None if whole.all() else self._tensor(np.flatnonzero(whole))

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.as_tensor(values, device=self.device)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def take(self, index: Tensor) -> Batch:
        return self._read(self._slots(index if self._kept is None else self._kept[index]))

    def ahead(self, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
        if self._kept is not None:  # some in between are missing
            return alone(index)
        ends = self._tensor(self._ends)
        stop = ends[torch.searchsorted(ends, index.contiguous(), right=True)].unsqueeze(-1)
        ahead = index.unsqueeze(-1) + torch.arange(n, device=index.device)
        inside = ahead < stop
        ahead = torch.minimum(ahead, stop - 1)
        slots = self._slots(ahead)
        last = self._columns["terminated"][slots] | self._columns["truncated"][slots]
        goes_on = (inside & ~last).cumprod(-1).bool()
        return ahead, inside & torch.cat([inside[..., :1], goes_on[..., :-1]], -1)

    def _slots(self, place: Tensor) -> Tensor:
        """Slots in the columns of places in the order of `Replay.all`, shape (...)."""
        ring = torch.searchsorted(self._tensor(self._ends), place.contiguous(), right=True)
        age = place - self._starts[ring] + self._tensor(self._oldest)[ring]
        return ring * self._room + age % self._size

    def _read(self, slots: Tensor) -> Batch:
        rows = {name: column[slots] for name, column in self._columns.items()}
        rows = {name: x.to(_dtype(x)) for name, x in rows.items()}
        rows["last"] = rows["terminated"] | rows.pop("truncated")
        return Batch(rows)

    @property
    def _block(self) -> int:
        """Number of rows of a block: few environments have large ones, so that little is computed again."""
        return max(LEAST_BLOCK, CHUNK // len(self._lengths))

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        if len(self) <= CHUNK:
            return of(self.take(torch.arange(len(self), device=self.device)))
        kept = None
        if self._kept is not None:
            kept = torch.zeros(len(self._lengths) * self._room, dtype=torch.bool, device=self.device)
            kept[self._slots(self._kept)] = True
        parts = []
        for ring, length in enumerate(self._lengths.tolist()):
            for block in range(-(-length // self._block)):
                key = (ring, block)
                if key not in self._moments:
                    rows = torch.arange(block * self._block, min((block + 1) * self._block, length), device=self.device)
                    slots = ring * self._room + rows
                    slots = slots if kept is None else slots[kept[slots]]
                    self._moments[key] = of(self._read(slots)) if len(slots) else None
                part = self._moments[key]
                parts += [] if part is None else [part]
        return merged(parts)


def alone(index: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `Transitions.ahead` does where no transition is known to follow another."""
    return index.unsqueeze(-1), torch.ones_like(index, dtype=torch.bool).unsqueeze(-1)


def chunks(n: int, device: torch.device) -> Iterator[Tensor]:
    """Consecutive indices below n, at most `CHUNK` at a time."""
    for start in range(0, n, CHUNK):
        yield torch.arange(start, min(start + CHUNK, n), device=device)


def _dtype(x: Tensor) -> Any:
    """Type of a column in a fit: rewards are stored in float64, models take float32."""
    return torch.float32 if x.dtype == torch.float64 else x.dtype
