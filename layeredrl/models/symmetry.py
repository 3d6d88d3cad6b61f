"""The symmetry-breaking start: a fixed random model that is blended into the learned one.

Skills are learned by making their outcomes predictable and distinct. At first the learned model ignores the skill, so
all skills are rewarded alike and do not become distinct. A fixed random linear map of the action, used in place of the
model, gives every skill its own target displacement until the model has learned the effects of the skills.
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

    With D = `duration`, only the random dynamics are used up to D/2 environment steps; they fade out linearly until D.

    Args:
        state_dim: Number of state dimensions S.
        action_dim: Number of action dimensions A, at most S.
        duration: Duration D in environment steps, summed over all instances.
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
        """Set `blend`, the weight of the learned network, for n environment steps; it is updated in place."""
        half = self.duration / 2
        weight = 1.0 if n >= self.duration else max(0.0, (n - half) / half)
        self.uses_map = weight < 1
        self.uses_network = weight > 0
        self.blend.fill_(weight)

    def set_transform(self, transform: Tensor) -> None:
        """Set T, shape (S, S), for instance to the inverse of a skill method's whitener."""
        if transform.shape != self.transform.shape:
            raise ValueError(f"transform has shape {tuple(transform.shape)}, expected {tuple(self.transform.shape)}")
        self.transform.copy_(transform.detach())

    def predict(self, action: Tensor, n_modes: int) -> NetOutput:
        """Predict with the random dynamics for actions (M, R, A), equal in all modes, in the network's units."""
        map_ = self.factor * (self.transform @ self.directions)
        mean = (action @ map_.mT).unsqueeze(-2).expand(-1, -1, n_modes, -1)
        weights = mean.new_full(mean.shape[:-1], 1 / n_modes)
        return NetOutput(mean, torch.full_like(mean, RANDOM_STD), weights, mean.new_zeros(mean.shape[:2]))

    def mix(self, learned: NetOutput, action: Tensor) -> NetOutput:
        """Blend the random dynamics with the network's means, standard deviations, weights and termination."""
        random = self.predict(action, learned.mean.shape[-2])
        return NetOutput(*(torch.lerp(a, b, self.blend) for a, b in zip(random, learned, strict=True)))
