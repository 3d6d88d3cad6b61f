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
        info = replay.column("info", index)
        # Transitions until the skill's end: the policy's actions may stand for several steps, the last one for fewer.
        left = -((info.duration - info.command.remaining) // info.duration)
        stored = left <= replay.steps_left(index)
        last = replay.rows(replay.later(index[stored], left[stored]))
        whole = last.info.command.remaining == last.info.duration  # not cut short by the end of the episode
        last, device = last[whole], self.dynamics.device
        return Batch(
            obs=torch.as_tensor(last.info.command.obs, device=device),
            act=torch.as_tensor(last.info.command.action, device=device),
            obs_next=torch.as_tensor(last.obs_next, device=device),
        )
