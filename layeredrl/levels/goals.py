"""Goals as commands: a level above sets a goal, a policy below learns to reach it.

Both the observation and the goal are those of gymnasium's goal environments: a Dict with `achieved_goal` and
`desired_goal`. A command in [-1, 1] is a displacement of the achieved goal, relative to where the command was given, so
that a command means the same everywhere.
"""

import math
from typing import Literal

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_count, require_number
from layeredrl.storage import Replay, TensorReplay
from layeredrl.task import GOAL_KEY, TaskSpec
from layeredrl.world_model import Encoder

ACHIEVED_KEY = "achieved_goal"

GoalReward = Literal["distance", "progress", "sparse"]


class GoalCommands:
    """Meaning of goal commands in a task.

    Args:
        task: Its observations are a Dict with `achieved_goal`.
        radius: Largest displacement that a command asks for, in each dimension, in the goal's units.
        duration: Environment steps for which a command lasts.

    Attributes:
        space: Space of the commands, a Box of [-1, 1].
        n_inputs: Width I of the policy's inputs.
    """

    def __init__(self, task: TaskSpec, radius: float, duration: int) -> None:
        require_number("radius", radius, 0, math.inf, open_low=True)
        require_count("duration", duration)
        parts = task.slices
        if ACHIEVED_KEY not in parts:
            raise ValueError(
                f"the observation has the parts {', '.join(parts)}, expected an {ACHIEVED_KEY} to go to goals"
            )
        self.radius, self.duration = radius, duration
        self.where = parts[ACHIEVED_KEY]
        self.space = spaces.Box(-1.0, 1.0, (self.where.stop - self.where.start,), np.float32)
        self._seen = [part for key, part in parts.items() if key != GOAL_KEY]
        self.n_inputs = sum(part.stop - part.start for part in self._seen) + self.space.shape[0] + 1

    def dims(self, encoder: Encoder) -> tuple[int, ...]:
        """Dimensions of an encoder's state that are the achieved goal.

        Raises:
            ValueError: It leaves some of them out.
        """
        state = encoder.state_index.tolist()
        wanted = range(self.where.start, self.where.stop)
        if not set(wanted) <= set(state):
            raise ValueError(
                f"the state is made of the observation's dimensions {state}, expected {ACHIEVED_KEY} in it"
            )
        return tuple(state.index(i) for i in wanted)

    def achieved(self, obs: Tensor) -> Tensor:
        """Achieved goals (..., G) of observations (..., O)."""
        return obs[..., self.where]

    def goal(self, command: Batch) -> Tensor:
        """Goals of commands, (n, G)."""
        goal: Tensor = self.achieved(command.obs) + self.radius * command.action
        return goal

    def action(self, command: Batch, goal: Tensor) -> Tensor:
        """Commands that would ask for goals (n, G) from the same place; they may leave the space."""
        return (goal - self.achieved(command.obs)) / self.radius

    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        """Inputs of a goal-conditioned policy, (n, I).

        The observation without the task's own goal, the displacement to the goal in units of `radius`, and the
        remaining share of the command's duration.
        """
        assert command is not None
        displacement = (self.goal(command) - self.achieved(obs)) / self.radius
        left = command.remaining.unsqueeze(-1) / self.duration
        return torch.cat([*(obs[..., part] for part in self._seen), displacement, left.to(obs.dtype)], -1)


class Hindsight:
    """Relabels transitions with goals that were reached, and rewards progress to the goal.

    A share of the sampled transitions gets a goal that was reached later under the same command (Andrychowicz et al.
    2017, arXiv 1707.01495, the strategy "future"). All rewards are recomputed, and those of the environment ignored.
    Values do not bootstrap beyond the end of a command.

    Args:
        goals: Meaning of the commands.
        share: Share of the transitions that get another goal.
        reward: `distance`: minus the distance to the goal after the step. `progress`: by how much it became smaller.
            `sparse`: 0 within `tolerance`, else -1. The first two in units of the radius.
        tolerance: Largest distance of success, in the goal's units.
    """

    def __init__(
        self, goals: GoalCommands, *, share: float = 0.5, reward: GoalReward = "distance", tolerance: float = 0.1
    ) -> None:
        require_number("share", share, 0, 1)
        require_choice("reward", reward, ("distance", "progress", "sparse"))
        require_number("tolerance", tolerance, 0, math.inf)
        self.goals, self.share, self.reward, self.tolerance = goals, share, reward, tolerance

    on_device = True

    def __call__(self, batch: Batch, replay: Replay) -> Batch:
        """Change a batch, as `Relabel` says."""
        chosen = torch.rand(len(batch.rew), device=batch.rew.device) < self.share
        goal = torch.where(chosen[:, None], self._reached(batch, replay), self.goals.goal(batch.command))
        action = self.goals.action(batch.command, goal)
        batch.command.action, batch.next_command.action = action, action
        batch.rew = self._reward(batch, goal)
        batch.discount = batch.discount * (batch.next_command.remaining > 0)
        return batch

    def _reached(self, batch: Batch, replay: Replay) -> Tensor:
        """Goals (n, G) that were reached after each transition, or later before its command ended."""
        index = batch.index  # the replay's own numbers: a GPU would wait for those of the batch
        if isinstance(replay, TensorReplay):  # its level's actions last for one step
            left = torch.minimum(replay.steps_left(index, self.goals.duration), batch.command.remaining - 1)
            steps = (torch.rand(len(index), device=index.device) * (left + 1)).long()
            return self.goals.achieved(replay.column("obs_next", replay.later(index, torch.minimum(steps, left))))
        if (replay.column("info.duration", index) != 1).any():
            raise ValueError("actions of the policy last for several environment steps, expected one for hindsight")
        left = np.minimum(replay.steps_left(index), replay.column("info.command.remaining", index) - 1)
        steps = (torch.rand(len(index)).numpy() * (left + 1)).astype(np.int64)
        later = replay.column("obs_next", replay.later(index, np.minimum(steps, left)))
        return self.goals.achieved(torch.as_tensor(later, device=batch.rew.device))

    def _reward(self, batch: Batch, goal: Tensor) -> Tensor:
        after: Tensor = (self.goals.achieved(batch.obs_next) - goal).norm(dim=-1)
        if self.reward == "sparse":
            return -(after > self.tolerance).float()
        if self.reward == "progress":
            before: Tensor = (self.goals.achieved(batch.obs) - goal).norm(dim=-1)
            return (before - after) / self.goals.radius
        return -after / self.goals.radius
