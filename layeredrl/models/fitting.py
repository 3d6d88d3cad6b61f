"""Fitting of an ensemble to a fixed set of transitions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_counts
from layeredrl.faults import NonFiniteError
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.normalization import CHUNK
from layeredrl.models.spaces import counted_rows


@dataclass(frozen=True)
class FitConfig:
    """Settings of one fit."""

    epochs: int = 5
    """Maximum number of passes over the data."""
    max_steps: int | None = None
    """Maximum number of optimiser steps of the ensemble, and of each other network that is fitted with it, also in the
    first fit; the last pass may end early."""
    batch_size: int = 256
    """Number of transitions in a batch, for each member."""
    bootstrap: bool = True
    """If True, each member trains on its own transitions, drawn with replacement (PETS)."""
    holdout: float = 0.0
    """Fraction of the transitions held out from training; above 0, each member ends with its best parameters on it.
    Networks of reward, termination and value have no holdout, and then take as many steps as the ensemble took."""
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


class TrainingRows(Protocol):
    """Training rows that a fit reads batch by batch."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Rows at indices (...): `state` (..., S), `context`, `act`, `state_next`, `terminated` (...), and so on."""
        ...

    def fit_statistics(self, ensemble: ProbabilisticEnsemble) -> None:
        """Set the ensemble's statistics of inputs and targets to those of all the rows."""
        ...


class _BatchRows:
    """The valid rows of nonzero weight of a training batch."""

    def __init__(self, ensemble: ProbabilisticEnsemble, data: Batch) -> None:
        rows = ensemble.spaces.training_rows(data, ensemble.dtype, ensemble.weighted_loss)
        counted = counted_rows(rows)
        if counted is not None:
            rows.pop("validity_mask", None)
            rows = {key: x[counted] for key, x in rows.items()}
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows["state"])

    def take(self, index: Tensor) -> dict[str, Tensor]:
        return {key: x[index] for key, x in self.rows.items()}

    def fit_statistics(self, ensemble: ProbabilisticEnsemble) -> None:
        ensemble.fit_statistics(self.rows)


def fit(
    ensemble: ProbabilisticEnsemble,
    data: Batch | TrainingRows,
    config: FitConfig,
    *,
    generator: torch.Generator,
) -> FitResult:
    """Train all members for some epochs, starting from their current parameters.

    Every member goes through the data in its own order; with `bootstrap` its data are drawn anew, with replacement, at
    every call. The statistics of inputs and targets are those of all the data and stay fixed during the fit. If
    `max_steps` ends the first pass over the data, only the rows that are used are drawn, and the holdout has at most as
    many rows as a member trains on: the fit then takes as long with a million rows as with ten thousand, but for the
    statistics.

    Args:
        ensemble: Ensemble with an optimiser.
        data: Keys as in `ProbabilisticEnsemble.loss`, on the ensemble's device; or rows that are read in batches.
        config: Settings of the fit.
        generator: Source of randomness, on the ensemble's device.

    Raises:
        NonFiniteError: More than `max_skipped` steps have a loss or gradient that is not finite; raised at the end of
            an epoch.
    """
    if ensemble.optimizer is None:
        raise RuntimeError("fit needs an optimizer: construct the ensemble with create_optimizer=True")
    rows: TrainingRows = _BatchRows(ensemble, data) if isinstance(data, Batch) else data
    if not len(rows):
        raise ValueError("data has no valid row of nonzero weight, expected at least one transition to train on")
    rows.fit_statistics(ensemble)
    train, held_out = split_holdout(len(rows), config, generator)
    n_left = train.n_steps
    was_training = ensemble.training
    best = None if held_out is None else _BestMembers(ensemble, rows.take(held_out))
    ensemble.train()
    n_epochs, skipped, losses = 0, 0, torch.zeros(ensemble.n_models)
    for index in train.passes(ensemble.n_models, generator, bootstrap=config.bootstrap):
        n_epochs += 1
        n_left -= len(index)
        steps = (_step(ensemble, rows.take(i)) for i in index)
        member_losses, taken = (torch.stack(x) for x in zip(*steps, strict=True))
        losses = torch.where(taken.unsqueeze(1), member_losses, 0.0).sum(0) / taken.sum()
        not_taken = (~taken).nonzero().flatten().tolist()  # the only transfer from a GPU in an epoch
        skipped += len(not_taken)
        if skipped > config.max_skipped:
            i = not_taken[config.max_skipped - skipped]  # the first beyond the limit
            cause = _cause(ensemble, member_losses[i], rows.take(index[i]))
            ensemble.train(was_training)
            raise NonFiniteError(f"{cause}, in batch {i} of epoch {n_epochs}")
        if best is not None and best.update() >= config.patience:
            break
    if best is not None:
        best.restore()
    ensemble.train(was_training)
    holdout_loss = None if best is None else best.losses
    return FitResult(losses, holdout_loss, n_epochs, train.n_steps - n_left - skipped, skipped)


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
    return f"{name}{' of member ' if members else ''}{members} is not finite; {largest_number(batch)}"


