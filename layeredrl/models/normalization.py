"""Statistics of data, the rule for what hardly varies, and the running scale of prediction targets."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

TINY = 1e-30
"""Smallest scale by which anything is divided: quotients of float32 numbers stay finite."""
MAX_MEAN = 10.0
"""Root mean square of a target, in standard deviations, up to which the latter alone is its scale."""
AT_ONCE = 2**18
"""Number of elements that are converted to float64 at once."""
CHUNK = 4096
"""Number of rows whose statistics are computed at once."""

Block = tuple[int, ...]
"""Key of a block of rows; it changes with their content."""


def resolution(size: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard deviation that rounding alone may cause in numbers of this size (...): four units in the last place."""
    return (4 * torch.finfo(dtype).eps * size).clamp(min=TINY)


def varies(std: Tensor, size: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return True where a standard deviation (...) is more than the rounding of numbers of this size (...)."""
    return std > resolution(size, dtype)


def scale_of(std: Tensor, size: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale (...) to divide numbers of this size by: their standard deviation where they vary.

    Elsewhere it is one, or what rounding may cause if that is more: a clock in seconds since 1970 jumps by 128.
    """
    return torch.where(varies(std, size, dtype), std, resolution(size, dtype).clamp(min=1))


class Moments(NamedTuple):
    """Moments of rows (N, D), in float64, which those of float32 numbers do not overflow."""

    n_rows: int
    """Number of rows N."""
    mean: Tensor
    """Shape (D,)."""
    variance: Tensor
    """Biased variance, (D,)."""

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Moments of rows x (N, D), N at least one."""
        n, parts = len(x), torch.split(x, max(1, AT_ONCE // max(1, x.shape[1])))
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / n
        return cls(n, mean, torch.stack([(part - mean).square_().sum(0) for part in parts]).sum(0) / n)

    @classmethod
    def merged(cls, parts: Sequence["Moments"]) -> "Moments":
        """Moments of all rows of some parts, at least one."""
        if len(parts) == 1:
            return parts[0]
        counts = torch.tensor([float(part.n_rows) for part in parts], dtype=torch.float64).to(parts[0].mean.device)
        share = (counts / counts.sum()).unsqueeze(-1)
        means, variances = (torch.stack(x) for x in zip(*((part.mean, part.variance) for part in parts), strict=True))
        mean = (share * means).sum(0)
        return cls(sum(part.n_rows for part in parts), mean, (share * (variances + (means - mean).square())).sum(0))

    @property
    def mean_square(self) -> Tensor:
        """Mean of the squares, (D,)."""
        return self.variance + self.mean.square()


def merged(parts: Sequence[dict[str, Moments]]) -> dict[str, Moments]:
    """Merge the moments of some parts of the data, name by name."""
    return {name: Moments.merged([part[name] for part in parts]) for name in parts[0]}


class BlockMoments:
    """Moments of blocks of rows, each computed once."""

    def __init__(self) -> None:
        self._parts: dict[Block, dict[str, Moments] | None] = {}  # None for a block without rows
        self._merged: list[dict[str, Moments]] | None = None  # of all parts, at most one; None if it is not computed

    def forget(self, changed: Callable[[Block], bool]) -> None:
        """Forget the moments of blocks that have changed."""
        for block in [block for block in self._parts if changed(block)]:
            del self._parts[block]
            self._merged = None

    def merged(
        self, blocks: list[Block], compute: Callable[[Block], dict[str, Moments] | None]
    ) -> list[dict[str, Moments]]:
        """Return the moments of all rows of some blocks, merged into one; none if there are no rows.

        Args:
            blocks: The blocks, in order. Others are forgotten.
            compute: Returns the moments of a block that is not known; None if it has no rows.
        """
        if self._merged is None or list(self._parts) != blocks:
            known = self._parts
            parts = {block: known[block] if block in known else compute(block) for block in blocks}
            found = [part for part in parts.values() if part is not None]
            self._parts, self._merged = parts, [merged(found)] if found else []
        return self._merged


def in_chunks(rows: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Split rows (N, ...) into consecutive chunks of at most `CHUNK` rows."""
    for start in range(0, len(next(iter(rows.values()))), CHUNK):
        yield {key: x[start : start + CHUNK] for key, x in rows.items()}


class RunningScale(nn.Module):
    """Scale of the prediction targets: their standard deviation, from a running variance.

    The first batch of at least two rows initialises the statistics, later ones enter with weight `momentum`, as in
    batch normalisation. The mean is not subtracted. Dimensions that change by nearly the same amount at every step have
    hardly any standard deviation: from a root mean square of `MAX_MEAN` standard deviations on, their scale passes over
    to the root mean square, so that a target is at most about `MAX_MEAN` units. The scale is also at least the
    resolution of the state, so that predictions of a dimension that never changes hold it.

    Args:
        width: Number of dimensions S.
        momentum: Weight of a new batch's variance.
        alike: Groups of dimensions that have one scale: the root of the mean of their variances.
    """

    variance: Tensor
    mean_square: Tensor
    size: Tensor
    std: Tensor
    initialized: Tensor

    def __init__(self, width: int, momentum: float, alike: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.momentum = momentum
        self.alike = alike
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))  # squares overflow float32
        self.register_buffer("mean_square", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("size", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, targets: Moments, state: Moments) -> None:
        """Replace the statistics by those of targets and states (N, S); a single row changes nothing."""
        if targets.n_rows < 2:
            return
        self.variance.copy_(targets.variance * (targets.n_rows / (targets.n_rows - 1)))
        self.mean_square.copy_(targets.mean_square)
        self.size.copy_(state.mean_square)
        self.initialized.fill_(True)
        self.std.copy_(self._scale())

    @torch.no_grad()
    def update(self, targets: Tensor, state: Tensor, counted: Tensor | None = None) -> None:
        """Update with a batch.

        Args:
            targets: Shape (N, S).
            state: States that the targets belong to, (N, S).
            counted: True for the rows that count, (N,); fewer than two change nothing, and neither do rows of which one
                is not finite.
        """
        if counted is None:
            counted = torch.ones((), dtype=torch.bool, device=targets.device).expand(len(targets))
        rows = counted.unsqueeze(-1)
        n = rows.sum()
        targets, state = (torch.where(rows, x.double(), 0.0) for x in (targets, state))
        mean = targets.sum(0) / n.clamp(min=1)
        variance = torch.where(rows, targets - mean, 0.0).square_().sum(0) / (n - 1).clamp(min=1)
        mean_square, size = (x.square().sum(0) / n.clamp(min=1) for x in (targets, state))
        # Weight of the new batch: 1 for the first, 0 if it does not count. A branch on a tensor would make a GPU wait.
        counts = (n >= 2) & torch.stack([variance, mean_square, size]).isfinite().all()
        weight = torch.where(self.initialized, self.momentum, 1.0) * counts
        self.initialized.logical_or_(counts)
        for running, new in ((self.variance, variance), (self.mean_square, mean_square), (self.size, size)):
            running.lerp_(torch.where(counts, new, 0.0), weight.to(running.dtype))  # zero times infinity is NaN
        self.std.copy_(torch.where(self.initialized, self._scale(), self.std))

    def _scale(self) -> Tensor:
        std, rms, size = (pooled(x, self.alike).sqrt() for x in (self.variance, self.mean_square, self.size))
        steady = torch.minimum(rms, (rms / MAX_MEAN).square() / std.clamp(min=TINY))
        return torch.maximum(torch.maximum(std, steady), resolution(size, self.std.dtype))


def pooled(x: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Replace the values of each group of dimensions of x (D,) by their mean."""
    if not groups:
        return x
    x = x.clone()
    for group in groups:
        mean = torch.stack([x[place] for place in group]).mean()
        for place in group:  # one by one: copying a list of indices to a GPU would make it wait
            x[place] = mean
    return x
