"""Plain values of a checkpoint's state, and its parts that only grow.

Each save writes the rows that were added to such a part; a chain of these segments holds all of them.
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MAX_BITS = 2039
"""Largest size of an integer that torch.load reads back, in bits."""

Place = tuple[Any, ...]
"""Keys that lead to a part of a nested state."""

FILE_NAME = re.compile(r"\d{12,}-[0-9a-f]{16}\.pt")
"""Pattern of a segment's file name."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of a row, by name of its column."""


@dataclass(frozen=True)
class Increment:
    """Rows that were added since the last checkpoint, to one ring of rows per environment."""

    rows: dict[str, Tensor]
    """New rows, environment by environment; each of shape (sum over environments of stop - start, ...)."""

    start: list[int]
    """Number of the first new row of each environment, counted from the beginning of the run."""

    stop: list[int]
    """One past the number of the last new row of each environment."""

    keep_from: list[int]
    """Number of the first row of each environment that is still needed."""

    on_saved: Callable[[], None]
    """Called once a checkpoint with these rows is in place."""

    def __post_init__(self) -> None:
        if not len(self.start) == len(self.stop) == len(self.keep_from):
            lengths = f"{len(self.start)}, {len(self.stop)} and {len(self.keep_from)}"
            raise ValueError(f"start, stop and keep_from are of {lengths} environments, expected as many of each")
        for i, (start, stop, keep_from) in enumerate(zip(self.start, self.stop, self.keep_from, strict=True)):
            if not 0 <= start <= stop or not 0 <= keep_from <= stop:
                raise ValueError(
                    f"start, stop and keep_from of environment {i} are {start}, {stop} and {keep_from}, "
                    "expected start and keep_from in [0, stop]"
                )
        n_rows = sum(self.stop) - sum(self.start)
        for name, rows in self.rows.items():
            if rows.ndim == 0 or len(rows) != n_rows:
                raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected ({n_rows}, ...)")
        if n_rows and not self.rows:
            raise ValueError(f"rows is empty, expected {n_rows} rows")


