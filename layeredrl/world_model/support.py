"""Support: which states the data covers: planners find whatever a model gets wrong where it has seen nothing."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layeredrl.checks import require_count, require_number
from layeredrl.models.normalization import scale_of

_MOST_DIMS = 8
_N_HELD_OUT = 4096  # enough for a quantile of 0.99: some forty lie beyond it
_CANDIDATES_PER_ANCHOR = 4  # more leave fewer gaps between anchors, and cost time in proportion
_LEAST_RADIUS = 1e-3  # in standard deviations; distances in float32 are no more exact
_ROWS_AT_ONCE = {"cpu": 256}
"""Rows for which all distances are held at once: on a CPU as many as stay in its cache."""
_MULTIPLIER = 0x2545F4914F6CDD1D  # odd, its bits well mixed: that of the generator xorshift64*


class Support(ABC, nn.Module):
    """Distinguishes supported from unsupported states."""

    def check(self, state_dim: int) -> None:
        """Raise unless states of this width can be judged."""

    @abstractmethod
    def fit(self, state: Tensor) -> None:
        """Fit to all states of the data, (N, S)."""

    @abstractmethod
    def forward(self, state: Tensor) -> Tensor:
        """Share in [0, 1] to which states (..., S) are unsupported, (...)."""


class _ByDimensions(Support):
    """Uses some dimensions of the state."""

    index: Tensor

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        for dim in dims:
            require_count("dims", dim, minimum=0)
        if not dims or len(set(dims)) < len(dims):
            raise ValueError(f"dims is {list(dims)}, expected at least one dimension, and each once")
        self.dims = tuple(dims)
        self.register_buffer("index", torch.tensor(list(dims)), persistent=False)

    def check(self, state_dim: int) -> None:
        if max(self.dims) >= state_dim:
            raise ValueError(f"dims is {list(self.dims)}, expected less than the state's width {state_dim}")


class GridSupport(_ByDimensions):
    """Counts visits in the cells of a grid: a state in a cell that was visited too rarely is unsupported.

    Until it has been fitted, every state is supported. Cells are kept in a table by their hash; two cells that share
    an entry share their visits, which is rare as long as visited cells are few against a million.

    Args:
        dims: Dimensions of the state that span the grid, at most eight: position, say.
        cell: Edge length of a cell, in the state's units.
        min_visits: Visits from which on a cell counts as supported.
    """

    visits: Tensor

    def __init__(self, dims: Sequence[int], cell: float, min_visits: int = 4) -> None:
        if not 1 <= len(dims) <= _MOST_DIMS:
            raise ValueError(
                f"dims is {list(dims)}, expected one to {_MOST_DIMS} dimensions; a NeighbourSupport takes more"
            )
        super().__init__(dims)
        require_number("cell", cell, 0, float("inf"), open_low=True)
        require_count("min_visits", min_visits)
        self.cell, self.min_visits = cell, min_visits
        self.register_buffer("visits", torch.full((2**20,), min_visits, dtype=torch.int32))

    def fit(self, state: Tensor) -> None:
        entries = self._entries(state.reshape(-1, state.shape[-1]))
        self.visits.zero_().index_add_(0, entries, torch.ones_like(entries, dtype=torch.int32))

    def forward(self, state: Tensor) -> Tensor:
        return (self.visits[self._entries(state)] < self.min_visits).to(state.dtype)

    def _entries(self, state: Tensor) -> Tensor:
        # NaN and numbers beyond the integers are far from everything; casting them would be undefined.
        coordinates = (state[..., self.index] / self.cell).floor().nan_to_num(2.0**30).clamp(-(2.0**30), 2.0**30).long()
        # Stirred after every dimension: with a mere sum of multiples, cells at some fixed small offset from each
        # other would share entries wherever they are. Products wrap around.
        key = torch.zeros_like(coordinates[..., 0])
        for coordinate in coordinates.unbind(-1):
            key = (key ^ coordinate) * _MULTIPLIER
            key = key ^ ((key >> 32) & 0xFFFFFFFF)
        return key % len(self.visits)


class NeighbourSupport(_ByDimensions):
    """Support by the distance to the nearest of some spread-out states of the data, for states of many dimensions.

    Distances are in standard deviations of each dimension. Up to a radius a state is supported, and from twice the
    radius on it is unsupported. In between the penalty rises linearly: a planner beyond the radius is led back, and the
    data itself, which lies partly beyond the radius, is hardly penalised. The radius is a quantile of the distances of
    states of the data that are not among the anchors: it follows the data's density, and is free of units. Until it has
    been fitted, or where there is only one state, every state is supported.

    In a maze, against what `GridSupport` says after 100,000 steps of a run: none of the unsupported places lies within
    the radius, and 13 % of the supported ones lie beyond it, with a mean share of 0.03. On a curved sheet in 10
    dimensions, 1 % of new states on it lie beyond the radius, 98 % of those half a unit off it, and 85 % of those in a
    hole. With anchors drawn at random, 9 % of the maze's unsupported places lie within the radius; a density of 1024
    random Fourier features lets 68 % of them pass.

    Args:
        dims: Dimensions of the state that count.
        n_anchors: States of the data that are kept.
        quantile: Share of the data that is to lie within the radius.
    """

    anchors: Tensor
    mean: Tensor
    std: Tensor
    radius: Tensor

    def __init__(self, dims: Sequence[int], n_anchors: int = 1024, quantile: float = 0.99) -> None:
        super().__init__(dims)
        require_count("n_anchors", n_anchors)
        require_number("quantile", quantile, 0, 1, open_low=True)
        self.quantile = quantile
        self.register_buffer("anchors", torch.zeros(n_anchors, len(self.dims)))
        self.register_buffer("mean", torch.zeros(len(self.dims)))
        self.register_buffer("std", torch.ones(len(self.dims)))
        self.register_buffer("radius", torch.tensor(torch.inf))

    @torch.no_grad()
    def fit(self, state: Tensor) -> None:
        data = state.reshape(-1, state.shape[-1])[:, self.index]
        data = data[data.isfinite().all(-1)]
        self.radius.fill_(torch.inf)
        if len(data) < 2:
            return
        std, mean = torch.std_mean(data, 0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(scale_of(std, mean.abs()))
        # A generator of its own: the same data always gives the same anchors, and no other draws change.
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
        n_held_out = min(_N_HELD_OUT, len(data) // 2)
        candidates = order[n_held_out : n_held_out + _CANDIDATES_PER_ANCHOR * len(self.anchors)]
        self.anchors.copy_(_far_apart(self._scaled(data[candidates]), len(self.anchors)))
        distances = self._distances(self._scaled(data[order[:n_held_out]]))
        self.radius.copy_(distances.quantile(self.quantile).clamp(min=_LEAST_RADIUS))

    def forward(self, state: Tensor) -> Tensor:
        scaled = self._scaled(state[..., self.index].reshape(-1, len(self.dims)))
        beyond = self._distances(scaled) / self.radius.to(state.dtype) - 1
        # NaN and infinity are far from everything.
        share = beyond.nan_to_num(1.0).clamp(0.0, 1.0)
        return torch.where(self.radius.isinf(), 0.0, share).view(state.shape[:-1])

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)

    def _distances(self, scaled: Tensor) -> Tensor:
        """Distances of (n, D) to the nearest anchor, (n,)."""
        anchors = self.anchors.to(scaled.dtype)
        lengths, columns = anchors.square().sum(-1, keepdim=True), scaled.T.contiguous()
        # |x - a|^2 - |x|^2 = |a|^2 - 2 a x: several times faster than cdist, with states as columns most of all, and
        # exact enough for _LEAST_RADIUS.
        nearest = [
            torch.addmm(lengths, anchors, some, alpha=-2).amin(0)
            for some in torch.split(columns, _ROWS_AT_ONCE.get(scaled.device.type, 2**16), 1)
        ]
        return (torch.cat(nearest) + scaled.square().sum(-1)).clamp(min=0).sqrt()


def _far_apart(points: Tensor, n: int) -> Tensor:
    """Choose n of the points (N, D), each the farthest from those before; some more than once if there are fewer."""
    columns = points.T.contiguous()  # three times as fast as rows on a CPU
    squares = columns.new_full((columns.shape[1],), torch.inf)
    chosen = torch.zeros(n, dtype=torch.int64, device=points.device)
    newest = chosen[:1].clone()
    for i in range(n):
        chosen[i : i + 1] = newest  # on the device all along: to look at it would stall a GPU
        squares = torch.minimum(squares, (columns - columns.index_select(1, newest)).square_().sum(0))
        newest = squares.argmax().view(1)
    return points[chosen]
