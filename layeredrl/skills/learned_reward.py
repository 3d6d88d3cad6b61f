"""The task's reward, learned from what skills brought, where it is not known as a function of the state."""

from collections.abc import Mapping
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.models.nets import ScalarMLP
from layeredrl.models.optimizer import descend, restore_optimizer
from layeredrl.world_model import LearnedEncoder, WorldModel


class LearnedReward:
    """Fits a world's `reward_net`, and its encoder along with it where that is learned, by least squares.

    Args:
        world: Whose reward.
        net: That of the world.
        learning_rate: Of Adam.
    """

    def __init__(self, world: WorldModel, net: ScalarMLP, learning_rate: float) -> None:
        self.world, self.net, self.rate = world, net, learning_rate
        self.encoder = world.encoder if isinstance(world.encoder, LearnedEncoder) else None
        parameters = [*net.parameters(), *(() if self.encoder is None else self.encoder.parameters())]
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)

    def learn(self, segments: Batch, factor: float) -> Tensor:
        """One step down the gradient.

        Args:
            segments: As of `ModelBasedSkills.segments`.
            factor: Of the learning rate.

        Returns:
            Mean squared error in variances of the reward, a scalar.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        error = self.net.normalized(self._inputs(segments)) - self.net.to_units(segments.rew)
        loss = error.square().mean()
        descend(loss, self.optimizer)
        if self.encoder is not None:
            self.encoder.normalize()
        return loss.detach()

    @torch.no_grad()
    def fit_scales(self, segments: Batch) -> None:
        """Take the statistics of inputs and rewards."""
        self.net.fit_scales(self._inputs(segments), segments.rew)

    def _inputs(self, segments: Batch) -> Tensor:
        """What the network sees, (n, I), with gradients for an encoder that is learned."""
        encode = self.world.encoder if self.encoder is None else self.encoder.with_gradients
        state, context = encode(segments.obs)
        state_next, _ = encode(segments.obs_next)
        skill = action_spaces.features(self.world.task.action_space, segments.act, state.dtype)
        return torch.cat([state, context, skill, state_next], -1)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimiser; the network and the encoder are the world's."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        restore_optimizer("the skill reward's optimizer", self.optimizer, state)
