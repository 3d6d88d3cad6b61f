"""Running scale of prediction targets."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MIN_VARIANCE = 1e-24  # dimensions that vary less are not scaled; the square of `nets.MIN_STD`


class RunningScale(nn.Module):
    """Standard deviation of the prediction targets, from a running variance.

    The first batch of at least two rows initialises the variance, later ones enter with weight `momentum`, as in
    batch normalisation. The mean is not subtracted.

    Args:
        width: Number of dimensions S.
        momentum: Weight of a new batch's variance.
        alike: Groups of dimensions that have one scale: the root of the mean of their variances.
    """

    variance: Tensor
    std: Tensor
    initialized: Tensor

    def __init__(self, width: int, momentum: float, alike: Sequence[Sequence[int]] = ()) -> None:
        super().__init__()
        self.momentum = momentum
        self.alike = alike
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))  # squares overflow float32
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, targets: Tensor) -> None:
        """Replace the statistics by those of targets (N, S); a single row changes nothing."""
        self.initialized.logical_and_(torch.tensor(len(targets) < 2))
        self.update(targets)

    @torch.no_grad()
    def update(self, targets: Tensor, counted: Tensor | None = None) -> None:
        """Update with targets (N, S), only the rows where `counted` (N) is true; fewer than two change nothing."""
        targets = targets.double()
        if counted is None:
            n, enough = len(targets), None
            if n < 2:
                return
            residuals = targets - targets.mean(0)
            variance = residuals.square_().sum(0) / (n - 1)  # much faster than `var`
        else:
            rows = counted.unsqueeze(-1)
            n_counted = rows.sum()
            values = torch.where(rows, targets, 0.0)
            residuals = torch.where(rows, targets - values.sum(0) / n_counted.clamp(min=1), 0.0)
            variance, enough = residuals.square().sum(0) / (n_counted - 1).clamp(min=1), n_counted >= 2
        # Weight of the new batch: 1 for the first, 0 if it is too small. A branch on a tensor would make a GPU wait.
        weight = torch.where(self.initialized, self.momentum, 1.0)
        if enough is None:
            self.initialized.fill_(True)
        else:
            weight = weight * enough
            self.initialized.logical_or_(enough)
        self.variance.lerp_(variance, weight)
        common = pooled(self.variance, self.alike)
        self.std.copy_(torch.where(common > MIN_VARIANCE, common.sqrt(), 1.0))


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
