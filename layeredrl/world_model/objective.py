"""The objective of planning: the score of a rollout."""

from collections.abc import Callable

import torch
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl.checks import require_finite_number, require_number
from layeredrl.models import Model
from layeredrl.models.normalization import Moments, scale_of
from layeredrl.models.rollout import moments
from layeredrl.world_model.support import Support


class Objective(nn.Module):
    """Discounted reward while alive, minus penalties on epistemic uncertainty, plus the value of the last state.

    With a negative weight the first penalty is a bonus, which counts while exploring alone.

    The score of a sequence is the expectation of sum_t discount^t alive_t (reward_t - penalties_t), where alive_t is
    the probability of being alive before step t, plus discount^H alive_H value(last state).

    Args:
        state_dim: Width S of the state.
        discount: Discount per step of the rollout.
        value: Value of the last state: (..., S), context (..., C) -> (...); None for zero.
        uncertainty_weight: Penalty for each unit of `disagreement` at a step; negative for a bonus while exploring.
        support: Measure of which states the data supports.
        support_weight: Penalty for each step to an unsupported state; not while exploring, which needs such states.

    Attributes:
        state_scale: Standard deviation of the states in the data, (S,); ones until `fit_statistics`.
    """

    state_scale: Tensor

    def __init__(
        self,
        state_dim: int,
        *,
        discount: float = 1.0,
        value: Callable[[Tensor, Tensor], Tensor] | None = None,
        uncertainty_weight: float = 0.0,
        support: Support | None = None,
        support_weight: float = 0.0,
    ) -> None:
        super().__init__()
        require_number("discount", discount, 0, 1)
        for name, weight in (("uncertainty_weight", uncertainty_weight), ("support_weight", support_weight)):
            require_finite_number(name, weight)
        if support_weight and support is None:
            raise ValueError(f"support_weight is {support_weight}, but support is None, expected a Support")
        if support is not None:
            support.check(state_dim)
        self.discount = discount
        self.value = value
        self.uncertainty_weight = uncertainty_weight
        self.support = support
        self.support_weight = support_weight
        self.register_buffer("state_scale", torch.ones(state_dim))

    def check(self, dynamics: Model) -> None:
        """Raise unless the dynamics can tell what the objective asks for."""
        if not self.uncertainty_weight:
            return
        if dynamics.n_models == 1:
            raise ValueError(
                f"uncertainty_weight is {self.uncertainty_weight}, but the dynamics has one member, expected several"
            )
        propagation = getattr(dynamics, "propagation", "tsinf")
        if propagation not in ("tsinf", "mode"):
            raise ValueError(
                f"uncertainty_weight is {self.uncertainty_weight}, but with the propagation {propagation!r} particles "
                "do not stay with their member, expected 'tsinf' or 'mode'"
            )

    @torch.no_grad()
    def fit_statistics(self, state: Tensor) -> None:
        """Take from all states of the data (N, S) what is needed of them: their scale, and what they support."""
        self.set_scale(Moments.of(state))
        if self.support is not None:
            self.support.fit(state)

    @torch.no_grad()
    def set_scale(self, state: Moments) -> None:
        """Set the scale to that of states with these moments; see `scale_of`."""
        std = state.variance.sqrt()
        self.state_scale.copy_(scale_of(std, state.mean.abs()))

    def forward(self, rollout: Batch, context: Tensor, *, exploring: bool = False) -> Tensor:
        """Score each particle of a rollout.

        Args:
            rollout: Keys `state` (B, M, P, H+1, S), and `reward`, `alive` and `term_prob` (B, M, P, H).
            context: (B, C).
            exploring: If True, the penalty on unsupported states is left out, and a bonus on disagreement counts.

        Returns:
            Shape (B, M, P).
        """
        after, gain = rollout.state[..., 1:, :], rollout.reward
        if self.uncertainty_weight > 0 or (self.uncertainty_weight and exploring):
            gain = gain - self.uncertainty_weight * self.disagreement(after).unsqueeze(1)
        if self.support is not None and self.support_weight and not exploring:
            gain = gain - self.support_weight * self.support(after)
        total: Tensor = (self._weights(rollout) * gain).sum(-1)
        if self.value is not None:
            last = after[..., -1, :]
            value = self.value(last, context[:, None, None].expand(*last.shape[:-1], -1))
            survival = rollout.alive[..., -1] * (1 - rollout.term_prob[..., -1])
            total = total + self.discount ** after.shape[-2] * survival * value
        return total

    def rewards(self, rollout: Batch) -> Tensor:
        """Discounted reward while alive of each particle, (B, M, P), and nothing else; arguments as of `forward`."""
        total: Tensor = (self._weights(rollout) * rollout.reward).sum(-1)
        return total

    def _weights(self, rollout: Batch) -> Tensor:
        """Weight of the reward of each step, (B, M, P, H)."""
        alive: Tensor = rollout.alive
        if self.discount == 1:
            return alive
        steps = torch.arange(alive.shape[-1], dtype=alive.dtype, device=alive.device)
        return alive * self.discount**steps

    def disagreement(self, states: Tensor) -> Tensor:
        """Disagreement between members, in standard deviations of the states in the data.

        Particle p draws the same noise in every member, so that members that agree have none.

        Args:
            states: (B, M, P, H, S).

        Returns:
            Root of the mean over dimensions of the variance over members, (B, P, H).
        """
        variance = moments(states / self.state_scale, 1)[1]
        return variance.mean(-1).sqrt()
