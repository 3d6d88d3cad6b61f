"""Settings of an ensemble of Gaussian-mixture networks, and its construction."""

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
    """Settings of the ensemble and its networks."""

    n_models: int = 5
    """Number of ensemble members."""
    n_particles_per_model: int = 1
    """Number of particles that a rollout follows for each member."""
    n_modes: int = 1
    """Number of Gaussians in each member's mixture."""
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Widths of the hidden layers."""
    frequencies: tuple[float, ...] = ()
    """Frequencies of the sines and cosines of the state that are extra network inputs, in radians per unit."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    weight_decay: tuple[float, ...] = (1e-4,)
    """L2 penalty: 0.5 times this times the sum of squared weights. One value, or one for each layer."""
    bound_penalty: float = 0.01
    """Weight of the penalty that pulls the bounds of the log-variance together."""
    beta_nll: float = 0.0
    """Exponent in [0, 1]: the training loss weights each dimension by its predicted variance, in normalised units, to
    this power. Above 0, means are fitted better where the variance is large (Seitzer et al. 2022). Needs one mode."""
    deterministic: bool = False
    """If True, fit the networks by least squares, and let rollouts follow the predicted mean without noise."""
    propagation: Propagation = "tsinf"
    """Propagation of particles in rollouts: each stays with its member (tsinf), they are shuffled over members at every
    step (ts1), they follow the mean over members (expectation), or their member's likeliest mode without noise (mode).
    """
    predicts: Literal["change", "next"] = "change"
    """Target of the networks: the change in state, or the next state itself, which has less variance where the
    state changes much in a step (Barkley and Fridovich-Keil 2025, arXiv 2510.01457)."""
    normalize_targets: bool = True
    """If True, scale predictions by the running standard deviation of their targets."""
    rollout_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of the matrix products in rollouts; auto uses bfloat16 where it is faster on this machine at this size."""

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
        """Build the ensemble with its optimiser; networks are initialised from torch's global generator.

        Args:
            state_space: Space of the predicted state.
            context_space: Space of the context, which is constant in an episode.
            action_space: Action space of the level that plans with the model.
            device: Device of the parameters.
            dims: Dimensions of the state with a special treatment as inputs or targets.
            sb_start_duration: Environment steps of the symmetry-breaking start; 0 for none.
            sb_start_factor: Length of the change in state that the start's random map gives an action of length one.
            weighted_loss: If True, training batches carry weights.
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
            predict_delta=self.predicts == "change",
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
