"""Learning of a reward that is not known, and of an encoder along with it."""

from collections.abc import Mapping
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.models import FitConfig
from layeredrl.models.nets import ScalarMLP
from layeredrl.models.normalization import Moments
from layeredrl.models.optimizer import descend, restore_optimizer
from layeredrl.models.regression import RegressionResult, fit_regression
from layeredrl.world_model.transitions import Transitions
from layeredrl.world_model.world_model import WorldModel


class RewardLearner:
    """Fits the `reward_net` of a world model, and an encoder with parameters along with it, by least squares.

    Args:
        world: The world model.
        net: Its reward network.
        learning_rate: Learning rate of Adam.
    """

    def __init__(self, world: WorldModel, net: ScalarMLP, learning_rate: float) -> None:
        self.world, self.net, self.learning_rate = world, net, learning_rate
        parameters = [*net.parameters(), *world.encoder.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)

    @torch.no_grad()
    def moments(self, data: Batch) -> dict[str, Moments]:
        """Moments of a part of the transitions, to be merged for `fit`."""
        return {"reward_inputs": Moments.of(self._inputs(data)), "reward": Moments.of(data.rew.unsqueeze(-1))}

    def fit(
        self, data: Transitions, moments: dict[str, Moments], config: FitConfig, generator: torch.Generator
    ) -> RegressionResult:
        """Train the reward network for some epochs; the encoder stays.

        Args:
            data: Transitions, as of `WorldModelLearner`.
            moments: Merged results of `moments` for all of them.
            config: Epochs, steps, batch size and the like.
            generator: Source of randomness.
        """
        self.net.set_scales(moments["reward_inputs"], moments["reward"])

        @torch.no_grad()
        def take(index: Tensor) -> tuple[Tensor, Tensor]:
            rows = data.take(index)
            return self._inputs(rows), self.net.to_units(rows.rew)

        return fit_regression(take, len(data), self.net.normalized, self.optimizer, config, generator=generator)

    def step(self, data: Batch, rate_factor: float) -> Tensor:
        """Take one gradient step.

        Args:
            data: Transitions, as of `WorldModelLearner`.
            rate_factor: Factor of the learning rate.

        Returns:
            Mean squared error, in units of the reward's variance, a scalar.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_factor
        error = self.net.normalized(self._inputs(data)) - self.net.to_units(data.rew)
        loss = error.square().mean()
        descend(loss, self.optimizer)
        self.world.encoder.normalize()
        return loss.detach()

    @torch.no_grad()
    def fit_scales(self, data: Batch) -> None:
        """Take the statistics of inputs and rewards."""
        self.net.fit_scales(self._inputs(data), data.rew)

    def _inputs(self, data: Batch) -> Tensor:
        """Inputs of the network, (N, I), with gradients for the parameters of the encoder."""
        state, context = self.world.encoder.with_gradients(data.obs)
        state_next, _ = self.world.encoder.with_gradients(data.obs_next)
        action = action_spaces.features(self.world.task.action_space, data.act, state.dtype)
        return torch.cat([state, context, action, state_next], -1)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimiser; network and encoder belong to the world model."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        restore_optimizer("the reward's optimizer", self.optimizer, state)
