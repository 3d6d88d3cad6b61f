"""Fitting of an ensemble or a reward network to a fixed set of transitions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_counts
from layeredrl.faults import NonFiniteError
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.optimizer import descend
from layeredrl.models.spaces import counted_rows


@dataclass(frozen=True)
class FitConfig:
    """Settings of one fit."""

    epochs: int = 5
    """Maximum number of passes over the data."""
    max_steps: int | None = None
    """Maximum number of optimiser steps of the ensemble, also in the first fit; the last pass may end early."""
    batch_size: int = 256
    """Number of transitions in a batch, for each member."""
    bootstrap: bool = True
    """If True, each member trains on its own transitions, drawn with replacement (PETS)."""
    holdout: float = 0.0
    """Fraction of the transitions held out from training; above 0, each member ends with its best parameters on it."""
    patience: int = 5
    """Number of epochs without improvement of any member on the holdout after which the fit stops."""
    max_skipped: int = 10
    """Maximum number of steps that a fit skips because their loss or gradient is not finite; more are an error."""

    def __post_init__(self) -> None:
        most = {} if self.max_steps is None else {"max_steps": 1}
        require_counts(self, epochs=1, batch_size=1, patience=1, max_skipped=0, **most)
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}, expected a number in [0, 1)")


@dataclass(frozen=True)
class FitResult:
    """Result of a fit."""

    loss: Tensor
    """Mean training loss of each member over the steps taken in the last epoch, (M,); NaN without any."""
    holdout_loss: Tensor | None
    """Best loss of each member on the holdout, (M,); None without holdout."""
    epochs: int
    """Number of passes over the data, including one that ended early."""
    steps: int
    """Number of optimiser steps taken."""
    skipped: int
    """Number of steps skipped because their loss or gradient was not finite."""


def fit(
    ensemble: ProbabilisticEnsemble,
    data: Batch,
    config: FitConfig,
    *,
    generator: torch.Generator,
) -> FitResult:
    """Train all members for some epochs, starting from their current parameters.

    Every member goes through the data in its own order; with `bootstrap` its data are drawn anew, with replacement, at
    every call. The statistics of inputs and targets are those of all the data and stay fixed during the fit.

    Args:
        ensemble: Ensemble with an optimiser.
        data: Keys as in `ProbabilisticEnsemble.loss`, on the ensemble's device.
        config: Settings of the fit.
        generator: Source of randomness, on the ensemble's device.

    Raises:
        NonFiniteError: More than `max_skipped` steps have a loss or gradient that is not finite; raised at the end of
            an epoch.
    """
    if ensemble.optimizer is None:
        raise RuntimeError("fit needs an optimizer: construct the ensemble with create_optimizer=True")
    rows = ensemble.spaces.training_rows(data, ensemble.dtype, ensemble.weighted_loss)
    counted = counted_rows(rows)
    if counted is not None:
        rows.pop("validity_mask", None)
        rows = {key: x[counted] for key, x in rows.items()}
    n_rows, n_members = len(rows["state"]), ensemble.n_models
    if n_rows == 0:
        raise ValueError("data has no valid row of nonzero weight, expected at least one transition to train on")
    ensemble.fit_statistics(rows)
    rows, held_out = split_holdout(rows, config.holdout, generator)
    n_rows = len(rows["state"])

    def permutations(n: int) -> Tensor:
        return torch.rand((n_members, n), generator=generator, device=ensemble.device).argsort(1)

    share = torch.arange(n_rows, device=ensemble.device).expand(n_members, -1)
    if config.bootstrap:
        share = torch.randint(n_rows, (n_members, n_rows), generator=generator, device=ensemble.device)
    n_batches = math.ceil(n_rows / config.batch_size)
    was_training = ensemble.training
    best = _BestMembers(ensemble, held_out) if held_out is not None else None
    ensemble.train()
    n_epochs, skipped, losses = 0, 0, torch.zeros(n_members)
    n_most = config.epochs * n_batches
    n_steps = n_left = n_most if config.max_steps is None else min(config.max_steps, n_most)
    while n_left:
        n_epochs += 1
        order = share.gather(1, permutations(n_rows))
        shuffled = {key: x[order] for key, x in rows.items()}
        # Chunks of equal size, because a last batch of one or two rows would be noisy.
        chunks = zip(*(x.tensor_split(n_batches, 1) for x in shuffled.values()), strict=True)
        batches = [dict(zip(shuffled, tensors, strict=True)) for tensors in islice(chunks, n_left)]
        n_left -= len(batches)
        member_losses, taken = (torch.stack(x) for x in zip(*(_step(ensemble, b) for b in batches), strict=True))
        losses = torch.where(taken.unsqueeze(1), member_losses, 0.0).sum(0) / taken.sum()
        not_taken = (~taken).nonzero().flatten().tolist()  # the only transfer from a GPU in an epoch
        skipped += len(not_taken)
        if skipped > config.max_skipped:
            i = not_taken[config.max_skipped - skipped]  # the first beyond the limit
            cause = _cause(ensemble, member_losses[i], batches[i])
            ensemble.train(was_training)
            raise NonFiniteError(f"{cause}, in batch {i} of epoch {n_epochs}")
        if best is not None and best.update() >= config.patience:
            break
    if best is not None:
        best.restore()
    ensemble.train(was_training)
    holdout_loss = None if best is None else best.losses
    return FitResult(losses, holdout_loss, n_epochs, n_steps - n_left - skipped, skipped)


def _step(ensemble: ProbabilisticEnsemble, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Take one step on rows (M, b, ...); return the members' losses before it (M,) and True if it was taken."""
    member_losses = ensemble.member_losses(batch)
    taken = ensemble.take_step(member_losses.sum() + ensemble.regularization())
    return member_losses.detach(), taken


