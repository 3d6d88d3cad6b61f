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
from layeredrl.transfers import to_device

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
    on_device = True

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
        rows = replay.rows(replay.newest(n, self.config.newest))
        columns = {"obs": rows.obs, "act": rows.info.command.action, "obs_next": rows.obs_next}
        columns["rew"] = rows.rew
        if self.keeps_log_prob:  # also what importance weights are computed from
            command = rows.info.command
            columns |= {"action": rows.act, "behaviour": rows.info.log_prob}
            columns |= {name: command[name] for name in _COMMAND}
            columns["start"] = command.obs
        there = dict(zip(columns, to_device([*columns.values()], self.dynamics.device), strict=True))
        segments = Batch({name: there[name] for name in ("obs", "act", "obs_next")})
        segments.rew = there["rew"].float()
        if self.keeps_log_prob:
            command = Batch(action=segments.act, obs=there["start"])
            command.update({name: there[name] for name in _COMMAND})
            current = log_prob(self.inputs(segments.obs, command), there["action"])
            segments.weight = self._importance(current, there["behaviour"])
        return segments

    def _importance(self, current: Tensor, behaviour: Tensor) -> Tensor:
        """Importance weights of transitions, (n,): current policy over behaviour policy, clipped.

        Args:
            current: Log-probability of their actions under the current policy, (n,).
            behaviour: The same under the policy that drew them, (n,).
        """
        limit = math.log(self.importance_clip)
        # The log density of an action without noise is unbounded: such steps have no importance ratio, and count fully.
        return torch.where(behaviour.isinf(), 1.0, (current - behaviour).clamp(-limit, limit).exp())


_COMMAND = ("elapsed", "remaining")
