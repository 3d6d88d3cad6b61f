"""DADS: dynamics-aware discovery of skills (Sharma et al. 2020, arXiv 1907.01657; off-policy: arXiv 2004.12974).

Every step is paid for what it tells of the skill, by a model of single steps. A planner holds each skill for its
duration, and lets the model predict all its steps.
"""

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.replay import Replay
from layeredrl.skills.model_based import ModelBasedSkills

LOWEST = -50.0
"""Of a reward: where the model thinks an outcome impossible, its logarithm knows no bounds. As in the released code."""


class DADS(ModelBasedSkills):
    """Skills of which every step is predictable; the world's dynamics leads from one step to the next."""

    def reward(self, batch: Batch) -> Tensor:
        before, context = self.world.encode(batch.obs)
        after, _ = self.world.encode(batch.obs_next)
        return self.potentials(before, context, batch.command.action, [after])[0].clamp(min=LOWEST)

    def segments(self, replay: Replay, n: int) -> Batch:
        rows, device = replay.rows(replay.newest(n, self.config.newest)), self.dynamics.device
        return Batch(
            obs=torch.as_tensor(rows.obs, device=device),
            act=torch.as_tensor(rows.info.command.action, device=device),
            obs_next=torch.as_tensor(rows.obs_next, device=device),
        )
