"""DADS: dynamics-aware discovery of skills (Sharma et al. 2020, arXiv 1907.01657; off-policy: arXiv 2004.12974).

Every step is rewarded for its information about the skill, under a model of single steps. A planner holds each skill
for its duration, and the model predicts all its steps.
"""

import math
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_number
from layeredrl.skills.method import LogProb
from layeredrl.skills.model_based import ModelBasedSkills
from layeredrl.storage import Replay

LOWEST = -50.0
"""Lower bound of a reward, as in the released code: log densities of excluded outcomes are unbounded."""


class DADS(ModelBasedSkills):
    """Skills with predictable steps; the world's dynamics leads from one step to the next.

    Args:
        *args: As for `ModelBasedSkills`.
        importance_clip: Off-policy correction (arXiv 2004.12974, section 3.2): the model's loss of a step is weighted
            by the ratio of the action's probabilities under the current and the behaviour policy, clipped to this and
            its inverse; 1 for none. Other values need a dynamics with `weighted_loss`.
        **settings: As for `ModelBasedSkills`.
    """

    at_end = "same"

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

    def segments(self, replay: Replay, n: int, log_prob: LogProb) -> Batch:
        rows, device = replay.rows(replay.newest(n, self.config.newest)), self.dynamics.device
        segments = Batch(
            obs=torch.as_tensor(rows.obs, device=device),
            act=torch.as_tensor(rows.info.command.action, device=device),
            obs_next=torch.as_tensor(rows.obs_next, device=device),
            rew=torch.as_tensor(rows.rew, dtype=torch.float32, device=device),
        )
        if self.keeps_log_prob:
            segments.weight = self._importance(rows, device, log_prob)
        return segments

    def _importance(self, rows: Batch, device: torch.device, log_prob: LogProb) -> Tensor:
        """Importance weights of transitions, (n,): current policy over behaviour policy, clipped."""
        rows = Batch(obs=rows.obs, act=rows.act, command=rows.info.command, behaviour=rows.info.log_prob)
        rows.to_torch_(device=device)
        ratio: Tensor = log_prob(self.inputs(rows.obs, rows.command), rows.act) - rows.behaviour
        limit = math.log(self.importance_clip)
        # The log density of an action without noise is unbounded: such steps have no importance ratio, and count fully.
        return torch.where(rows.behaviour.isinf(), 1.0, ratio.clamp(-limit, limit).exp())
