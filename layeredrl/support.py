"""Which states the data supports: planners find whatever a model gets wrong where it has seen nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layeredrl.checks import require_count, require_number

_MOST_DIMS = 8
_MULTIPLIER = 0x2545F4914F6CDD1D  # odd, its bits well mixed: that of the generator xorshift64*


class Support(ABC, nn.Module):
    """Tells supported from unsupported states."""

    def check(self, state_dim: int) -> None:
        """Raise unless states of this width can be judged."""

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
        if not 1 <= len(dims) <= _MOST_DIMS:
            raise ValueError(f"dims is {list(dims)}, expected one to {_MOST_DIMS} dimensions")
        for dim in dims:
            require_count("dims", dim, minimum=0)
        if len(set(dims)) < len(dims):
            raise ValueError(f"dims is {list(dims)}, expected each dimension once")
        require_number("cell", cell, 0, float("inf"), open_low=True)
        require_count("min_visits", min_visits)
        self.cell, self.min_visits = cell, min_visits
        self.dims = tuple(dims)
        self.register_buffer("index", torch.tensor(list(dims)), persistent=False)
        self.register_buffer("visits", torch.full((2**20,), min_visits, dtype=torch.int32))

    def check(self, state_dim: int) -> None:
        if max(self.dims) >= state_dim:
            raise ValueError(f"dims is {list(self.dims)}, expected less than the state's width {state_dim}")

    def fit(self, state: Tensor) -> None:
        entries = self._entries(state.reshape(-1, state.shape[-1]))
        self.visits.zero_().index_add_(0, entries, torch.ones_like(entries, dtype=torch.int32))

    def forward(self, state: Tensor) -> Tensor:
        return (self.visits[self._entries(state)] < self.min_visits).to(state.dtype)

    def _entries(self, state: Tensor) -> Tensor:
        # What is beyond the integers, or not a number, is far from everything; the cast would be undefined.
        coordinates = (state[..., self.index] / self.cell).floor().nan_to_num(2.0**30).clamp(-(2.0**30), 2.0**30).long()
        # Stirred after every dimension: with a mere sum of multiples, cells at some fixed small offset from each
        # other would share entries wherever they are. Products wrap around.
        key = torch.zeros_like(coordinates[..., 0])
        for coordinate in coordinates.unbind(-1):
            key = (key ^ coordinate) * _MULTIPLIER
            key = key ^ ((key >> 32) & 0xFFFFFFFF)
        return key % len(self.visits)
