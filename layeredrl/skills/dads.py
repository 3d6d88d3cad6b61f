"""DADS: dynamics-aware discovery of skills (Sharma et al. 2020, arXiv 1907.01657; off-policy: arXiv 2004.12974).

Every step is paid for what it tells of the skill, by a model of single steps. A planner holds each skill for its
duration, and lets the model predict all its steps.
"""

import math
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_number
from layeredrl.skills.model_based import ModelBasedSkills
from layeredrl.storage import Replay

LOWEST = -50.0
"""Of a reward: where the model thinks an outcome impossible, its logarithm knows no bounds. As in the released code."""


class DADS(ModelBasedSkills):
    """Skills of which every step is predictable; the world's dynamics leads from one step to the next.

    Args:
        *args: As of `ModelBasedSkills`.
        importance_clip: Off-policy correction (arXiv 2004.12974, section 3.2): what the model learns from a step is
            weighted by how much likelier the policy would take it now than it did, at most this and at least its
            inverse; 1 for none. The dynamics has to learn a weighted loss then.
        **settings: As of `ModelBasedSkills`.
    """

    def __init__(self, *args: Any, importance_clip: float = 1.0, **settings: Any) -> None:
        super().__init__(*args, **settings)
        require_number("importance_clip", importance_clip, 1, math.inf)
        self.importance_clip = importance_clip
        self.keeps_log_prob = importance_clip > 1
        if self.keeps_log_prob != self.dynamics.weighted_loss:
            raise ValueError(
                f"importance_clip is {importance_clip}, but weighted_loss of the dynamics is "
                f"{self.dynamics.weighted_loss}, expected {self.keeps_log_prob}"
            )

    def reward(self, batch: Batch) -> Tensor:
        before, context = self.world.encode(batch.obs)
        after, _ = self.world.encode(batch.obs_next)
        return self.potentials(before, context, batch.command.action, [after])[0].clamp(min=LOWEST)

    def segments(self, replay: Replay, n: int) -> Batch:
        rows, device = replay.rows(replay.newest(n, self.config.newest)), self.dynamics.device
        segments = Batch(
            obs=torch.as_tensor(rows.obs, device=device),
            act=torch.as_tensor(rows.info.command.action, device=device),
            obs_next=torch.as_tensor(rows.obs_next, device=device),
            rew=torch.as_tensor(rows.rew, dtype=torch.float32, device=device),
        )
        if self.keeps_log_prob:
            segments.weight = self._importance(rows, device)
        return segments

    def _importance(self, rows: Batch, device: torch.device) -> Tensor:
        """Weights of transitions (n,)."""
        assert self.log_prob is not None
        rows = Batch(obs=rows.obs, act=rows.act, command=rows.info.command, then=rows.info.log_prob)
        rows.to_torch_(device=device)
        ratio: Tensor = self.log_prob(self.inputs(rows.obs, rows.command), rows.act) - rows.then
        limit = math.log(self.importance_clip)
        return ratio.clamp(-limit, limit).exp()
