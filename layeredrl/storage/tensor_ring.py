"""A ring of rows on a device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layeredrl.storage.segments import Increment


class TensorRing:
    """The newest rows of some tensors, with one place for each row, on one device.

    Args:
        size: Largest number of rows; new ones overwrite the oldest.
        device: Device of the rows.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1")
        self.size, self.device = size, device
        self.n_added = 0
        self._n_lost = self._n_saved = 0  # rows that a loaded state has left out, and that are in checkpoints
        self._columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.n_added - self._n_lost, self.size)

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Add rows (n, ...) by name; of more than `size` rows the last ones are kept.

        Raises:
            ValueError: The names are not those of the rows before.
        """
        if not self._columns:
            shapes = {name: (self.size, *x.shape[1:]) for name, x in rows.items()}
            self._columns = {name: rows[name].new_zeros(shape, device=self.device) for name, shape in shapes.items()}
        if rows.keys() != self._columns.keys():
            raise ValueError(f"rows have {', '.join(rows)}, expected {', '.join(self._columns)}")
        n = len(next(iter(rows.values())))
        first = max(0, n - self.size)
        start = (self.n_added + first) % self.size
        head = min(n - first, self.size - start)
        for name, column in self._columns.items():
            values = rows[name][first:]
            column[start : start + head] = values[:head]
            if head < n - first:
                column[: n - first - head] = values[head:]
        self.n_added += n

    def reserve(self, n: int) -> dict[str, Tensor] | None:
        """Count n rows as added, and return the columns' places (n, ...) for them, to be written.

        None, and nothing is counted, if there are no columns yet, or if the places are not next to each other.
        """
        start = self.n_added % self.size
        if not self._columns or start + n > self.size:
            return None
        self.n_added += n
        return {name: column[start : start + n] for name, column in self._columns.items()}

    def sample(self, n: int, newest: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw n rows; see `draw`."""
        return self.at(self.draw(n, newest, generator))

    def draw(self, n: int, newest: int, generator: torch.Generator) -> Tensor:
        """Draw the places (n,) of rows, with replacement, from the newest ones, uniformly.

        Args:
            n: Number of rows.
            newest: Number of rows that they are drawn from, at least one and at most `len(self)`.
            generator: Source of randomness, on the ring's device.
        """
        if not 0 < newest <= len(self):
            raise ValueError(f"newest is {newest}, expected a number of rows from 1 to {len(self)}")
        age = torch.randint(newest, (n,), generator=generator, device=self.device)
        return (self.n_added - 1 - age) % self.size

    def at(self, places: Tensor) -> dict[str, Tensor]:
        """Rows at places of any shape."""
        return {name: column[places] for name, column in self._columns.items()}

    def column(self, name: str) -> Tensor:
        """The whole column, (size, ...), of which places without a row hold anything."""
        return self._columns[name]

    def places(self, newest: int) -> Tensor:
        """Places (newest,) of the newest rows, in the order in which they were added."""
        return torch.arange(self.n_added - newest, self.n_added, device=self.device) % self.size

    def rows(self, first: int, stop: int) -> dict[str, Tensor]:
        """Rows with the numbers from `first` to `stop`, counted from the first one ever added; they must be there."""
        return self.at(torch.arange(first, stop, device=self.device) % self.size)

    def state_dict(self, newest: int | None = None) -> dict[str, Any]:
        """Return a state for `Checkpoints.save`, with only the rows that the last checkpoint lacks.

        Args:
            newest: Number of rows that are still needed; None for all.
        """
        n_kept = len(self) if newest is None else min(newest, len(self))
        stop, keep_from = self.n_added, self.n_added - n_kept
        start = max(self._n_saved, keep_from)

        def on_saved() -> None:
            self._n_saved = stop

        rows = {name: x.cpu() for name, x in self.rows(start, stop).items()}
        return {"n_added": stop, "rows": Increment(rows, [start], [stop], [keep_from], on_saved)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `Checkpoints.load` for `state_dict`; without its increments the ring is empty."""
        saved = state["rows"] or {"rows": {}, "start": [state["n_added"]]}
        rows = {name: x.to(self.device) for name, x in saved["rows"].items()}
        n_kept = state["n_added"] - saved["start"][0]
        if not 0 <= n_kept <= self.size:
            raise ValueError(f"the state has {n_kept} rows, expected at most {self.size}")
        self._n_lost, self._n_saved = state["n_added"] - n_kept, state["n_added"]
        self._columns, self.n_added = {}, self._n_lost
        if n_kept:
            self.add(rows)
