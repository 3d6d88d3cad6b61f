"""PETS: probabilistic ensembles with trajectory sampling (Chua et al. 2018, arXiv 1805.12114).

Deviations from the paper: iCEM plans by default, with a handful of candidates; targets are divided by their running
standard deviation; refitting may happen within an episode; dimensions that a task says are alike are standardised
alike, with the released settings too; all candidates of a decision may meet the same noise; a dimension's loss may be
weighted by its variance (`beta_nll`), particles may follow their members without noise (`propagation="mode"`), and
plans may end in a learned value (`value`), or be guided by a policy and its critics (`guided`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from agents.guidance import GuidanceConfig
from agents.recipe import Choice, Recipe
from layeredrl.checks import require_number
from layeredrl.environments import TaskFacts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.models import FitConfig, ProbabilisticEnsemble
from layeredrl.models.config import EnsembleConfig
from layeredrl.planners import CEMConfig, ICEMConfig, Planner, PlannerConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import (
    Encoder,
    GridSupport,
    ModelLearningConfig,
    Objective,
    ValueConfig,
    ValueLearner,
    ValueNet,
    WorldModel,
    WorldModelLearner,
)


@dataclass(frozen=True)
class PETS(Recipe):
    """Model-predictive control on a probabilistic ensemble.

    Presets of PETS' own tasks as `envs` has them, cartpole, reacher, pusher and halfcheetah, have the settings of the
    released code ("-paper") or those of a small budget ("-fast").
    """

    model: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The ensemble."""
    learning: ModelLearningConfig = field(default_factory=ModelLearningConfig)
    """When and how it is fitted."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Planner and its settings."""
    common_noise: bool = False
    """If True, all candidates of a decision are rolled out with the same noise, so that fewer particles rank them."""
    discount: float = 1.0
    """Discount per environment step, in planning."""
    value: bool = False
    """If True, plans end in a learned value of their last state, so that planning sees beyond its horizon; needs a
    discount below 1."""
    value_learning: ValueConfig = field(default_factory=ValueConfig)
    """Network of the value, and how it learns at each fit."""
    guided: bool = False
    """If True, a policy and its critics are learned as well: plans end in the critics' value, with the critics'
    discount, whatever `value` and `discount` are, and the policy proposes candidates."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """How these learn, and how they guide."""
    uncertainty_weight: float = 0.0
    """Penalty, in planning, for each standard deviation of the states between members; negative for a bonus while
    exploring."""

    support_weight: float = 0.0
    """Penalty, in planning without exploration, for each step to a state in a cell with few visits in the data."""
    support_dims: tuple[int, ...] = ()
    """Dimensions of the state that span the grid of these cells."""
    support_cell: float = 0.25
    """Edge length of a cell, in the state's units."""

    environments: ClassVar[Mapping[str, str]] = {
        f"{name}-{size}": f"PETS{env}-v0"
        for name, env in (
            ("cartpole", "Cartpole"),
            ("reacher", "Reacher"),
            ("pusher", "Pusher"),
            ("halfcheetah", "HalfCheetah"),
        )
        for size in ("paper", "fast")
    }

    def __post_init__(self) -> None:
        require_number("discount", self.discount, 0, 1)
        if not self.guided and self.guidance != GuidanceConfig():
            raise ValueError("guidance has settings, but guided is False; expected guided to be True")

    @classmethod
    def suited(cls, facts: TaskFacts) -> list[Choice]:
        """Settings that suit a task, on one core; measured in `experiments/results/first_try.md`."""
        return _suited(facts)

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task.

        Args:
            task: The task of the environments.
            device: Device of the agent.
            seed: Seed of fits and replay; networks are drawn from torch's global generator.
        """
        encoder = Encoder(task)
        dynamics = self.make_dynamics(encoder, task, device)
        value = None if self.guided else self.make_value(encoder, device)
        objective = Objective(
            encoder.state_dim,
            discount=self.guidance.sac.discount if self.guided else self.discount,
            value=None if value is None else value.net,
            uncertainty_weight=self.uncertainty_weight,
            support=GridSupport(self.support_dims, self.support_cell) if self.support_weight else None,
            support_weight=self.support_weight,
        )
        termination = self.learning.make_termination(encoder, task)
        world = WorldModel(encoder, dynamics, task, objective=objective, termination_net=termination)
        learner = WorldModelLearner(world, self.learning, value=value, seed=seed)
        planner, common_noise = self.make_planner(task), self.common_noise
        level: PlannerLevel
        if self.guided:
            level = self.guidance.build(learner, planner, device, common_noise=common_noise, seed=seed)
        else:
            level = PlannerLevel(
                world, planner, task.action_space, common_noise=common_noise, learner=learner, seed=seed
            )
        return Hierarchy([level], task, device)

    def make_value(self, encoder: Encoder, device: torch.device) -> ValueLearner | None:
        """The learner of the value at the end of plans; a subclass may bring another one."""
        if not self.value:
            return None
        net = ValueNet(encoder.state_dim + encoder.context_dim, self.value_learning, device)
        return ValueLearner(net, encoder, self.discount, self.value_learning)

    def make_dynamics(self, encoder: Encoder, task: TaskSpec, device: torch.device) -> ProbabilisticEnsemble:
        """The ensemble; a subclass may make it of other networks."""
        dims = task.dims.among(encoder.state_index.tolist())
        return self.model.build(encoder.state_space, encoder.context_space, task.action_space, device, dims=dims)

    def make_planner(self, task: TaskSpec) -> Planner:
        """The planner; a subclass may bring another one."""
        return self.planner.build(task.action_space)


def _suited(facts: TaskFacts) -> list[Choice]:
    """Settings for a task: small networks, frequent fits of few steps, few candidates, and a value where plans end.

    In short episodes that nothing ends, the horizon shows enough, and a value that is not learned yet misleads.
    """
    small, size = facts.state_dim <= 6, f"{facts.state_dim} observation dimensions"
    far = facts.silent or facts.ends_after is not None or (facts.episode_steps or 1000) > 200
    soon = facts.ends_after is not None and facts.ends_after < 15
    hidden = (64, 64) if small else (128, 128) if facts.state_dim <= 12 else (200, 200, 200)
    every = 20 if facts.state_dim <= 12 else 50
    horizon = 40 if facts.silent else 15 if facts.ends_after is not None or (far and not small) else 20
    choices = [
        Choice("model.hidden", hidden, size),
        Choice("model.learning_rate", 2e-3, "few steps in each fit"),
        Choice("model.weight_decay", (3e-5,), "little data"),
        Choice("model.rollout_dtype", "auto", "speed"),
        Choice("learning.n_random_steps", min(facts.episode_steps or 1000, 200 if small else 500), size),
        Choice("learning.fit_every", every, "the model follows within an episode"),
        Choice("learning.first_epochs", 50, "from random weights"),
        Choice("learning.fit.epochs", 50, "little data"),
        Choice("learning.fit.max_steps", 2 * every, "the same cost at all times"),
        Choice("learning.fit.batch_size", 128, "speed"),
        Choice(
            "planner.icem.horizon",
            horizon,
            "no reward in random steps" if facts.silent else "plans end in a value" if far else "short episodes",
        ),
        Choice("planner.icem.n_samples", 64, "speed"),
        Choice("common_noise", True, "few candidates"),
        Choice("value", far, "rewards beyond the horizon" if far else "short episodes"),
        Choice("discount", 0.99 if far else 1.0, "rewards beyond the horizon" if far else "short episodes"),
        Choice("trainer.n_total_env_steps", 3000 if small else 10_000 if facts.state_dim <= 12 else 30_000, size),
    ]
    if not small:
        choices += [
            Choice("model.beta_nll", 0.5, "means matter more than variances"),
            Choice("model.propagation", "mode", "many dimensions"),
        ]
    if facts.state_dim > 12 or not (small or far):
        choices.append(Choice("planner.icem.execute", "mean", "calm actions"))
    if soon:
        choices.append(Choice("planner.icem.init_std", 0.3, "random actions end episodes soon"))
    elif not (small or far):
        choices.append(Choice("planner.icem.init_std", 0.25, "calm actions"))
    if facts.silent:
        choices += [
            Choice("uncertainty_weight", -1.0, "random actions found no reward"),
            Choice("planner.icem.noise_exponent", 2.0, "no reward in random steps"),
        ]
    return choices


_SMALL = EnsembleConfig(hidden=(64, 64), learning_rate=3.5e-3, weight_decay=(6e-5,))


def _released(n_states: int, episode: int, model: EnsembleConfig, cem: CEMConfig) -> dict[str, Any]:
    """The released code's settings for a task.

    Its loss is 2 / D times ours for D state dimensions (it takes the mean over dimensions and leaves the factor 1/2
    out), so that its penalties count D / 2 times as much here. All its members share the bounds of the variances,
    whose penalty counts once for all.
    """
    factor = n_states / 2
    model = replace(
        model,
        n_particles_per_model=4,
        weight_decay=tuple(factor * decay for decay in model.weight_decay),
        bound_penalty=factor * 0.01 / model.n_models,
        normalize_targets=False,
    )
    learning = ModelLearningConfig(
        n_random_steps=episode, fit_every=episode, first_epochs=5, fit=FitConfig(epochs=5, batch_size=32)
    )
    return {"model": model, "learning": learning, "planner": PlannerConfig("cem", cem=cem)}


def _fast(learning: ModelLearningConfig, model: EnsembleConfig, icem: ICEMConfig) -> dict[str, Any]:
    """A small budget: few candidates, small networks, but fits within an episode."""
    learning = replace(learning, first_epochs=50)
    return {
        "model": replace(model, rollout_dtype="auto"),
        "learning": learning,
        "planner": PlannerConfig(icem=icem),
        "common_noise": True,
    }


_CARTPOLE_PAPER = _released(
    4,
    200,
    EnsembleConfig(hidden=(500, 500, 500), weight_decay=(1e-4, 2.5e-4, 2.5e-4, 5e-4)),
    CEMConfig(horizon=25, n_samples=400, n_elites=40),
)

PETS.presets = {
    # Short horizon: nearly all good candidates tie, the planner then keeps its mean, and control stays calm.
    "demo": {
        "model": _SMALL,
        "learning": ModelLearningConfig(
            n_random_steps=40, fit_every=10, first_epochs=100, fit=FitConfig(epochs=10, max_steps=100, batch_size=96)
        ),
        "planner": PlannerConfig(icem=ICEMConfig(horizon=12, n_samples=48, n_iterations=2, n_elites=8)),
    },
    "debug": {
        "model": EnsembleConfig(n_models=2, hidden=(16,), weight_decay=(6e-5,)),
        "learning": ModelLearningConfig(
            n_random_steps=20, fit_every=20, replay_size=10_000, fit=FitConfig(epochs=2, batch_size=64)
        ),
        "planner": PlannerConfig(icem=ICEMConfig(horizon=3, n_samples=12, n_iterations=2, n_elites=4)),
    },
    "paper": _CARTPOLE_PAPER,
    "cartpole-paper": _CARTPOLE_PAPER,
    "reacher-paper": _released(
        17,
        150,
        EnsembleConfig(
            hidden=(200, 200, 200, 200),
            learning_rate=7.5e-4,
            weight_decay=(2.5e-4, 5e-4, 5e-4, 5e-4, 7.5e-4),
        ),
        CEMConfig(horizon=25, n_samples=400, n_elites=40),
    ),
    "pusher-paper": _released(
        20,
        150,
        EnsembleConfig(hidden=(200, 200, 200), weight_decay=(2.5e-4, 5e-4, 5e-4, 7.5e-4)),
        CEMConfig(horizon=25, n_samples=500, n_elites=50),
    ),
    "halfcheetah-paper": _released(
        18,
        1000,
        EnsembleConfig(hidden=(200, 200, 200, 200), weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)),
        CEMConfig(horizon=30, n_samples=500, n_elites=50),
    ),
    # A horizon of 15 is too short for the swing; with 25 or 30 the returns are a little lower.
    "cartpole-fast": _fast(
        ModelLearningConfig(n_random_steps=200, fit_every=25, fit=FitConfig(epochs=5, batch_size=64)),
        EnsembleConfig(hidden=(64, 64), learning_rate=3e-3, weight_decay=(3e-5,)),
        ICEMConfig(horizon=20, n_samples=48, n_iterations=2, n_elites=8),
    ),
    "reacher-fast": _fast(
        ModelLearningConfig(n_random_steps=150, fit_every=50, fit=FitConfig(epochs=5, batch_size=128)),
        EnsembleConfig(hidden=(128, 128, 128), learning_rate=2e-3, weight_decay=(3e-5,)),
        ICEMConfig(
            horizon=25,
            n_samples=64,
            n_iterations=3,
            n_elites=10,
            init_std=0.15,  # of 20 N m: with 0.5, and the best candidate, noise costs more than being at the goal wins
            noise_exponent=2.0,
            execute="mean",
        ),
    ),
    "pusher-fast": _fast(
        ModelLearningConfig(n_random_steps=150, fit_every=50, fit=FitConfig(epochs=10, max_steps=100, batch_size=64)),
        # Without beta_nll the few steps in which the object moves pass for noise.
        EnsembleConfig(hidden=(128, 128, 128), learning_rate=2e-3, weight_decay=(1e-3,), beta_nll=0.5),
        ICEMConfig(
            horizon=25,
            n_samples=100,
            n_iterations=3,
            n_elites=10,
            init_std=0.25,  # with 0.12 and 48 x 2 candidates -78 with true dynamics, with this -41 and -46
            noise_exponent=2.0,
            execute="mean",
        ),
    ),
    "halfcheetah-fast": _fast(
        ModelLearningConfig(
            n_random_steps=1000, fit_every=250, fit=FitConfig(epochs=20, max_steps=250, batch_size=128)
        ),
        EnsembleConfig(
            hidden=(200, 200, 200), learning_rate=2e-3, weight_decay=(1e-3,), beta_nll=0.5, propagation="mode"
        ),
        # With shorter and smoother plans some runs end on its back, with true dynamics too.
        ICEMConfig(horizon=30, n_samples=80, n_iterations=3, n_elites=12, noise_exponent=0.25, execute="mean"),
    ),
}

# One episode of random actions, and as many planned ones as in the released code; fast presets stop earlier.
PETS.trainers = {
    "cartpole-paper": TrainerConfig(n_total_env_steps=51 * 200),
    "reacher-paper": TrainerConfig(n_total_env_steps=101 * 150),
    "pusher-paper": TrainerConfig(n_total_env_steps=101 * 150),
    "halfcheetah-paper": TrainerConfig(n_total_env_steps=301 * 1000, checkpoint_every=10_000),
    "cartpole-fast": TrainerConfig(n_total_env_steps=3000),
    "reacher-fast": TrainerConfig(n_total_env_steps=40 * 150),
    "pusher-fast": TrainerConfig(n_total_env_steps=50 * 150),
    "halfcheetah-fast": TrainerConfig(n_total_env_steps=50_000, checkpoint_every=5_000),
}
