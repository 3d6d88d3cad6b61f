"""The interface by which a method of learning skills plugs in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.storage import Replay
from layeredrl.task import GOAL_KEY, TaskSpec
from layeredrl.world_model import Encoder, WorldModel

AtEnd = Literal["zero", "same", "fresh"]
"""Continuation after a skill's end, for the bootstrap: none; the same skill again; or a fresh skill from the prior."""

LogProb = Callable[[Tensor, Tensor], Tensor]
"""Log-probability of actions under the current policy: (inputs (n, I), actions (n, A)) -> (n,)."""


class SkillMethod(ABC):
    """Defines a skill space, the duration of a skill, and the intrinsic reward of the skill policy.

    Attributes:
        space: Skill space: a Box of [-1, 1], or Discrete.
        duration: Duration of a skill in environment steps.
        at_end: Continuation of the value after a skill's end.
        n_inputs: Width I of the policy's inputs.
        world: World model over skills that a planner uses; None if the method has no model.
        keeps_log_prob: If True, transitions are stored with `info.log_prob`, the log-probability of the action under
            the behaviour policy.
        on_device: If True, `learn` also takes a `TensorReplay`, whose transitions are on a device.
    """

    space: spaces.Box | spaces.Discrete
    duration: int
    at_end: AtEnd = "zero"
    n_inputs: int
    world: WorldModel | None = None
    keeps_log_prob: bool = False
    on_device: bool = False

    @abstractmethod
    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        """Inputs of the policy, (n, I), from flat observations (n, O) and its command, as in `Level.act`."""

    @abstractmethod
    def reward(self, batch: Batch) -> Tensor:
        """Intrinsic reward of transitions, (n,), recomputed whenever they are sampled.

        Args:
            batch: As in `layeredrl.levels.policy_level.Relabel`. `command.obs` is the observation at the skill's start.
        """

    def learn(self, replay: Replay, n_total_env_steps: int, log_prob: LogProb) -> dict[str, float]:
        """Learn the method's own parts, such as a model; called after every step of the environments.

        Args:
            replay: Transitions of the skill policy.
            n_total_env_steps: Environment steps so far, all instances summed.
            log_prob: Log-probability of actions under the current policy.

        Returns:
            Metrics by name; empty if there is nothing to report.
        """
        return {}

    def prior(self, n: int, device: torch.device) -> Tensor:
        """Draw skills, (n, Z), uniformly, from torch's global generator."""
        if isinstance(self.space, spaces.Discrete):
            return int(self.space.start) + torch.randint(int(self.space.n), (n, 1), device=device)
        return 2 * torch.rand((n, self.space.shape[0]), device=device) - 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that the method has learned, as nested dicts of tensors and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise ValueError(f"{type(self).__name__} has no state, but was given {', '.join(state)}")


class SkillInputs:
    """Inputs of a skill policy: observation, displacement since the skill's start, skill, and elapsed share of it.

    Args:
        task: Gives the parts of the observation.
        space: Skill space.
        duration: Duration of a skill in environment steps.
        encoder: Encoder of the state that skills change; its displacement since the skill's start is an input. None
            for no such input.
        hidden: Parts of the observation that the policy does not see, such as the position. It never sees the task's
            goal.
        displacement_scale: Factor of the displacement.
    """

    def __init__(
        self,
        task: TaskSpec,
        space: spaces.Box | spaces.Discrete,
        duration: int,
        *,
        encoder: Encoder | None = None,
        hidden: Sequence[str] = (),
        displacement_scale: float = 2.0,
    ) -> None:
        parts = task.slices
        if not set(hidden) <= parts.keys():
            raise ValueError(f"hidden is {list(hidden)}, expected parts of the observation: {', '.join(parts)}")
        self._seen = [part for key, part in parts.items() if key != GOAL_KEY and key not in hidden]
        self.space, self.duration = space, duration
        self.encoder, self.displacement_scale = encoder, displacement_scale
        n_state = 0 if encoder is None else encoder.state_dim
        n_seen = sum(part.stop - part.start for part in self._seen)
        self.width = n_seen + n_state + action_spaces.n_features(space) + 1

    def __call__(self, obs: Tensor, command: Batch | None) -> Tensor:
        """Inputs (n, I), from observations (n, O) and the command, as in `Level.act`."""
        assert command is not None
        inputs = [obs[..., part] for part in self._seen]
        if self.encoder is not None:
            inputs.append(self.displacement_scale * (self.encoder(obs)[0] - self.encoder(command.obs)[0]))
        skill = action_spaces.features(self.space, command.action, obs.dtype)
        elapsed = (command.elapsed / self.duration).to(obs.dtype).unsqueeze(-1)
        return torch.cat([*inputs, skill, elapsed], -1)
