"""SPlaTES: predictable, diverse skills for long-horizon planning (Gürtler and Martius, RLC 2025).

A skill is paid for what its outcome, the state at its end, tells of it, as seen from the state in which it began; so it
gains by correcting what pushes it off its way. The same model of outcomes is what the planner plans with.
"""

from typing import Any, Literal

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice
from layeredrl.replay import Replay
from layeredrl.skills.model_based import ModelBasedSkills

LOWEST = -10.0
"""Of a potential: where the model thinks an outcome impossible, its logarithm knows no bounds."""


class SPlaTES(ModelBasedSkills):
    """Skills of which the outcome is predictable.

    Args:
        *args: As of `ModelBasedSkills`; the world's dynamics leads from a skill's start to its end.
        form: `difference`: every step is paid by how much more the state reached tells of the skill than the one
            before. `end`: the last step is paid by what the outcome tells. The sums are the same, but for what the
            skill's start tells, which is little.
        **settings: As of `ModelBasedSkills`.
    """

    def __init__(self, *args: Any, form: Literal["difference", "end"] = "difference", **settings: Any) -> None:
        super().__init__(*args, **settings)
        require_choice("form", form, ("difference", "end"))
        self.form = form

    def reward(self, batch: Batch) -> Tensor:
        start, context = self.world.encode(batch.command.obs)
        after, _ = self.world.encode(batch.obs_next)
        skill = batch.command.action
        if self.form == "end":
            (gained,) = self.potentials(start, context, skill, [after])
            paid: Tensor = gained.clamp(min=LOWEST) * (batch.next_command.remaining == 0)
            return paid
        before, _ = self.world.encode(batch.obs)
        at_end, at_start = self.potentials(start, context, skill, [after, before])
        gain: Tensor = at_end.clamp(min=LOWEST) - at_start.clamp(min=LOWEST)
        return gain

    def segments(self, replay: Replay, n: int) -> Batch:
        index = replay.newest(n, self.config.newest)
        left = replay.column("info", index).command.remaining - replay.column("info", index).duration
        whole = left <= replay.steps_left(index)  # those that the end of an episode cut short are no outcomes
        index, left = index[whole], left[whole]
        rows, ends = replay.rows(index), replay.column("obs_next", replay.later(index, left))
        device = self.dynamics.device
        return Batch(
            obs=torch.as_tensor(rows.info.command.obs, device=device),
            act=torch.as_tensor(rows.info.command.action, device=device),
            obs_next=torch.as_tensor(ends, device=device),
        )
