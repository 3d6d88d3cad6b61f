"""Transitions as the fit of a world model reads them: batch by batch, from a Batch or in place from a replay."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.models.normalization import CHUNK, Block, BlockMoments, Moments, merged
from layeredrl.storage import Replay, TensorReplay

GROWTH = 1.125
"""Factor by which the room for rows on a device grows: all rows are then copied anew, eight times in their life."""
SMALL = 256
"""Number of rows that a fit reads again because one of them is new; of other blocks of rows it keeps the moments."""

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

    def terminated(self) -> Tensor:
        """Indices of the transitions that ended their episode, in order."""
        ...

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        """Moments of all transitions, merged from those that `of` returns for parts of them.

        They may be kept for later calls, in which `of` has to be the same.
        """
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

    def terminated(self) -> Tensor:
        ended: Tensor = self.batch.get("terminated", self.batch.obs.new_zeros(len(self)))
        return ended.nonzero()[:, 0]

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        return merged([of(self.take(index)) for index in chunks(len(self), self.batch.obs.device)])


class ReplayTransitions:
    """The transitions of a replay that lasted as long as they should, as of the last `update`, in the order of `all`.

    An action that the end of an episode cut short says nothing about its outcome, unless it ended the episode.

    On a CPU the replay's arrays are read in place. Another device has a copy, to which `update` appends what is new.
    Moments are kept for blocks of rows, and computed again only for blocks that have changed: blocks of about `CHUNK`
    rows, and of about `SMALL` rows where the newest are. They depend on nothing but the replay, so that a run that goes
    on from a checkpoint computes the same.

    Args:
        replay: Replay with the key `info.duration`.
        duration: Environment steps for which an action should last.
        device: Device of the transitions.
    """

    def __init__(self, replay: Replay, duration: int, device: torch.device) -> None:
        self.replay, self.duration, self.device = replay, duration, device
        self._source: object = None  # the replay's rows; another object once it has loaded a state
        self._columns: dict[str, Tensor] = {}
        self._whole: Tensor | None = None  # True for transitions that count, (E, size); None for all
        self._room = 0  # rows of each environment that the columns have room for
        self._seen: list[int] = []  # transitions ever added, by environment, at the last update
        self._moments = BlockMoments()  # blocks are first slot and one past the last one, in every ring

    def update(self) -> None:
        """Bring the transitions up to date with the replay."""
        rings, source = self.replay.buffer.rings, self.replay.buffer._meta
        self._size, stop = rings[0].maxsize, [ring.n_added for ring in rings]
        self._lengths = np.array([len(ring) for ring in rings])
        first = [n - length for n, length in zip(stop, self._lengths, strict=True)]
        self._oldest = np.where(self._lengths == self._size, np.array(stop) % self._size, 0)
        if source is not self._source:
            self._source, self._room, self._seen, self._moments = source, 0, first, BlockMoments()
        # The newest row of the last time again: `Replay.truncate` may have marked it since.
        start = [max(seen - 1, oldest) for seen, oldest in zip(self._seen, first, strict=True)]
        self._seen = stop
        self._newest = sorted({(n - 1) % self._size for n in stop if n})
        self._forget(start, stop)
        self._copy(start, first, stop)
        self._ends = np.cumsum(self._lengths)
        self._starts = self._tensor(self._ends - self._lengths)
        self._kept = self._find_kept()

    def _forget(self, start: list[int], stop: list[int]) -> None:
        """Forget the moments of blocks with rows of these numbers."""
        small, _ = self._widths
        changed = np.zeros(-(-self._size // small), bool)
        for a, b in zip(start, stop, strict=True):
            changed[np.arange(a, b) % self._size // small] = True
        self._moments.forget(lambda block: bool(changed[block[0] // small : -(-block[1] // small)].any()))

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
        """Slots in the columns of the transitions that lasted as long as they should; None for all."""
        self._whole = None
        if self.duration == 1:
            return None
        duration, terminated = self.replay.buffer._meta["info"].duration, self.replay.buffer._meta["terminated"]
        whole = ((duration == self.duration) | terminated).reshape(len(self._lengths), self._size)
        parts = []
        for i, (oldest, length) in enumerate(zip(self._oldest, self._lengths, strict=True)):
            for start, stop in ((oldest, length), (0, oldest)):
                parts.append(i * self._room + start + np.flatnonzero(whole[i, start:stop]))
        kept = np.concatenate(parts)
        if len(kept) == self._ends[-1]:
            return None
        self._whole = torch.as_tensor(whole, device=self.device)
        return self._tensor(kept)

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.as_tensor(values, device=self.device)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._kept is None else len(self._kept)

    def take(self, index: Tensor) -> Batch:
        return self._read(self._slots(index) if self._kept is None else self._kept[index])

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

    def terminated(self) -> Tensor:
        index = torch.arange(len(self), device=self.device)
        ended = self._columns["terminated"][self._slots(index) if self._kept is None else self._kept]
        return index[ended]

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
    def _widths(self) -> tuple[int, int]:
        """Numbers of slots of a small and of a large block, of which each has the rows of all environments."""
        n_envs = len(self._lengths)
        small = max(1, SMALL // n_envs)
        return small, small * max(1, CHUNK // (small * n_envs))

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        if len(self) <= CHUNK:
            return of(self.take(torch.arange(len(self), device=self.device)))
        blocks = list(self._blocks())
        newest = [self._rows_of(block) for block in blocks if self._has_newest(block)]

        def compute(block: Block) -> dict[str, Moments] | None:
            slots = self._rows_of(block)
            return of(self._read(slots)) if len(slots) else None

        known = self._moments.merged([block for block in blocks if not self._has_newest(block)], compute)
        latest = torch.cat(newest)
        parts = [of(self._read(latest[i : i + CHUNK])) for i in range(0, len(latest), CHUNK)]
        return merged([*known, *parts])

    def _blocks(self) -> Iterator[Block]:
        """Blocks of slots: large ones, and small ones where the newest rows are."""
        small, large = self._widths
        n = int(self._lengths.max())
        for start in range(0, n, large):
            block = start, min(start + large, n)
            width = small if self._has_newest(block) else large
            yield from ((i, min(i + width, block[1])) for i in range(*block, width))

    def _has_newest(self, block: Block) -> bool:
        i = bisect_left(self._newest, block[0])
        return i < len(self._newest) and self._newest[i] < block[1]

    def _rows_of(self, block: Block) -> Tensor:
        """Slots in the columns of a block's transitions, (n,)."""
        stop = self._tensor(np.minimum(self._lengths, block[1])).unsqueeze(-1)
        slots = torch.arange(*block, device=self.device).expand(len(stop), -1)
        used = slots < stop if self._whole is None else (slots < stop) & self._whole[:, slice(*block)]
        first = self._room * torch.arange(len(stop), device=self.device).unsqueeze(-1)
        return (first + slots)[used]


