"""Settings of an ensemble of Gaussian-mixture networks, and the ensemble that they describe."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from gymnasium import spaces

from layeredrl import action_spaces
from layeredrl.checks import require_finite_number, require_number
from layeredrl.models.deterministic import DeterministicEnsemble
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.models.rollout import Propagation
from layeredrl.task import StateDims

_ROLLOUT_DTYPES: dict[str, torch.dtype | Literal["auto"] | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "auto": "auto",
}


@dataclass(frozen=True)
class EnsembleConfig:
    """The ensemble and its networks."""

    n_models: int = 5
    """Members of the ensemble."""
    n_particles_per_model: int = 1
    """Particles that a rollout follows for each member."""
    n_modes: int = 1
    """Gaussians that each member mixes."""
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Widths of the hidden layers."""
    frequencies: tuple[float, ...] = ()
    """Of sines and cosines of the state that the networks see beside it, in radians per unit."""
    learning_rate: float = 1e-3
    """Of Adam."""
    weight_decay: tuple[float, ...] = (1e-4,)
    """L2 penalty: 0.5 times this times the sum of squared weights. One value, or one for each layer."""
    bound_penalty: float = 0.01
    """Weight of the penalty that pulls the bounds of the log-variance together."""
    beta_nll: float = 0.0
    """Weight of a dimension in the training loss: its predicted variance, in the unit of targets, to this power, in
    [0, 1]. Above zero, means are fitted better where the members are not sure (Seitzer et al. 2022). For one mode."""
    deterministic: bool = False
    """Whether the networks are fitted by least squares, and rollouts follow what they predict, without noise."""
    propagation: Propagation = "tsinf"
    """How rollouts follow particles: each with its member, shuffled at every step (ts1), the mean of all, or without
    noise each member's likeliest mode."""
    normalize_targets: bool = True
    """Whether predictions are scaled by the running standard deviation of what is predicted."""
    rollout_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of the matrix products in rollouts; auto takes bfloat16 where it is faster, by machine and size."""

    def __post_init__(self) -> None:
        if not self.weight_decay:
            raise ValueError("weight_decay is empty, expected one value, or one for each layer")
        for frequency in self.frequencies:
            require_finite_number("frequencies", frequency)
        require_number("beta_nll", self.beta_nll, 0, 1)
        if self.beta_nll > 0 and self.n_modes > 1:
            raise ValueError(f"beta_nll is {self.beta_nll} with n_modes {self.n_modes}, expected 0 for several modes")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected widths of at least 1")

    def build(
        self,
        state_space: spaces.Box,
        context_space: spaces.Box,
        action_space: spaces.Space[Any],
        device: torch.device,
        *,
        dims: StateDims = StateDims(),  # noqa: B008  frozen
        sb_start_duration: int = 0,
        sb_start_factor: float = 1.5,
        weighted_loss: bool = False,
    ) -> ProbabilisticEnsemble:
        """The ensemble, with its optimiser; networks are drawn from torch's global generator.

        Args:
            state_space: Of what it predicts.
            context_space: Of what it sees besides, constant in an episode.
            action_space: Of the level that plans with it.
            device: Where it computes.
            dims: Dimensions of the state that are seen or predicted in a way of their own.
            sb_start_duration: Environment steps of the symmetry-breaking start; 0 for none.
            sb_start_factor: Length of the change that it gives an action of length one.
            weighted_loss: Whether what it learns from carries weights.
        """
        kind = DeterministicEnsemble if self.deterministic else ProbabilisticEnsemble
        return kind(
            state_space,
            context_space,
            action_spaces.model_space(action_space),
            partial(
                GaussianMixtureMLP,
                hidden=self.hidden,
                bound_penalty=self.bound_penalty,
                frequencies=self.frequencies,
                angle_dims=dims.angle,
                unseen_dims=dims.unseen,
                alike_dims=dims.alike,
                fixed_std=1.0 if self.deterministic else None,  # half the squared error, beside the weight decay
            ),
            n_models=self.n_models,
            n_modes=self.n_modes,
            n_particles_per_model=self.n_particles_per_model,
            learning_rate=self.learning_rate,
            create_optimizer=True,
            device=device,
            normalize_targets=self.normalize_targets,
            absolute_dims=dims.absolute,
            alike_dims=dims.alike,
            propagation=self.propagation,
            beta_nll=self.beta_nll,
            weight_decay=self.weight_decay if len(self.weight_decay) > 1 else self.weight_decay[0],
            rollout_dtype=_ROLLOUT_DTYPES[self.rollout_dtype],
            symmetry_breaking_start=sb_start_duration > 0,
            sb_start_duration=max(sb_start_duration, 1),
            sb_start_factor=sb_start_factor,
            weighted_loss=weighted_loss,
        )
