"""MBPO: a policy learned in a learned model (Janner et al. 2019, arXiv 1906.08253).

Deviations from the paper: the reward has a network of its own, and the termination is learned too, where the task does
not give them; fits are bounded in steps and go on from the parameters before; policy and critics see standardised
observations; imagined transitions are discounted by the predicted probability that the episode goes on; branches may
end where the model is not trusted any more (MACURA, Infoprop) instead of by a schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from agents.imagined_policy import policy_choices
from agents.recipe import Choice, Recipe
from layeredrl.checks import require_number, require_reward_scale
from layeredrl.environments import TaskFacts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import ImaginingLevel, PolicyLearningConfig
from layeredrl.models import FitConfig
from layeredrl.models.config import EnsembleConfig
from layeredrl.off_policy import SACConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import (
    Encoder,
    Imagination,
    ImaginationConfig,
    ModelLearningConfig,
    WorldModel,
    WorldModelLearner,
)

_UNUSED = {
    **dict.fromkeys(("model.propagation", "model.rollout_dtype", "model.n_particles_per_model"), "nothing is planned"),
    "fitting.max_failed_plans": "nothing is planned",
    "fitting.replay_size": "the only replay has learning.replay_size transitions",
}
"""Settings without effect, and why."""
_DEFAULTS: dict[str, Any] = {"model": EnsembleConfig(), "fitting": ModelLearningConfig()}


@dataclass(frozen=True)
class MBPO(Recipe):
    """A policy that learns from imagined transitions.

    The presets "paper" (Hopper-v5), "halfcheetah-paper" and "walker2d-paper" have the settings of the released code.
    """

    model: EnsembleConfig = field(default_factory=EnsembleConfig)
    """The ensemble."""
    fitting: ModelLearningConfig = field(default_factory=ModelLearningConfig)
    """When and how it is fitted; its replay is the policy's. Actions are random until both this and `learning` have
    had their `n_random_steps`."""
    imagination: ImaginationConfig = field(default_factory=ImaginationConfig)
    """How much and how far to imagine."""
    sac: SACConfig = field(default_factory=SACConfig)
    """The policy and its critics."""
    learning: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how they learn."""
    real_share: float = 0.05
    """Share of real transitions in a batch of the policy."""
    reward_scale: float | None = None
    """Factor of rewards in the policy's updates; None for one over the root mean square of those before the first fit,
    at most one."""

    environment: ClassVar[str] = "Pendulum-v1"
    environments: ClassVar[Mapping[str, str]] = {
        "paper": "Hopper-v5",
        "halfcheetah-paper": "HalfCheetah-v5",
        "walker2d-paper": "Walker2d-v5",
    }
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {
        "demo": TrainerConfig(n_total_env_steps=1_200),
        "paper": TrainerConfig(n_total_env_steps=125_000, checkpoint_every=5_000),
        "halfcheetah-paper": TrainerConfig(n_total_env_steps=400_000, checkpoint_every=5_000),
        "walker2d-paper": TrainerConfig(n_total_env_steps=300_000, checkpoint_every=5_000),
    }

    def __post_init__(self) -> None:
        require_number("real_share", self.real_share, 0, 1)
        require_reward_scale(self.reward_scale)
        for path, reason in _UNUSED.items():
            part, name = path.split(".")
            given, usual = (getattr(settings, name) for settings in (getattr(self, part), _DEFAULTS[part]))
            if given != usual:
                raise ValueError(f"{path} is {given}, expected {usual}: mbpo does not use it, {reason}")

    @classmethod
    def suited(cls, facts: TaskFacts) -> list[Choice]:
        """Settings that suit a task, on one core."""
        small, size = facts.state_dim <= 6, f"{facts.state_dim} observation dimensions"
        return [
            Choice("model.hidden", (64, 64) if small else (200, 200, 200), size),
            Choice("model.learning_rate", 2e-3, "few steps in each fit"),
            Choice("model.weight_decay", (3e-5,), "little data"),
            Choice("model.beta_nll", 0.5, "means matter more than variances"),
            Choice("fitting.n_random_steps", 400 if small else 1000, size),
            Choice("fitting.fit_every", 125, "the model follows within an episode"),
            Choice("fitting.first_epochs", 50, "from random weights"),
            Choice("fitting.fit.epochs", 50, "little data"),
            Choice("fitting.fit.max_steps", 200, "the same cost at all times"),
            Choice("fitting.fit.batch_size", 128, "speed"),
            *policy_choices(facts, sac="sac", fitting="fitting"),
            Choice("sac.critic_layer_norm", True, "many updates for each step"),
            Choice("learning.n_random_steps", 400 if small else 1000, size),
            Choice("learning.updates_per_transition", 10.0, "imagined transitions allow many"),
            Choice("learning.report_every", 250, "two fits"),
            Choice("trainer.n_total_env_steps", 3_000 if small else 40_000, size),
        ]

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task; networks are drawn from torch's global generator.

        Args:
            task: The task of the environments.
            device: Device of the agent.
            seed: Seed of fits, imagination and replay.
        """
        encoder = Encoder(task)
        dims = task.dims.among(encoder.state_index.tolist())
        dynamics = self.model.build(encoder.state_space, encoder.context_space, task.action_space, device, dims=dims)
        world = WorldModel(encoder, dynamics, task, termination_net=self.fitting.make_termination(encoder, task))
        level = ImaginingLevel(
            self.sac.build(task.observation_dim, task.action_space, device),
            task.action_space,
            WorldModelLearner(world, self.fitting, seed=seed),
            Imagination(world, self.imagination, self.sac.discount, seed=seed),
            real_share=self.real_share,
            reward_scale=self.reward_scale,
            learning=self.learning,
            seed=seed,
        )
        return Hierarchy([level], task, device)


def _paper(n_states: int, n_steps: tuple[int, int], updates: int, target_entropy: float) -> dict[str, Any]:
    """Settings of the released code; its ensemble stops early on a holdout, and uses the best five of seven members.

    Its loss is 2 / D times ours for its D = S + 1 targets, the reward's included (it takes the mean over them and
    leaves the factor 1/2 out), so that its penalties count D / 2 times as much here. All its members share the bounds
    of the variances, whose penalty counts once for all.
    """
    factor, n_models = (n_states + 1) / 2, 7
    return {
        "model": EnsembleConfig(
            n_models=n_models,
            weight_decay=tuple(factor * decay for decay in (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)),
            bound_penalty=factor * 0.01 / n_models,
            normalize_targets=False,
        ),
        "fitting": ModelLearningConfig(
            n_random_steps=5000,
            fit_every=250,
            first_epochs=100,
            fit=FitConfig(epochs=100, holdout=0.2),
        ),
        "imagination": ImaginationConfig(n_branches=100_000, n_steps=n_steps, schedule=(20_000, 150_000)),
        "sac": SACConfig(target_entropy=target_entropy),
        "learning": PolicyLearningConfig(n_random_steps=5000, updates_per_transition=float(updates)),
        "reward_scale": 1.0,
    }


MBPO.presets = {
    # Pendulum-v1 within a minute or two.
    "demo": {
        "model": EnsembleConfig(hidden=(64, 64), learning_rate=2e-3, weight_decay=(3e-5,), beta_nll=0.5),
        "fitting": ModelLearningConfig(
            n_random_steps=400,
            fit_every=125,
            first_epochs=50,
            fit=FitConfig(epochs=50, max_steps=200, batch_size=128),
        ),
        "sac": SACConfig(
            hidden=(64, 64), learning_rate=1e-3, initial_alpha=0.1, target_entropy=-0.5, critic_layer_norm=True
        ),
        "learning": PolicyLearningConfig(n_random_steps=400, updates_per_transition=10.0, report_every=250),
    },
    "debug": {
        "model": EnsembleConfig(n_models=2, hidden=(16,), weight_decay=(6e-5,)),
        "fitting": ModelLearningConfig(n_random_steps=20, fit_every=20, fit=FitConfig(epochs=2, batch_size=64)),
        "imagination": ImaginationConfig(n_branches=50, n_steps=(1, 3)),
        "sac": SACConfig(hidden=(16,)),
        "learning": PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10, replay_size=10_000),
    },
    "paper": _paper(11, (1, 15), 20, -1.0),
    "halfcheetah-paper": _paper(17, (1, 1), 40, -3.0),
    "walker2d-paper": _paper(17, (1, 1), 20, -3.0),
}
