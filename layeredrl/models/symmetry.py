"""The symmetry-breaking start: a fixed random model that hands over to the learned one.

When skills are learned by making their outcomes predictable and distinct, the learned model at first ignores the
skill, all skills look alike, and nothing tells them apart. A fixed random linear map of the action in place of the
model gives every skill a displacement of its own to aim at, until the model has learned what the skills do.
"""

import math

import torch
from torch import Tensor, nn

from layeredrl import checks
from layeredrl.models.outputs import NetOutput

RANDOM_STD = 0.3
"""Standard deviation that the random model predicts, in the network's units."""


class SymmetryBreakingStart(nn.Module):
    """Random linear dynamics, `mean = factor * T Q action`, and the schedule of their replacement.

    With D = `duration`, the random dynamics rule up to D/2 environment steps and fade out linearly until D.

    Args:
        state_dim: S.
        action_dim: A, at most S.
        duration: D, in environment steps summed over all instances.
        factor: Length of the displacement of an action of length one.
    """

    directions: Tensor
    transform: Tensor
    blend: Tensor

    def __init__(self, state_dim: int, action_dim: int, duration: int, factor: float) -> None:
        super().__init__()
        checks.require_count("sb_start_duration", duration)
        checks.require_number("sb_start_factor", factor, 0, math.inf)
        if action_dim > state_dim:
            raise ValueError(
                "symmetry_breaking_start needs at most as many action as state dimensions, "
                f"got {action_dim} > {state_dim}"
            )
        self.duration = duration
        self.factor = factor
        # The triangular factor's signs make the orthonormal columns uniformly distributed (Mezzadri 2007).
        q, r = torch.linalg.qr(torch.randn(state_dim, action_dim))
        self.register_buffer("directions", q * r.diagonal().sign())
        self.register_buffer("transform", torch.eye(state_dim))
        self.register_buffer("blend", torch.zeros(()))
        self.set_n_total_env_steps(0)

    def set_n_total_env_steps(self, n: int) -> None:
        """Set the weight of the learned network, `blend`, for n environment steps; it is updated in place."""
        half = self.duration / 2
        weight = 1.0 if n >= self.duration else max(0.0, (n - half) / half)
        self.uses_map = weight < 1
        self.uses_network = weight > 0
        self.blend.fill_(weight)

    def set_transform(self, transform: Tensor) -> None:
        """Set T, shape (S, S): for instance the inverse of a skill method's whitener."""
        if transform.shape != self.transform.shape:
            raise ValueError(f"transform has shape {tuple(transform.shape)}, expected {tuple(self.transform.shape)}")
        self.transform.copy_(transform.detach())

    def predict(self, action: Tensor, n_modes: int) -> NetOutput:
        """The random dynamics' prediction for actions (M, R, A), alike in all modes, in the network's units."""
        map_ = self.factor * (self.transform @ self.directions)
        mean = (action @ map_.mT).unsqueeze(-2).expand(-1, -1, n_modes, -1)
        weights = mean.new_full(mean.shape[:-1], 1 / n_modes)
        return NetOutput(mean, torch.full_like(mean, RANDOM_STD), weights, mean.new_zeros(mean.shape[:2]))

    def mix(self, learned: NetOutput, action: Tensor) -> NetOutput:
        """Blend the random dynamics with what the network predicts: means, deviations, weights, termination."""
        random = self.predict(action, learned.mean.shape[-2])
        return NetOutput(*(torch.lerp(a, b, self.blend) for a, b in zip(random, learned, strict=True)))
