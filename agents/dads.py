"""DADS: dynamics-aware discovery of skills (Sharma et al. 2020, arXiv 1907.01657; off-policy: arXiv 2004.12974).

Deviations from the released code: outcomes are whitened by the inverse root of their covariance instead of by batch
normalisation, the entropy coefficient is tuned, and the planner is iCEM. The model learns from the newest half of the
replay, without weights for the policy's change.
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch

from agents.skills import SkillAgent
from layeredrl.ensemble_config import EnsembleConfig
from layeredrl.levels import ExplorationConfig, PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEMConfig
from layeredrl.skills import SkillModelConfig
from layeredrl.skills.dads import DADS as Method
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig


@dataclass(frozen=True)
class DADS(SkillAgent):
    """Planning with skills of which every step is predictable."""

    presets: ClassVar[dict[str, "DADS"]]
    trainers: ClassVar[dict[str, TrainerConfig]] = {"demo": TrainerConfig(n_total_env_steps=100_000)}

    def make_method(self, task: TaskSpec, device: torch.device) -> Method:
        world = self.make_world(task, device, steps=1, repeat=self.duration)
        return Method(task, world, self.duration, config=self.skills)


DADS.presets = {
    "demo": DADS(
        model=EnsembleConfig(
            n_models=1,
            n_modes=4,
            hidden=(128, 128),
            frequencies=(pi / 2, pi, 2 * pi),  # walls are a metre apart
            weight_decay=(0.0,),
            propagation="expectation",
        ),
        skills=SkillModelConfig(std=1.0, final_std=1.0, n_priors=100),
        icem=ICEMConfig(horizon=12, n_samples=64, n_iterations=6, n_elites=10, init_std=1.0, execute="mean"),
        support_weight=0.2,  # ten times less for each of ten times as many steps
        sac=SACConfig(hidden=(64, 64), learning_rate=1e-3),
        policy=PolicyLearningConfig(n_random_steps=2000, updates_per_transition=0.5),
    ),
    "debug": DADS(
        duration=4,
        model=EnsembleConfig(n_models=1, n_modes=2, hidden=(16,), weight_decay=(0.0,)),
        skills=SkillModelConfig(n_first=24, batch_size=16, n_priors=4, refresh_every=20, report_every=20),
        icem=ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=3),
        exploration=ExplorationConfig(to_random=0.2, to_plan=0.5, n_random_steps=30),
        sac=SACConfig(hidden=(16,)),
        policy=PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10),
    ),
}
