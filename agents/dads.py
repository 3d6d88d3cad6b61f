"""DADS: dynamics-aware discovery of skills (Sharma et al. 2020, arXiv 1907.01657; off-policy: arXiv 2004.12974).

Deviations from the released code: outcomes are whitened by the inverse root of their covariance instead of by batch
normalisation, an outcome is compared with 16 skills from the prior instead of 100, the entropy coefficient is tuned,
and the planner is iCEM. The model learns from the newest half of the replay.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.skills import DEBUG, IN_A_MAZE, ON_LEGS, TRAINERS, SkillAgent
from layeredrl.levels import ExplorationConfig
from layeredrl.planners import ICEMConfig, PlannerConfig
from layeredrl.skills import DADS, SkillModelConfig
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig


@dataclass(frozen=True)
class DADSAgent(SkillAgent):
    """Planning with skills of predictable steps."""

    importance_clip: float = 1.0
    """Off-policy correction: largest importance weight, and inverse of the smallest, of a step that the model learns
    from; 1 for none, 10 as in the paper."""

    trainers: ClassVar[Mapping[str, TrainerConfig]] = TRAINERS

    def make_method(self, task: TaskSpec, device: torch.device) -> DADS:
        weighted = self.importance_clip > 1
        world = self.make_world(task, device, steps=1, repeat=self.duration, weighted_loss=weighted)
        return DADS(
            task,
            world,
            self.duration,
            config=self.skills,
            hidden=self.hidden,
            at_end=self.at_end,
            importance_clip=self.importance_clip,
        )


# The model takes ten steps for each skill: a search as wide as that of SPlaTES would take ten times as long.
_PLANNING = {
    "planner": PlannerConfig(
        icem=ICEMConfig(horizon=12, n_samples=64, n_iterations=6, n_elites=10, init_std=1.0, execute="mean")
    ),
    "exploration": ExplorationConfig(to_random=0.1, to_plan=0.3, n_random_steps=20_000),
}

DADSAgent.presets = {
    # The support counts ten times less for each of ten times as many steps.
    "demo": {**IN_A_MAZE | _PLANNING, "skills": SkillModelConfig(std=1.0, final_std=1.0), "support_weight": 0.2},
    "ant": {**ON_LEGS | _PLANNING, "skills": SkillModelConfig(n_first=5000, std=1.0, final_std=1.0)},
    "debug": {**DEBUG},
}