class TensorTransitions:
    """The transitions of a replay on a device, as of the last `update`, in the order of time; see `ReplayTransitions`.

    Moments are kept for blocks of `CHUNK` rows that were added one after another. The first and the last block, which
    the replay may hold in part, are read in each fit.

    Args:
        replay: Replay with the key `info.duration`.
        duration: Environment steps for which an action should last.
    """

    def __init__(self, replay: TensorReplay, duration: int) -> None:
        self.replay, self.duration, self.device = replay, duration, replay.device
        self._first = self._stop = 0  # number of the oldest row, and one past the newest, of all ever added
        self._kept: Tensor | None = None  # rows that count, as indices of all rows; None for all
        self._moments = BlockMoments()  # blocks are (number, number of late marks in it, loads of the replay)

    def update(self) -> None:
        """Bring the transitions up to date with the replay."""
        self._first, self._stop, self._kept = self.replay.n_added - len(self.replay), self.replay.n_added, None
        if self.duration != 1 and len(self.replay):
            # Reads all rows, but only two of their columns, which costs little beside a fit.
            duration, terminated = self.replay.columns(("info.duration", "terminated"), self.replay.indices())
            self._kept = ((duration == self.duration) | terminated).nonzero()[:, 0]

    def __len__(self) -> int:
        return self._stop - self._first if self._kept is None else len(self._kept)

    def take(self, index: Tensor) -> Batch:
        names = ("obs", "obs_next", "act", "rew", "terminated", "truncated")
        *kept, truncated = self.replay.columns(names, self._places(index))
        rows = dict(zip(names[:-1], kept, strict=True))
        return Batch(rows, last=rows["terminated"] | truncated)

    def ahead(self, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
        if self.duration != 1:  # some in between are missing
            return alone(index)
        steps = torch.arange(n, device=index.device)
        follows = self.replay.follows(self._places(index).unsqueeze(-1), steps)
        ahead = index.unsqueeze(-1) + steps * self.replay.n_envs
        return ahead.clamp(max=len(self) - 1), follows

    def terminated(self) -> Tensor:
        # Reads all rows, but only one of their columns.
        index = torch.arange(len(self), device=self.device)
        return index[self.replay.column("terminated", self._places(index))]

    def _places(self, index: Tensor) -> Tensor:
        """Places in the replay of transitions at indices (...)."""
        rows = index if self._kept is None else self._kept[index]
        return (self._first + rows) % self.replay.ring.size

    def moments(self, of: MomentsOf) -> dict[str, Moments]:
        if len(self) <= CHUNK:
            return of(self.take(torch.arange(len(self), device=self.device)))
        ranges = self._ranges()

        def compute(block: Block) -> dict[str, Moments] | None:
            index = torch.arange(*ranges[block[0]], device=self.device)
            return of(self.take(index)) if len(index) else None

        whole = range(-(-self._first // CHUNK), self._stop // CHUNK)
        marks = Counter(number // CHUNK for number in self.replay.marked)
        known = self._moments.merged([(i, marks[i], self.replay.n_loads) for i in whole], compute)
        parts = [compute((i,)) for i in ranges if i not in whole]
        return merged([*known, *(part for part in parts if part is not None)])

    def _ranges(self) -> dict[int, tuple[int, int]]:
        """First index of the transitions of each block, and one past the last one, by the number of the block."""
        blocks = range(self._first // CHUNK, -(-self._stop // CHUNK))
        bounds = [min(max(i * CHUNK, self._first), self._stop) - self._first for i in (*blocks, blocks.stop)]
        if self._kept is not None:
            bounds = torch.searchsorted(self._kept, torch.tensor(bounds, device=self.device)).tolist()
        return dict(zip(blocks, pairwise(bounds), strict=True))


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