def _listed(members: Tensor) -> str:
    return ", ".join(map(str, members.nonzero().flatten().tolist()))


def largest_number(batch: dict[str, Tensor]) -> str:
    """Describe the largest number in a batch; one that is not finite counts as larger than all others."""
    largest = {key: float(x.abs().max()) for key, x in batch.items() if x.is_floating_point() and x.numel()}
    key = max(largest, key=lambda name: largest[name] if math.isfinite(largest[name]) else math.inf)
    return f"the largest number is {largest[key]:.3g}, in {key}"


class TrainingOrder:
    """The rows that training uses, and the order in which it does.

    Args:
        n_rows: Number of rows N.
        config: Settings of the fit.
        held_out: Indices of rows that are left out, if only some of the others are drawn, (h,); None for none.
        kept: Indices of all rows that are used, if they are known; None for all that are not held out.
    """

    def __init__(
        self, n_rows: int, config: FitConfig, *, held_out: Tensor | None = None, kept: Tensor | None = None
    ) -> None:
        self.kept, self.gaps = kept, None
        if held_out is not None:
            n_rows -= len(held_out)
            # Place p of the remaining rows is row p plus the number of rows left out before it.
            self.gaps = held_out.sort().values - torch.arange(len(held_out), device=held_out.device)
        self.n_rows = n_rows if kept is None else len(kept)
        self.n_batches = math.ceil(self.n_rows / config.batch_size)
        n_most = config.epochs * self.n_batches
        self.n_steps = n_most if config.max_steps is None else min(config.max_steps, n_most)

    @property
    def is_partial(self) -> bool:
        """True if training ends within the first pass over the rows."""
        return self.n_steps < self.n_batches

    def passes(self, n_members: int, generator: torch.Generator, *, bootstrap: bool) -> Iterator[Sequence[Tensor]]:
        """Indices (M, b) of the rows of each batch, for each pass over the data, the last of which may end early.

        Batches are of equal size, because a last batch of one or two rows would be noisy.
        """
        n, m, device = self.n_rows, n_members, generator.device
        if self.is_partial:
            size, larger = divmod(n, self.n_batches)
            sizes = [size + (i < larger) for i in range(self.n_steps)]
            if bootstrap:  # the first draws of an order of independent draws are independent draws
                order = torch.randint(n, (m, sum(sizes)), generator=generator, device=device)
            else:
                order = torch.stack([draw_distinct(n, sum(sizes), generator) for _ in range(m)])
            yield self._rows(order).split_with_sizes(sizes, 1)
            return
        share = torch.arange(n, device=device).expand(m, -1)
        if bootstrap:
            share = torch.randint(n, (m, n), generator=generator, device=device)
        n_left = self.n_steps
        while n_left:
            order = share.gather(1, torch.rand((m, n), generator=generator, device=device).argsort(1))
            batches = self._rows(order).tensor_split(self.n_batches, 1)[:n_left]
            n_left -= len(batches)
            yield batches

    def _rows(self, places: Tensor) -> Tensor:
        """Rows at places in [0, n_rows)."""
        if self.kept is not None:
            return self.kept[places]
        if self.gaps is None:
            return places
        return places + torch.searchsorted(self.gaps, places, right=True)


def draw_distinct(n: int, k: int, generator: torch.Generator) -> Tensor:
    """Draw k of the numbers below n without replacement, in random order, (k,); the cost depends on k alone."""
    device = generator.device
    if 2 * k >= n:
        return torch.randperm(n, generator=generator, device=device)[:k]
    found = torch.empty(0, dtype=torch.int64, device=device)
    while len(found) < k:  # nearly always once
        drawn = torch.randint(n, (2 * k + 16,), generator=generator, device=device)
        found = cast(Tensor, torch.unique(drawn))
    return found[torch.randperm(len(found), generator=generator, device=device)[:k]]


def split_holdout(n_rows: int, config: FitConfig, generator: torch.Generator) -> tuple[TrainingOrder, Tensor | None]:
    """Split N rows at random into training rows and held-out rows.

    Returns:
        The order of training, and the indices of held-out rows (h,), or None if there are none.
    """
    n_held_out = int(config.holdout * n_rows)
    if n_held_out == 0:
        return TrainingOrder(n_rows, config), None
    train = TrainingOrder(n_rows - n_held_out, config)
    if train.is_partial:
        held_out = draw_distinct(n_rows, min(n_held_out, train.n_steps * config.batch_size), generator)
        return TrainingOrder(n_rows, config, held_out=held_out), held_out
    order = torch.randperm(n_rows, generator=generator, device=generator.device)
    return TrainingOrder(n_rows, config, kept=order[n_held_out:]), order[:n_held_out]


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
        n = self.held_out["state"].shape[1]
        parts = [{key: x[:, i : i + CHUNK] for key, x in self.held_out.items()} for i in range(0, n, CHUNK)]
        shares = [part["state"].shape[1] / n for part in parts]
        losses = [share * self.ensemble.member_losses(part) for share, part in zip(shares, parts, strict=True)]
        self.ensemble.train()
        return torch.stack(losses).sum(0)