@dataclass(frozen=True)
class Chain:
    """Segments that hold all rows that are still needed, the oldest first.

    Where two segments hold the same row, the later one counts.
    """

    keep_from: NDArray[np.int64]
    """First row that is still needed, (n_envs,)."""

    end: NDArray[np.int64]
    """One past the last row, (n_envs,)."""

    start: NDArray[np.int64]
    """First row of each segment, (n_segments, n_envs)."""

    stop: NDArray[np.int64]
    """One past the last row of each segment, (n_segments, n_envs)."""

    files: list[str] = field(default_factory=list)
    layout: Layout = field(default_factory=dict)

    @classmethod
    def empty(cls, n_envs: int) -> Self:
        """Return a chain without segments."""
        none, nowhere = np.zeros((0, n_envs), np.int64), np.zeros(n_envs, np.int64)
        return cls(nowhere, nowhere, none, none)

    def extended(self, increment: Increment, file: str) -> Self:
        """Return the chain with a segment for new rows, if any, and without segments that are not needed any more.

        Raises:
            ValueError: The increment does not start where the last segment stops.
        """
        start, stop, keep_from = (np.array(x, np.int64) for x in (increment.start, increment.stop, increment.keep_from))
        self._require_continuation(start, stop, keep_from)
        chain = replace(self, keep_from=keep_from, end=stop)
        if (np.maximum(start, keep_from) < stop).any():
            chain = replace(
                chain,
                start=np.vstack([self.start, start]),
                stop=np.vstack([self.stop, stop]),
                files=[*self.files, file],
                layout=layout_of(increment.rows),
            )
        low, high = chain._used()
        needed: NDArray[np.bool_] = np.any(low < high, axis=1)
        if chain.layout != self.layout and needed[:-1].any():
            raise ValueError(f"its rows are {chain.layout}, expected {self.layout} as before")
        files = [name for name, keep in zip(chain.files, needed, strict=True) if keep]
        return replace(chain, start=chain.start[needed], stop=chain.stop[needed], files=files)

    def _require_continuation(
        self, start: NDArray[np.int64], stop: NDArray[np.int64], keep_from: NDArray[np.int64]
    ) -> None:
        if len(start) != len(self.end):
            raise ValueError(f"it is of {len(start)} environments, expected {len(self.end)}")
        for i in range(len(start)):
            if start[i] != self.end[i] and start[i] > keep_from[i]:
                raise ValueError(
                    f"the first new row of environment {i} is {start[i]}, expected {self.end[i]}, where the rows that "
                    f"were saved stop, or at most {keep_from[i]}, from which they are needed"
                )
            if keep_from[i] < self.keep_from[i] or stop[i] < self.end[i]:
                raise ValueError(
                    f"keep_from and stop of environment {i} are {keep_from[i]} and {stop[i]}, "
                    f"expected at least {self.keep_from[i]} and {self.end[i]}, as in the last save"
                )

    def _used(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and one past last row used of each segment, (n_segments, n_envs); none if low >= high."""
        later = np.vstack([self.start[1:], self.end])
        first_later = np.minimum.accumulate(later[::-1])[::-1][: len(self.files)]
        return np.maximum(self.start, self.keep_from), np.minimum(self.stop, first_later)

    def state_dict(self) -> dict[str, Any]:
        """Return the chain as values that a checkpoint can hold."""
        arrays = {"keep_from": self.keep_from, "end": self.end, "start": self.start, "stop": self.stop}
        return {
            "files": self.files,
            "layout": self.layout,
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return the chain of a `state_dict`."""
        arrays = {name: state[name].cpu().numpy() for name in ("keep_from", "end", "start", "stop")}
        return cls(files=state["files"], layout=state["layout"], **arrays)

    def merge(self, read: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
        """Return all rows that are needed.

        Args:
            read: Reads a file by its name; returns the contents that `segment` made.

        Returns:
            A dict of `rows`, environment by environment, and `start` and `stop`, the numbers of each environment's
            first row and one past its last.

        Raises:
            ValueError: A file holds other rows than the chain says.
        """
        segments = [read(file) for file in self.files]
        for i, content in enumerate(segments):
            self._check(i, content)
        low, high = self._used()
        if not np.array_equal(np.maximum(high - low, 0).sum(0), self.end - self.keep_from):
            raise ValueError("do not hold all rows from keep_from to end")
        lengths = self.stop - self.start
        shift = lengths.cumsum(1) - lengths - self.start  # from a row's number to its place in the file
        pieces = [
            (s, slice(int(low[s, i] + shift[s, i]), int(high[s, i] + shift[s, i])))
            for i, s in np.argwhere((low < high).T).tolist()
        ]
        rows = {}
        for name in self.layout if pieces else ():
            column = [content["rows"].pop(name) for content in segments]
            rows[name] = torch.cat([column[s][part] for s, part in pieces])
        return {"start": self.keep_from.tolist(), "stop": self.end.tolist(), "rows": rows}

    def _check(self, i: int, content: Mapping[str, Any]) -> None:
        found = content["start"], content["stop"], layout_of(content["rows"])
        expected = self.start[i].tolist(), self.stop[i].tolist(), self.layout
        if found != expected:
            raise ValueError(f"{self.files[i]} holds {found}, expected {expected}")
        n_rows = sum(content["stop"]) - sum(content["start"])
        if any(len(rows) != n_rows for rows in content["rows"].values()):
            raise ValueError(f"{self.files[i]} holds columns of other lengths than {n_rows}")


def extend(
    chains: Mapping[Place, Chain], increments: Mapping[Place, Increment], n_total_env_steps: int
) -> tuple[dict[Place, Chain], dict[str, Increment]]:
    """Return the extended chains, and the increments to write by the names of their new files.

    Raises:
        ValueError: An increment does not start where its chain stops.
    """
    extended, new = {}, {}
    for place, increment in increments.items():
        file = f"{n_total_env_steps:012d}-{secrets.token_hex(8)}.pt"  # no name is ever used again
        before = chains.get(place, Chain.empty(len(increment.start)))
        try:
            extended[place] = before.extended(increment, file)
        except ValueError as error:
            raise ValueError(f"{name_of(place)} does not continue the saved rows: {error}") from None
        if file in extended[place].files:
            new[file] = increment
    return extended, new


def segment(increment: Increment) -> dict[str, Any]:
    """Return the contents of an increment's file."""
    rows = {}
    for name, tensor in increment.rows.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().nbytes() != own.nbytes:  # torch.save writes the whole storage behind a view
            own = own.clone()
        rows[name] = own
    return {"start": list(increment.start), "stop": list(increment.stop), "rows": rows}


def layout_of(rows: Mapping[str, Tensor]) -> Layout:
    """Return dtype and shape of a row, by name of its column."""
    return {name: (str(tensor.dtype), tuple(tensor.shape[1:])) for name, tensor in rows.items()}


def take_out(value: Any, place: Place, found: dict[Place, Increment]) -> Any:
    """Return the value with None in place of each `Increment`; the increments go to `found`."""
    if isinstance(value, Increment):
        found[place] = value
        return None
    if isinstance(value, dict):
        items = {key: take_out(item, (*place, key), found) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    if isinstance(value, list | tuple):
        parts = [take_out(item, (*place, i), found) for i, item in enumerate(value)]
        unchanged = all(part is item for part, item in zip(parts, value, strict=True))
        return value if unchanged else parts if isinstance(value, list) else tuple(parts)
    return value


def put_back(value: Any, place: Place, item: object) -> Any:
    """Return the value with an item at a place."""
    if not place:
        return item
    key, *rest = place
    if isinstance(value, tuple):
        return (*value[:key], put_back(value[key], tuple(rest), item), *value[key + 1 :])
    value[key] = put_back(value[key], tuple(rest), item)
    return value


def name_of(place: Place) -> str:
    """Return the name of a place in an error message."""
    return "state" + "".join(f"[{key!r}]" for key in place)


def require_plain(name: str, value: object) -> None:
    """Raise unless `torch.load` reads the value back."""
    if type(value) in (dict, OrderedDict):
        for key, item in cast(dict[object, object], value).items():
            require_plain(f"a key of {name}", key)
            require_plain(f"{name}[{key!r}]", item)
    elif type(value) in (list, tuple, torch.Size):
        for i, item in enumerate(cast(list[object], value)):
            require_plain(f"{name}[{i}]", item)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError(f"{name} is an integer of {value.bit_length()} bits, expected at most {_MAX_BITS}")
    elif value is not None and type(value) not in (bool, int, float, str) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {type(value).__name__}, expected a tensor, number, string, list, tuple or dict")
