"""SPlaTES: planning with predictable, temporally extended skills (Gürtler and Martius, RLC 2025).

Deviations from the released library: the skills are carried out by SAC instead of TD-MPC2, rewards are differences of
potentials by default, and the latent state is a part of the observation.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from agents.skills import DEBUG, IN_A_MAZE, TRAINERS, SkillAgent
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
    trainers: ClassVar[dict[str, TrainerConfig]] = TRAINERS

    def make_method(self, task: TaskSpec, device: torch.device) -> Method:
        world = self.make_world(task, device, steps=self.duration, sb_start_duration=self.sb_start_duration)
        return Method(task, world, self.duration, config=self.skills, form=self.reward)


SPlaTES.presets = {
    "demo": SPlaTES(**IN_A_MAZE, support_weight=2.0),
    "debug": SPlaTES(**DEBUG),
}
