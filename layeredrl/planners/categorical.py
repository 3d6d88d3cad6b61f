"""Categorical distributions over sequences of discrete actions."""

import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from layeredrl.action_spaces import choices, width
from layeredrl.planners.noise import colored_noise, colored_noise_basis
from layeredrl.planners.search import Belief, Search, weighted_mean


class Categorical(Search):
    """Independent categorical distributions over C choices, one for each step and action dimension.

    A draw is the argmax of log p + Gumbel noise. The Gumbel noise is a monotone transform of normal noise, which may be
    correlated over time: the larger the exponent, the more often a sequence repeats an action. The probabilities of
    each single step stay exact.

    Args:
        space: Discrete, or MultiDiscrete of shape (A,), starting at zero.
        horizon: Length H of the sequences.
        uniform_share: Weight of the uniform distribution in the initial probabilities of a decision.
        noise_exponent: Exponent of the normal noise's power spectrum over time; 0 is white.
    """

    def __init__(
        self,
        space: Discrete | MultiDiscrete,
        horizon: int,
        uniform_share: float,
        noise_exponent: float = 0.0,
    ) -> None:
        width(space)  # raises for a space that is not flat
        counts, starts = choices(space)
        if any(starts):
            raise ValueError(f"action space is {space}, expected one that starts at 0")
        self.horizon = horizon
        self.uniform_share = uniform_share
        self.n_choices = torch.as_tensor(counts)
        possible = torch.arange(max(counts)) < self.n_choices.unsqueeze(1)
        self.uniform = possible / self.n_choices.unsqueeze(1)  # (A, C)
        self._basis = colored_noise_basis(horizon, noise_exponent) if noise_exponent else None

    def initial_center(self, n_envs: int, device: torch.device) -> Tensor:
        return self.uniform.to(device).repeat(n_envs, self.horizon, 1, 1)

    def begin(self, center: Tensor) -> Belief:
        self.uniform = self.uniform.to(center.device)
        return Belief(torch.lerp(center, self.uniform.expand_as(center), self.uniform_share), None)

    def sample(self, belief: Belief, n: int, generator: torch.Generator) -> Tensor:
        e, h, a, c = belief.center.shape
        if self._basis is not None:
            self._basis = self._basis.to(generator.device)
        uniform = torch.special.ndtr(colored_noise((e, n, h, a * c), self._basis, generator))
        gumbel = -(-uniform.clamp(1e-7, 1 - 1e-7).log()).log()
        actions: Tensor = (belief.center.log().unsqueeze(1) + gumbel.view(e, n, h, a, c)).argmax(-1)
        return actions

    def refit(self, belief: Belief, sequences: Tensor, weights: Tensor | None, momentum: float) -> Belief:
        chosen = F.one_hot(sequences, belief.center.shape[-1]).to(belief.center.dtype)
        return Belief(torch.lerp(weighted_mean(chosen, weights), belief.center, momentum), None)

    def sequence(self, center: Tensor) -> Tensor:
        return center.argmax(-1)

    def inside(self, sequences: Tensor) -> Tensor:
        self.n_choices = self.n_choices.to(sequences.device)
        return torch.minimum(sequences.long().clamp(min=0), self.n_choices - 1)

    def largest_variance(self, belief: Belief) -> Tensor:
        """Largest variance of the indicator of a choice, (E,)."""
        return (belief.center * (1 - belief.center)).flatten(1).amax(1)
