"""SPlaTES: predictable, diverse skills for long-horizon planning (Gürtler and Martius, RLC 2025).

A skill is paid for what its outcome, the state at its end, tells of it, as seen from the state in which it began; so it
gains by correcting what pushes it off its way. The same model of outcomes is what the planner plans with.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice
from layeredrl.skills.model_based import ModelBasedSkills
from layeredrl.storage import Replay

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
        ends = replay.later(index[stored], left[stored])
        last = replay.rows(ends)
        whole = last.info.command.remaining == last.info.duration  # not cut short by the end of the episode
        device, kept = self.dynamics.device, {}
        if self.learned_reward is not None:
            rewards, known = _rewards(replay, ends, last.info.command.elapsed)
            whole &= known
            kept["rew"] = torch.as_tensor(rewards[whole], dtype=torch.float32, device=device)
        last = last[whole]
        kept["obs"] = torch.as_tensor(last.info.command.obs, device=device)
        kept["act"] = torch.as_tensor(last.info.command.action, device=device)
        kept["obs_next"] = torch.as_tensor(last.obs_next, device=device)
        return Batch(kept)


def _rewards(
    replay: Replay, ends: NDArray[np.int64], elapsed: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Sums of what the environment paid during skills.

    They are sums, not means, because that is what a known reward of a coarse step stands for (`TaskSpec.coarse`). Of
    actions that stand for several steps the replay has discounted sums, and so they count.

    Args:
        replay: Of the policy's transitions.
        ends: Where the skills' last transitions lie, (n,).
        elapsed: Environment steps of the skills before these, (n,).

    Returns:
        Sums (n,), and whether all transitions since the skill's start are still stored, (n,).
    """
    # All of a skill's actions but the last stand for equally many steps.
    each = replay.column("info", replay.later(ends, np.array(-1))).duration
    n_before = -(-elapsed // np.maximum(each, 1))
    known = replay.steps_left(replay.later(ends, -n_before)) >= n_before
    back = np.arange(int(n_before[known].max(initial=0)) + 1)
    paid = replay.column("rew", replay.later(ends[:, None], -back))
    return (paid * (back <= n_before[:, None])).sum(1), known
