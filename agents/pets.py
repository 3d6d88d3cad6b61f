"""PETS: probabilistic ensembles with trajectory sampling (Chua et al. 2018, arXiv 1805.12114).

Deviations from the paper: iCEM plans by default, with a handful of candidates; targets are divided by their running
standard deviation; refitting may happen within an episode.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch

from layeredrl import actions
from layeredrl.checks import require_number
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ModelLearningConfig, PlannerLevel
from layeredrl.models import FitConfig, ProbabilisticEnsemble
from layeredrl.models.rollout import Propagation
from layeredrl.nets import GaussianMixtureMLP
from layeredrl.objective import Objective
from layeredrl.planners import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Planner,
    RandomShooting,
    RandomShootingConfig,
)
from layeredrl.support import GridSupport
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, WorldModel

_ROLLOUT_DTYPES: dict[str, torch.dtype | Literal["auto"] | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "auto": "auto",
}


@dataclass(frozen=True)
class ModelConfig:
    """The ensemble and its networks."""

    n_models: int = 5
    """Members of the ensemble."""
    n_particles_per_model: int = 1
    """Particles that a rollout follows for each member."""
    n_modes: int = 1
    """Gaussians that each member mixes."""
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Widths of the hidden layers."""
    learning_rate: float = 1e-3
    """Of Adam."""
    weight_decay: tuple[float, ...] = (1e-4,)
    """L2 penalty: 0.5 times this times the sum of squared weights. One value, or one for each layer."""
    bound_penalty: float = 0.01
    """Weight of the penalty that pulls the bounds of the log-variance together."""
    propagation: Propagation = "tsinf"
    """How rollouts follow particles: each with its member, shuffled at every step (ts1), or the mean of all."""
    normalize_targets: bool = True
    """Whether predictions are scaled by the running standard deviation of what is predicted."""
    rollout_dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of the matrix products in rollouts; auto takes bfloat16 where it is faster, by machine and size."""

    def __post_init__(self) -> None:
        if not self.weight_decay:
            raise ValueError("weight_decay is empty, expected one value, or one for each layer")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden is {self.hidden}, expected widths of at least 1")


@dataclass(frozen=True)
class PETS:
    """Model-predictive control on a probabilistic ensemble."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The ensemble."""
    learning: ModelLearningConfig = field(default_factory=ModelLearningConfig)
    """When and how it is fitted."""
    planner: Literal["icem", "cem", "mppi", "random_shooting"] = "icem"
    """Which planner to use."""
    icem: ICEMConfig = field(default_factory=ICEMConfig)
    """Settings of iCEM."""
    cem: CEMConfig = field(default_factory=CEMConfig)
    """Settings of the cross-entropy method."""
    mppi: MPPIConfig = field(default_factory=MPPIConfig)
    """Settings of MPPI."""
    random_shooting: RandomShootingConfig = field(default_factory=RandomShootingConfig)
    """Settings of random shooting."""
    discount: float = 1.0
    """Per environment step, in planning."""
    uncertainty_weight: float = 0.0
    """Reward lost, in planning, for each standard deviation of the states by which the members disagree; negative: won.
    """

    support_weight: float = 0.0
    """Reward lost, in planning, at each step to a state that the data does not support: in a cell with few visits."""
    support_dims: tuple[int, ...] = ()
    """Dimensions of the state that span the grid of these cells."""
    support_cell: float = 0.25
    """Edge length of a cell, in the state's units."""

    presets: ClassVar[dict[str, "PETS"]]

    def __post_init__(self) -> None:
        require_number("discount", self.discount, 0, 1)

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task.

        Args:
            task: What is known of the environments.
            device: Where to compute.
            seed: Of fitting; the networks are drawn from torch's global generator.
        """
        encoder, model = Encoder(task), self.model
        dynamics = ProbabilisticEnsemble(
            encoder.state_space,
            encoder.context_space,
            actions.model_space(task.action_space),
            partial(GaussianMixtureMLP, hidden=model.hidden, bound_penalty=model.bound_penalty),
            n_models=model.n_models,
            n_modes=model.n_modes,
            n_particles_per_model=model.n_particles_per_model,
            learning_rate=model.learning_rate,
            create_optimizer=True,
            device=device,
            normalize_targets=model.normalize_targets,
            propagation=model.propagation,
            weight_decay=model.weight_decay if len(model.weight_decay) > 1 else model.weight_decay[0],
            rollout_dtype=_ROLLOUT_DTYPES[model.rollout_dtype],
        )
        objective = Objective(
            encoder.state_dim,
            discount=self.discount,
            uncertainty_weight=self.uncertainty_weight,
            support=GridSupport(self.support_dims, self.support_cell) if self.support_weight else None,
            support_weight=self.support_weight,
        )
        world = WorldModel(encoder, dynamics, task, objective=objective)
        level = PlannerLevel(world, self._planner(task), task.action_space, learning=self.learning, seed=seed)
        return Hierarchy([level], task, device)

    def _planner(self, task: TaskSpec) -> Planner:
        match self.planner:
            case "icem":
                return ICEM(task.action_space, self.icem)
            case "cem":
                return CEM(task.action_space, self.cem)
            case "mppi":
                return MPPI(task.action_space, self.mppi)
            case "random_shooting":
                return RandomShooting(task.action_space, self.random_shooting)


_SMALL = ModelConfig(hidden=(64, 64), learning_rate=3.5e-3, weight_decay=(6e-5,))

PETS.presets = {
    # Short horizon: nearly all good candidates tie, the planner then keeps its mean, and control stays calm.
    "demo": PETS(
        model=_SMALL,
        learning=ModelLearningConfig(
            n_random_steps=40, fit_every=10, first_epochs=100, fit=FitConfig(epochs=10, batch_size=96)
        ),
        icem=ICEMConfig(horizon=12, n_samples=48, n_iterations=2, n_elites=8),
    ),
    "debug": PETS(
        model=ModelConfig(n_models=2, hidden=(16,), weight_decay=(6e-5,)),
        learning=ModelLearningConfig(n_random_steps=20, fit_every=20, fit=FitConfig(epochs=2, batch_size=64)),
        icem=ICEMConfig(horizon=5, n_samples=12, n_iterations=2, n_elites=4),
    ),
    # The released code's settings for cart-pole. Its loss is 2 / D times ours for D state dimensions (it takes the
    # mean over dimensions and leaves the factor 1/2 out), so that its penalties count D / 2 = 2 times as much here.
    "paper": PETS(
        model=ModelConfig(
            n_particles_per_model=4,
            hidden=(500, 500, 500),
            weight_decay=(2e-4, 5e-4, 5e-4, 1e-3),
            bound_penalty=0.02,
            normalize_targets=False,
        ),
        learning=ModelLearningConfig(
            n_random_steps=200, fit_every=200, first_epochs=5, fit=FitConfig(epochs=5, batch_size=32)
        ),
        planner="cem",
        cem=CEMConfig(horizon=25, n_samples=400, n_iterations=5, n_elites=40),
    ),
}
