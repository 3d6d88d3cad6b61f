"""SPlaTES: planning with predictable, temporally extended skills (Gürtler and Martius, RLC 2025).

Deviations from the released library: the skills are carried out by SAC instead of TD-MPC2, rewards are differences of
potentials by default, and the latent state is a part of the observation.
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar, Literal

import torch

from agents.skills import SkillAgent
from layeredrl.ensemble_config import EnsembleConfig
from layeredrl.levels import ExplorationConfig, PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.planners import ICEMConfig
from layeredrl.skills import SkillModelConfig
from layeredrl.skills.splates import SPlaTES as Method
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig


@dataclass(frozen=True)
class SPlaTES(SkillAgent):
    """Planning with skills of which the outcome is predictable."""

    reward: Literal["difference", "end"] = "difference"
    """Whether every step is paid by how much more its state tells of the skill, or the last one for the outcome."""
    sb_start_duration: int = 0
    """Environment steps of the symmetry-breaking start; 0 for none."""

    presets: ClassVar[dict[str, "SPlaTES"]]
    trainers: ClassVar[dict[str, TrainerConfig]] = {"demo": TrainerConfig(n_total_env_steps=100_000)}

    def make_method(self, task: TaskSpec, device: torch.device) -> Method:
        world = self.make_world(task, device, steps=self.duration, sb_start_duration=self.sb_start_duration)
        return Method(task, world, self.duration, config=self.skills, form=self.reward)


SPlaTES.presets = {
    "demo": SPlaTES(
        model=EnsembleConfig(
            n_models=1,
            n_modes=4,
            hidden=(128, 128),
            frequencies=(pi / 2, pi, 2 * pi),  # walls are a metre apart
            weight_decay=(0.0,),
            propagation="expectation",
        ),
        icem=ICEMConfig(horizon=12, n_samples=64, n_iterations=6, n_elites=10, init_std=1.0, execute="mean"),
        support_weight=2.0,
        sac=SACConfig(hidden=(64, 64), learning_rate=1e-3),
        policy=PolicyLearningConfig(n_random_steps=2000, updates_per_transition=0.5),
    ),
    "debug": SPlaTES(
        duration=4,
        model=EnsembleConfig(n_models=1, n_modes=2, hidden=(16,), weight_decay=(0.0,)),
        skills=SkillModelConfig(n_first=24, batch_size=16, n_priors=4, refresh_every=20, report_every=20),
        icem=ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=3),
        exploration=ExplorationConfig(to_random=0.2, to_plan=0.5, n_random_steps=30),
        sac=SACConfig(hidden=(16,)),
        policy=PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10),
    ),
}
