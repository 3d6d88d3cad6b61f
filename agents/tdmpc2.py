"""TD-MPC2: planning in a learned latent space (Hansen et al. 2024, arXiv 2310.16828).

Deviations from the released code: terminations are probabilities, which weight what follows instead of cutting it off;
the last steps of an episode are learned from too, with what lies beyond left out; plans end in the value of the
policy's most probable action, not of a sampled one, by critics drawn with every update, not with every iteration; the
entropy is that of the squashed policy; at most 2,500 steps are random by default, or 5,000 with actions that persist
where uniform ones find no reward, and tasks of many actions get no more iterations than others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from agents.recipe import Choice, Recipe
from layeredrl.environments import TaskFacts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import LatentLevel
from layeredrl.planners import CEMConfig, ICEMConfig, MPPIConfig, PlannerConfig, RandomShootingConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import LatentConfig, LatentLearningConfig, LatentWorldModel
from layeredrl.world_model.latent import SIZES

_SEARCH = {"n_samples": 64, "n_iterations": 6, "n_elites": 16}
"""Search of few candidates, for one core; fewer iterations cost more of the return than fewer candidates."""


def _mppi(**search: int) -> PlannerConfig:
    """MPPI of the paper, whose temperature multiplies scores, ours divides; other planners with as many candidates."""
    return PlannerConfig(
        "mppi",
        mppi=MPPIConfig(horizon=3, temperature=2.0, temperature_unit="score", init_std=2.0, execute="sample", **search),
        icem=ICEMConfig(horizon=3, **search),
        cem=CEMConfig(horizon=3, **search),
        random_shooting=RandomShootingConfig(horizon=3, n_samples=search["n_samples"] * search["n_iterations"]),
    )


@dataclass(frozen=True)
class TDMPC2(Recipe):
    """A latent world model with critics and a policy, learned jointly, in which MPPI plans a few steps.

    Sizes: `tiny` and `small` are for CPUs, `released` is that of the paper's single tasks, for GPUs.
    """

    latent: LatentConfig = field(default_factory=lambda: LatentConfig.of("small"))
    """Networks of the world model."""
    learning: LatentLearningConfig = field(default_factory=LatentLearningConfig)
    """When and how they learn."""
    planner: PlannerConfig = field(default_factory=lambda: _mppi(n_samples=128, n_iterations=6, n_elites=24))
    """Planner and its settings."""
    n_proposals: int = 12
    """Number of the policy's sequences among the planner's candidates."""
    spread: float = 1.0
    """Factor of the search's final standard deviation, in the noise of actions while exploring; planners that end
    without one, such as random shooting, add no noise."""

    environment: ClassVar[str] = "Pendulum-v1"
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {
        "demo": TrainerConfig(n_total_env_steps=4_000),
        "tiny": TrainerConfig(n_total_env_steps=50_000, checkpoint_every=5_000),
        "small": TrainerConfig(n_total_env_steps=50_000, checkpoint_every=5_000),
        "released": TrainerConfig(n_total_env_steps=500_000, checkpoint_every=10_000),
    }

    @classmethod
    def suited(cls, facts: TaskFacts) -> list[Choice]:
        """Settings that suit a task, on one core."""
        steps = facts.episode_steps or 1000
        longest, ends = steps / 5, facts.ends_after is not None
        discount = min(max((longest - 1) / longest, 0.95), 0.99 if ends else 0.995)
        known, short = facts.termination_known, facts.state_dim <= 6 and steps <= 200
        length = f"{facts.state_dim} observation dimensions" if facts.state_dim > 6 else f"{steps} steps an episode"
        return [
            *(Choice(f"latent.{name}", value, "one core") for name, value in SIZES["tiny"].items()),
            Choice("latent.discount", discount, f"{steps} steps an episode"),
            Choice("latent.terminations", ends or known, "episodes end" if ends or known else "none ended"),
            Choice("learning.rho", 0.7 if ends else 0.5, "episodes end" if ends else "none ended"),
            *_random_actions(steps, silent=facts.silent),
            Choice("learning.batch_size", 128, "one core"),
            *(
                Choice(f"planner.{kind}.{name}", value, "one core")
                for kind in ("mppi", "icem", "cem")
                for name, value in _SEARCH.items()
            ),
            Choice("planner.random_shooting.n_samples", _SEARCH["n_samples"] * _SEARCH["n_iterations"], "one core"),
            Choice("n_proposals", 8, "few candidates"),
            Choice("trainer.n_total_env_steps", 10_000 if short else 50_000, length),
        ]

    def build(self, task: TaskSpec, device: torch.device, *, seed: int) -> Hierarchy:
        """Wire the agent for a task; networks are drawn from torch's global generator.

        Args:
            task: The task of the environments.
            device: Device of the agent.
            seed: Seed of learning and replay.
        """
        world = LatentWorldModel(task, self.latent, device, encoder=self.make_encoder)
        planner = self.planner.build(task.action_space)
        level = LatentLevel(
            world,
            planner,
            self.learning,
            n_proposals=self.n_proposals,
            spread=self.spread if planner.ends_with_std else 0.0,
            seed=seed,
        )
        return Hierarchy([level], task, device)

    def make_encoder(self, n_observed: int, width: int) -> nn.Module:
        """The network from flat observations (n, O) to (n, S); a subclass may bring another one."""
        return self.latent.make_encoder(n_observed, width)


def _random_actions(steps: int, *, silent: bool) -> list[Choice]:
    """Random steps before the first update; more, and of actions that persist, where uniform ones find no reward."""
    if not silent:
        return [Choice("learning.n_random_steps", min(max(1000, 5 * steps), 2500), f"{steps} steps an episode")]
    reason = "random actions found no reward"
    n_steps = min(max(1000, 10 * steps), 5000)
    return [Choice("learning.n_random_steps", n_steps, reason), Choice("learning.persistence", 0.9, reason)]


_CPU: dict[str, Any] = {
    "latent": LatentConfig.of("tiny", terminations=True),
    "learning": LatentLearningConfig(batch_size=128),
    "planner": _mppi(**_SEARCH),
    "n_proposals": 8,
}

TDMPC2.presets = {
    "demo": _CPU,
    "tiny": _CPU,
    "small": {"latent": LatentConfig.of("small", terminations=True)},
    "released": {
        "latent": LatentConfig(terminations=True),
        "planner": _mppi(n_samples=488, n_iterations=6, n_elites=64),
        "n_proposals": 24,
    },
    "debug": {
        "latent": replace(
            LatentConfig.of("tiny"), latent_dim=16, encoder_hidden=(16,), hidden=(16,), terminations=True
        ),
        "learning": LatentLearningConfig(n_random_steps=20, batch_size=16, report_every=20, first_updates=5),
        "planner": _mppi(n_samples=12, n_iterations=2, n_elites=4),
        "n_proposals": 4,
    },
}
