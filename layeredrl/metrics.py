"""Means of metrics between two reports."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from layeredrl.transfers import to_host


class RunningMeans:
    """Sums of metrics by name, from which a report takes the means."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Add one value of each metric: numbers, or scalars on any device, which are not read before a report."""
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                value = value.detach().double()  # a sum in float32 would lose digits
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and begin anew."""
        means = {name: total / self._counts[name] for name, total in self._read().items()}
        self._sums, self._counts = {}, {}
        return means

    def _read(self) -> dict[str, float]:
        """The sums, read from a device in one copy."""
        tensors = [total for total in self._sums.values() if isinstance(total, Tensor)]
        values = iter(to_host(*tensors) if tensors else ())
        return {name: float(next(values) if isinstance(x, Tensor) else x) for name, x in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums and counts since the last report."""
        return {"sums": self._read(), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class FiniteMeans:
    """Means of metrics over the values that are finite, summed on a device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # sum and number of the finite values, (2,)

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add values (n,) of each metric, or one value; those that are not finite do not count."""
        for name, values in metrics.items():
            finite = values.isfinite()
            both = torch.stack([torch.where(finite, values, 0.0).sum(dtype=torch.float64), finite.sum().double()])
            before = self._sums.get(name)
            self._sums[name] = both if before is None else before.to(both.device) + both  # loaded ones may be elsewhere

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and begin anew; metrics without a finite value are left out."""
        read = zip(self._sums, to_host(*self._sums.values()) if self._sums else (), strict=True)
        means = {name: float(total / count) for name, (total, count) in read if count}
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Tensor]:
        """The sums since the last report."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._sums = {name: x.clone() for name, x in state.items()}
