"""Fitting of a reward network to a fixed set of transitions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from layeredrl.faults import NonFiniteError
from layeredrl.models.fitting import FitConfig, TrainingOrder, largest_number
from layeredrl.models.optimizer import descend


class RegressionResult(NamedTuple):
    """Result of a regression."""

    loss: float
    """Mean loss over the steps taken in the last epoch; NaN without any."""
    skipped: int
    """Number of steps skipped because their loss or gradient was not finite."""


def fit_regression(
    take: Callable[[Tensor], tuple[Tensor, Tensor]],
    n_rows: int,
    predict: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    *,
    generator: torch.Generator,
) -> RegressionResult:
    """Fit the reward network by least squares for some epochs, to rows that are read in batches.

    Args:
        take: Maps indices (b,) to inputs (b, D) and targets (b,).
        n_rows: Number of rows N, at least one.
        predict: Maps inputs (b, D) to predictions (b,).
        optimizer: Optimiser of the parameters of `predict`.
        config: Only `epochs`, `max_steps`, `batch_size` and `max_skipped` are used.
        generator: Source of randomness, on the rows' device.

    Raises:
        NonFiniteError: More than `max_skipped` steps have a loss or gradient that is not finite; raised at the end of
            an epoch.
    """
    train = TrainingOrder(n_rows, config)
    mean, skipped, n_left, epoch = torch.zeros(()), 0, train.n_steps, 0
    while n_left:
        epoch += 1
        if train.is_partial:
            batches = [index[0] for index in next(train.passes(1, generator, bootstrap=False))]
        else:
            order = torch.randperm(n_rows, generator=generator, device=generator.device)
            batches = list(order.tensor_split(train.n_batches)[:n_left])
        n_left -= len(batches)
        steps = []
        for index in batches:
            inputs, targets = take(index)
            loss = (predict(inputs) - targets).square().mean()
            steps.append((loss.detach(), descend(loss, optimizer)))
        losses, taken = (torch.stack(x) for x in zip(*steps, strict=True))
        mean = torch.where(taken, losses, 0.0).sum() / taken.sum()
        not_taken = (~taken).nonzero().flatten().tolist()  # the only transfer from a GPU in an epoch
        skipped += len(not_taken)
        if skipped > config.max_skipped:
            i = not_taken[config.max_skipped - skipped]  # the first beyond the limit
            cause = "a gradient of the reward network" if losses[i].isfinite() else "the reward network's loss"
            largest = largest_number(dict(zip(("inputs", "targets"), take(batches[i]), strict=True)))
            raise NonFiniteError(f"{cause} is not finite; {largest}, in batch {i} of epoch {epoch}")
    return RegressionResult(float(mean), skipped)
