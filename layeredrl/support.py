"""Which states the data supports: planners find whatever a model gets wrong where it has seen nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layeredrl.checks import require_count, require_number

_PRIMES = (73_856_093, 19_349_663, 83_492_791, 25_165_843, 50_331_653, 12_582_917, 6_291_469, 3_145_739)


class Support(ABC, nn.Module):
    """Tells supported from unsupported states."""

    @abstractmethod
    def fit(self, state: Tensor) -> None:
        """Take in all the states (N, S) that there are."""

    @abstractmethod
    def forward(self, state: Tensor) -> Tensor:
        """Share in [0, 1] to which states (..., S) are unsupported, (...)."""


class GridSupport(Support):
    """Counts visits in the cells of a grid: a state in a cell that was visited too rarely is unsupported.

    Until it has been fitted, every state is supported. Cells are kept in a table by their hash; two cells that share
    an entry share their visits, which is rare as long as visited cells are few against a million.

    Args:
        dims: Dimensions of the state that span the grid, at most eight: position, say.
        cell: Edge length of a cell, in the state's units.
        min_visits: Visits from which on a cell counts as supported.
    """

    visits: Tensor
    index: Tensor

    def __init__(self, dims: Sequence[int], cell: float, min_visits: int = 4) -> None:
        super().__init__()
        if not 1 <= len(dims) <= len(_PRIMES):
            raise ValueError(f"dims is {list(dims)}, expected one to {len(_PRIMES)} dimensions")
        for dim in dims:
            require_count("dims", dim, minimum=0)
        require_number("cell", cell, 0, float("inf"), open_low=True)
        require_count("min_visits", min_visits)
        self.cell, self.min_visits = cell, min_visits
        self.register_buffer("index", torch.tensor(list(dims)), persistent=False)
        self.register_buffer("primes", torch.tensor(_PRIMES[: len(dims)]), persistent=False)
        self.register_buffer("visits", torch.full((2**20,), min_visits, dtype=torch.int32))

    def fit(self, state: Tensor) -> None:
        entries = self._entries(state.reshape(-1, state.shape[-1]))
        self.visits.zero_().index_add_(0, entries, torch.ones_like(entries, dtype=torch.int32))

    def forward(self, state: Tensor) -> Tensor:
        return (self.visits[self._entries(state)] < self.min_visits).to(state.dtype)

    def _entries(self, state: Tensor) -> Tensor:
        # A state beyond the integers, or not a number, is as unsupported as any; the cast would be undefined.
        coordinates = (state[..., self.index] / self.cell).floor().nan_to_num(0.0).clamp(-(2.0**30), 2.0**30).long()
        return (coordinates * self.get_buffer("primes")).sum(-1) % len(self.visits)
