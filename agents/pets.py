"""PETS: probabilistic ensembles with trajectory sampling (Chua et al. 2018, arXiv 1805.12114).

Deviations from the paper: iCEM plans by default, with a handful of candidates; targets are divided by their running
standard deviation; refitting may happen within an episode.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from layeredrl.checks import require_number
from layeredrl.ensemble_config import EnsembleConfig
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ModelLearningConfig, PlannerLevel
from layeredrl.models import FitConfig
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


@dataclass(frozen=True)
class PETS:
    """Model-predictive control on a probabilistic ensemble."""

    model: EnsembleConfig = field(default_factory=EnsembleConfig)
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
    """Reward lost, in planning without exploration, at each step to a state in a cell with few visits by the data."""
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
        encoder = Encoder(task)
        dynamics = self.model.build(encoder.state_space, encoder.context_space, task.action_space, device)
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


_SMALL = EnsembleConfig(hidden=(64, 64), learning_rate=3.5e-3, weight_decay=(6e-5,))

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
        model=EnsembleConfig(n_models=2, hidden=(16,), weight_decay=(6e-5,)),
        learning=ModelLearningConfig(n_random_steps=20, fit_every=20, fit=FitConfig(epochs=2, batch_size=64)),
        icem=ICEMConfig(horizon=5, n_samples=12, n_iterations=2, n_elites=4),
    ),
    # The released code's settings for cart-pole. Its loss is 2 / D times ours for D state dimensions (it takes the
    # mean over dimensions and leaves the factor 1/2 out), so that its penalties count D / 2 = 2 times as much here.
    "paper": PETS(
        model=EnsembleConfig(
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
