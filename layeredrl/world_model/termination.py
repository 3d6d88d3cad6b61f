"""Learning of a termination that is not known, from the states in which episodes end."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor
from torch.nn import functional

from layeredrl.faults import NonFiniteError
from layeredrl.models import FitConfig
from layeredrl.models.fitting import TrainingOrder
from layeredrl.models.nets import TerminationMLP
from layeredrl.models.normalization import Moments
from layeredrl.models.optimizer import descend, restore_optimizer
from layeredrl.models.regression import RegressionResult
from layeredrl.world_model.transitions import Transitions
from layeredrl.world_model.world_model import WorldModel

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
"""Settings of AdamW. Without the decay, the cross-entropy of falls in later episodes of Hopper-v5 nearly doubles."""


class TerminationLearner:
    """Fits the `termination_net` of a world model, by batches of which half are terminations.

    Among transitions they are rare, one in hundreds. Balanced batches multiply the odds by a constant factor, by which
    predictions are corrected (King and Zeng 2001, *Logistic Regression in Rare Events Data*, section 4.1).

    Args:
        world: The world model.
        net: Its termination network.
    """

    def __init__(self, world: WorldModel, net: TerminationMLP) -> None:
        self.world, self.net = world, net
        self.optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    @torch.no_grad()
    def moments(self, data: Batch) -> dict[str, Moments]:
        """Moments of a part of the transitions, to be merged for `fit`."""
        return {"termination_inputs": Moments.of(self._inputs(data))}

    def fit(
        self, data: Transitions, moments: dict[str, Moments], config: FitConfig, generator: torch.Generator
    ) -> RegressionResult:
        """Train the network, from its parameters so far; its loss is NaN without any termination.

        Args:
            data: Transitions, as of `WorldModelLearner`.
            moments: Merged results of `moments` for all of them.
            config: Epochs, steps, batch size, and the number of steps that may be skipped.
            generator: Source of randomness.

        Raises:
            NonFiniteError: More steps than `max_skipped` have a loss or gradient that is not finite.
        """
        ended, n_rows = data.terminated(), len(data)
        self.net.set_odds(len(ended), n_rows)
        if not len(ended):  # also if they have left the replay: the network stays as it is, and so do its inputs
            return RegressionResult(math.nan, 0)
        self.net.inputs.set(moments["termination_inputs"])
        half, steps = (max(1, config.batch_size // 2),), []
        for _ in range(TrainingOrder(n_rows, config).n_steps):
            which, others = (
                torch.randint(n, half, generator=generator, device=generator.device) for n in (len(ended), n_rows)
            )
            rows = data.take(torch.cat([ended[which], others]))
            logit, target = self.net.logit(self._inputs(rows)), rows.terminated.float()
            loss = functional.binary_cross_entropy_with_logits(logit, target)
            steps.append((loss.detach(), descend(loss, self.optimizer)))
        losses, taken = (torch.stack(x) for x in zip(*steps, strict=True))
        skipped = int((~taken).sum())
        if skipped > config.max_skipped:
            raise NonFiniteError(
                f"the termination network's loss or gradient is not finite in {skipped} steps of a fit"
            )
        return RegressionResult(float(torch.where(taken, losses, 0.0).sum() / taken.sum()), skipped)

    def _inputs(self, data: Batch) -> Tensor:
        """Inputs of the network, (N, I)."""
        _, context = self.world.encode(data.obs)
        return torch.cat([self.world.encode(data.obs_next)[0], context], -1)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser; the network belongs to the world model."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        restore_optimizer("the termination's optimizer", self.optimizer, state)


def make_termination_learner(world: WorldModel, *, by_state: bool) -> TerminationLearner | None:
    """The learner of a world model's termination network; None without one.

    Args:
        world: The world model.
        by_state: True if terminations that are not known are to be learned from the state that is reached.

    Raises:
        ValueError: The world model lacks the network, or has one that is not to be learned.
    """
    net = world.termination_net
    if by_state and net is None and world.task.termination is None:
        raise ValueError("termination is 'next_state', expected 'dynamics': the world model has no termination network")
    if net is not None and not by_state:
        raise ValueError("the world model has a termination network, expected the `termination` 'next_state' to fit it")
    return None if net is None else TerminationLearner(world, net)
