"""A ring of rows on a device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
        self._n_lost = 0  # rows that a loaded state has left out
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
            self._columns = {name: rows[name].new_empty(shape, device=self.device) for name, shape in shapes.items()}
        if rows.keys() != self._columns.keys():
            raise ValueError(f"rows have {', '.join(rows)}, expected {', '.join(self._columns)}")
        n = len(next(iter(rows.values())))
        first = max(0, n - self.size)
        start = (self.n_added + first) % self.size
        head = min(n - first, self.size - start)
        for name, column in self._columns.items():
            values = rows[name][first:]
            column[start : start + head] = values[:head]
            column[: n - first - head] = values[head:]
        self.n_added += n

    def sample(self, n: int, newest: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw n rows, with replacement, from the newest ones, uniformly.

        Args:
            n: Number of rows.
            newest: Number of rows that they are drawn from, at least one and at most `len(self)`.
            generator: Source of randomness, on the ring's device.
        """
        if not 0 < newest <= len(self):
            raise ValueError(f"newest is {newest}, expected a number of rows from 1 to {len(self)}")
        age = torch.randint(newest, (n,), generator=generator, device=self.device)
        places = (self.n_added - 1 - age) % self.size
        return {name: column[places] for name, column in self._columns.items()}

    def state_dict(self, newest: int | None = None) -> dict[str, Any]:
        """The newest rows, oldest first, and the number of rows so far.

        Args:
            newest: Number of rows that are still needed; None for all.
        """
        n_kept = len(self) if newest is None else min(newest, len(self))
        places = torch.arange(self.n_added - n_kept, self.n_added, device=self.device) % self.size
        return {"n_added": self.n_added, "rows": {name: column[places] for name, column in self._columns.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        rows = {name: x.to(self.device) for name, x in state["rows"].items()}
        n_kept = len(next(iter(rows.values()))) if rows else 0
        most = min(state["n_added"], self.size)
        if n_kept > most:
            raise ValueError(f"the state has {n_kept} rows, expected at most {most}")
        self._n_lost = state["n_added"] - n_kept
        self._columns, self.n_added = {}, self._n_lost
        if rows:
            self.add(rows)