def _cause(ensemble: ProbabilisticEnsemble, member_losses: Tensor, batch: dict[str, Tensor]) -> str:
    """Describe which members' losses or gradients are not finite, and the largest number in the batch."""
    name, members = "the loss", _listed(~member_losses.isfinite())
    if not members:  # gradients were not kept, so they are computed again with the current parameters
        loss = ensemble.member_losses(batch).sum() + ensemble.regularization()
        gradients = torch.autograd.grad(loss, list(ensemble.get_parameters()), allow_unused=True)
        bad = [~g.isfinite().flatten(1).all(1) for g in gradients if g is not None]  # members are the first dimension
        name, members = "a gradient", _listed(torch.stack(bad).any(0))
    return f"{name}{' of member ' if members else ''}{members} is not finite; {_largest(batch)}"


def _listed(members: Tensor) -> str:
    return ", ".join(map(str, members.nonzero().flatten().tolist()))


def _largest(batch: dict[str, Tensor]) -> str:
    """Describe the largest number in a batch; one that is not finite counts as larger than all others."""
    largest = {key: float(x.abs().max()) for key, x in batch.items() if x.is_floating_point() and x.numel()}
    key = max(largest, key=lambda name: largest[name] if math.isfinite(largest[name]) else math.inf)
    return f"the largest number is {largest[key]:.3g}, in {key}"


def split_holdout(
    rows: dict[str, Tensor], fraction: float, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Split rows (N, ...) at random into training rows and held-out rows; None for the latter if there are none."""
    n_rows = len(rows["state"])
    n_held_out = int(fraction * n_rows)
    if n_held_out == 0:
        return rows, None
    order = torch.randperm(n_rows, generator=generator, device=rows["state"].device)
    return (
        {key: x[order[n_held_out:]] for key, x in rows.items()},
        {key: x[order[:n_held_out]] for key, x in rows.items()},
    )


class _BestMembers:
    """Keeps the parameters with which each member had its lowest loss on the holdout."""

    def __init__(self, ensemble: ProbabilisticEnsemble, held_out: dict[str, Tensor]) -> None:
        self.ensemble = ensemble
        self.held_out = {key: x.expand(ensemble.n_models, *x.shape) for key, x in held_out.items()}
        self.parameters = [p.detach().clone() for p in ensemble.get_parameters()]
        self.losses = self._evaluate()
        self.epochs_without_gain = 0

    def update(self) -> int:
        """Evaluate the current parameters; return the number of epochs since any member improved."""
        losses = self._evaluate()
        better = losses < self.losses
        self.losses = torch.where(better, losses, self.losses)
        for kept, parameter in zip(self.parameters, self.ensemble.get_parameters(), strict=True):
            kept[better] = parameter.detach()[better]
        self.epochs_without_gain = 0 if bool(better.any()) else self.epochs_without_gain + 1
        return self.epochs_without_gain

    @torch.no_grad()
    def restore(self) -> None:
        for kept, parameter in zip(self.parameters, self.ensemble.get_parameters(), strict=True):
            parameter.copy_(kept)

    @torch.no_grad()
    def _evaluate(self) -> Tensor:
        self.ensemble.eval()
        losses = self.ensemble.member_losses(self.held_out)
        self.ensemble.train()
        return losses


class RegressionResult(NamedTuple):
    """Result of a regression."""

    loss: float
    """Mean loss over the steps taken in the last epoch; NaN without any."""
    skipped: int
    """Number of steps skipped because their loss or gradient was not finite."""


def fit_regression(
    predict: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    config: FitConfig,
    *,
    generator: torch.Generator,
) -> RegressionResult:
    """Fit the reward network by least squares for some epochs.

    Args:
        predict: Maps inputs (b, D) to predictions (b,).
        optimizer: Optimiser of the parameters of `predict`.
        inputs: Shape (N, D).
        targets: Shape (N,).
        config: Only `epochs`, `batch_size` and `max_skipped` are used.
        generator: Source of randomness, on the inputs' device.

    Raises:
        NonFiniteError: More than `max_skipped` steps have a loss or gradient that is not finite; raised at the end of
            an epoch.
    """
    n_batches = math.ceil(len(inputs) / config.batch_size)
    mean, skipped = torch.zeros(()), 0
    for epoch in range(1, config.epochs + 1):
        order = torch.randperm(len(inputs), generator=generator, device=inputs.device)
        batches = order.tensor_split(n_batches)
        steps = []
        for index in batches:
            loss = (predict(inputs[index]) - targets[index]).square().mean()
            steps.append((loss.detach(), descend(loss, optimizer)))
        losses, taken = (torch.stack(x) for x in zip(*steps, strict=True))
        mean = torch.where(taken, losses, 0.0).sum() / taken.sum()
        not_taken = (~taken).nonzero().flatten().tolist()  # the only transfer from a GPU in an epoch
        skipped += len(not_taken)
        if skipped > config.max_skipped:
            i = not_taken[config.max_skipped - skipped]  # the first beyond the limit
            cause = "a gradient of the reward network" if losses[i].isfinite() else "the reward network's loss"
            largest = _largest({"inputs": inputs[batches[i]], "targets": targets[batches[i]]})
            raise NonFiniteError(f"{cause} is not finite; {largest}, in batch {i} of epoch {epoch}")
    return RegressionResult(float(mean), skipped)
