"""SPlaTES: predictable, diverse skills for long-horizon planning (Gürtler and Martius, RLC 2025).

A skill is rewarded for the information of its outcome, the state at its end, about the skill, given the state in which
it began; so a skill policy gains by correcting perturbations. The planner uses the same model of outcomes.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice
from layeredrl.skills.method import LogProb
from layeredrl.skills.model_based import ModelBasedSkills
from layeredrl.storage import Replay
from layeredrl.transfers import to_device

LOWEST = -10.0
"""Lower bound of a potential: the log density of an outcome that the model excludes is unbounded."""


class SPlaTES(ModelBasedSkills):
    """Skills with predictable outcomes.

    Args:
        *args: As for `ModelBasedSkills`; the world's dynamics leads from a skill's start to its end.
        form: `difference`: every step is rewarded by the increase of the potential, the information of the state about
            the skill. `end`: the last step is rewarded by the potential of the outcome. The sums over a skill are the
            same, but for the potential of its start, which is small.
        **settings: As for `ModelBasedSkills`.
    """

    at_end = "fresh"
    on_device = True

    def __init__(self, *args: Any, form: Literal["difference", "end"] = "difference", **settings: Any) -> None:
        super().__init__(*args, **settings)
        require_choice("form", form, ("difference", "end"))
        self.form = form

    def reward(self, batch: Batch) -> Tensor:
        start, context = self.world.encode(batch.command.obs)
        after, _ = self.world.encode(batch.obs_next)
        skill = batch.command.action
        if self.form == "end":
            (potential,) = self.potentials(start, context, skill, [after])
            reward: Tensor = potential.clamp(min=LOWEST) * (batch.next_command.remaining == 0)
            return reward
        before, _ = self.world.encode(batch.obs)
        at_end, at_start = self.potentials(start, context, skill, [after, before])
        gain: Tensor = at_end.clamp(min=LOWEST) - at_start.clamp(min=LOWEST)
        return gain

    def segments(self, replay: Replay, n: int, log_prob: LogProb) -> Batch:
        index = replay.newest(n, self.config.newest)
        info = replay.column("info", index)
        # Transitions until the skill's end: the policy's actions may last several steps, the last one fewer.
        left = -((info.duration - info.command.remaining) // info.duration)
        stored = replay.follows(index, left)
        ends = replay.later(index, left)
        last = replay.rows(ends)
        command = last.info.command
        whole = stored & (command.remaining == last.info.duration)  # not cut short by the end of the episode
        kept: dict[str, Any] = {"obs": command.obs, "act": command.action, "obs_next": last.obs_next}
        if self.learner.reward is not None:
            kept["rew"], known = _rewards(replay, ends, command.elapsed, stored, self.duration)
            whole &= known
        if isinstance(whole, Tensor):
            return self._filled(kept, whole)
        kept = {name: values[whole] for name, values in kept.items()}
        return Batch(dict(zip(kept, to_device([*kept.values()], self.dynamics.device), strict=True)))

    @staticmethod
    def _filled(kept: Mapping[str, Tensor], whole: Tensor) -> Batch:
        """Put transitions that count, a mask (n,), in the place of the others: a GPU need not wait for their number.

        `n_whole` is the number of those that count. If none does, a GPU learns from one that does not.
        """
        n_whole = whole.sum()
        order = whole.logical_not().to(torch.uint8).argsort(stable=True)
        places = order[torch.arange(len(whole), device=whole.device) % n_whole.clamp(min=1)]
        if places.device.type == "cpu" and not n_whole:
            places = places[:0]
        return Batch({name: values[places] for name, values in kept.items()} | {"n_whole": n_whole})


def _rewards(replay: Replay, ends: Any, elapsed: Any, stored: Any, duration: int) -> tuple[Any, Any]:
    """Sums of the environment's rewards during skills.

    They are sums, not means, as a known reward of a coarse step is (`TaskSpec.coarse`). For actions that last several
    steps the replay holds discounted sums, which are added up.

    Args:
        replay: Transitions of the skill policy.
        ends: Indices of the skills' last transitions, (n,).
        elapsed: Environment steps of the skills before these, (n,).
        stored: True for transitions that are in the replay, (n,); the others do not count.
        duration: Environment steps of a skill.

    Returns:
        Sums in float32, (n,), and True where all transitions since the skill's start are still stored, (n,).
    """
    # All of a skill's actions but the last one last equally many steps.
    each = replay.column("info", replay.later(ends, -1 + 0 * ends)).duration
    n_before = -(-elapsed // each.clip(1))
    known = replay.follows(replay.later(ends, -n_before), n_before)
    back: Any
    if isinstance(ends, Tensor):
        back = torch.arange(duration, device=ends.device)  # a GPU would wait for the longest one
        rewards = replay.column("rew", replay.later(cast(Any, ends)[:, None], -back))
        return torch.where(back <= n_before[:, None], rewards, 0.0).sum(1), known
    back = np.arange(int(n_before[known & stored].max(initial=0)) + 1)
    rewards = replay.column("rew", replay.later(ends[:, None], -back))
    return (rewards * (back <= n_before[:, None])).sum(1).astype(np.float32), known
