"""DADS: dynamics-aware discovery of skills (Sharma et al. 2020, arXiv 1907.01657; off-policy: arXiv 2004.12974).

Deviations from the released code: outcomes are whitened by the inverse root of their covariance instead of by batch
normalisation, the entropy coefficient is tuned, and the planner is iCEM. The model learns from the newest half of the
replay.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.skills import DEBUG, IN_A_MAZE, ON_LEGS, TRAINERS, SkillAgent
from layeredrl.skills import SkillModelConfig
from layeredrl.skills.dads import DADS as Method
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig


@dataclass(frozen=True)
class DADS(SkillAgent):
    """Planning with skills of which every step is predictable."""

    importance_clip: float = 1.0
    """Off-policy correction: largest weight, and inverse of the smallest, of a step that the model learns from, by how
    much likelier the policy would take it now than then; 1 for none, 10 as in the paper."""

    presets: ClassVar[dict[str, "DADS"]]
    trainers: ClassVar[dict[str, TrainerConfig]] = TRAINERS

    def make_method(self, task: TaskSpec, device: torch.device) -> Method:
        weighted = self.importance_clip > 1
        world = self.make_world(task, device, steps=1, repeat=self.duration, weighted_loss=weighted)
        return Method(
            task, world, self.duration, config=self.skills, hidden=self.hidden, importance_clip=self.importance_clip
        )


DADS.presets = {
    # The support counts ten times less for each of ten times as many steps.
    "demo": DADS(**IN_A_MAZE, skills=SkillModelConfig(std=1.0, final_std=1.0), support_weight=0.2),
    "ant": DADS(**ON_LEGS, skills=SkillModelConfig(n_first=5000, std=1.0, final_std=1.0)),
    "debug": DADS(**DEBUG),
}
