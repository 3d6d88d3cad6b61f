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
from layeredrl.world_model import LearnedEncoder, WorldModel

AtEnd = Literal["zero", "same", "fresh"]
"""What follows the end of a skill, for the value of its last state: nothing; the same skill, again; or another one."""


class SkillMethod(ABC):
    """What makes a policy's commands skills: what they are, how long they run, and what the policy is paid for.

    Attributes:
        space: Of the skills: a Box of [-1, 1], or Discrete.
        duration: Environment steps that a skill runs.
        at_end: How the value goes on after a skill's end.
        n_inputs: Width I of what `inputs` returns.
        world: What a planner over skills plans with; None if the method has no model.
        keeps_log_prob: Whether transitions are stored with `info.log_prob`, the log density of their actions under the
            policy as it was.
        log_prob: The same under the policy as it is: (what it sees (n, I), actions (n, A)) -> (n,); set by the level.
    """

    space: spaces.Box | spaces.Discrete
    duration: int
    at_end: AtEnd = "zero"
    n_inputs: int
    world: WorldModel | None = None
    keeps_log_prob: bool = False
    log_prob: Callable[[Tensor, Tensor], Tensor] | None = None

    @abstractmethod
    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        """What the policy sees, (n, I), of flat observations (n, O) and its command, as `Level.act` has it."""

    @abstractmethod
    def reward(self, batch: Batch) -> Tensor:
        """What the policy is paid for transitions, (n,); asked anew whenever they are sampled.

        Args:
            batch: As `layeredrl.levels.policy_level.Relabel` says. In `command`, `obs` is where the skill began.
        """

    def learn(self, replay: Replay, n_total_env_steps: int) -> dict[str, float]:
        """Learn what the method needs of its own, a model for instance; called after every step of the environments.

        Args:
            replay: Of the policy's transitions.
            n_total_env_steps: Environment steps so far, all instances summed.

        Returns:
            Metrics by name; empty if there is nothing to tell.
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
    """What a policy sees that carries out skills: where it is, which skill, how far it has come, and when.

    Args:
        task: Whose observations.
        space: Of the skills.
        duration: Environment steps that a skill runs.
        latent: Indices into the flat observation of what skills change, or an encoder to that; the way since the
            skill's start is seen too.
        hidden: Parts of the observation that the policy is not to see, such as the position; the goal of the task it
            never sees.
        way_scale: Factor of the way since the start.
    """

    def __init__(
        self,
        task: TaskSpec,
        space: spaces.Box | spaces.Discrete,
        duration: int,
        *,
        latent: Sequence[int] | LearnedEncoder = (),
        hidden: Sequence[str] = (),
        way_scale: float = 2.0,
    ) -> None:
        parts = task.slices
        if not set(hidden) <= parts.keys():
            raise ValueError(f"hidden is {list(hidden)}, expected parts of the observation: {', '.join(parts)}")
        seen = [part for key, part in parts.items() if key != GOAL_KEY and key not in hidden]
        self.seen = [i for part in seen for i in range(part.start, part.stop)]
        self.space, self.duration, self.way_scale = space, duration, way_scale
        self.latent = latent if isinstance(latent, LearnedEncoder) else list(latent)
        n_latent = latent.state_dim if isinstance(latent, LearnedEncoder) else len(latent)
        self.width = len(self.seen) + n_latent + action_spaces.n_features(space) + 1

    def __call__(self, obs: Tensor, command: Batch | None) -> Tensor:
        """What the policy sees, (n, I)."""
        assert command is not None
        if isinstance(self.latent, LearnedEncoder):
            way = self.way_scale * (self.latent(obs)[0] - self.latent(command.obs)[0])
        else:
            way = self.way_scale * (obs[..., self.latent] - command.obs[..., self.latent])
        skill = action_spaces.features(self.space, command.action, obs.dtype)
        passed = (command.elapsed / self.duration).to(obs.dtype).unsqueeze(-1)
        return torch.cat([obs[..., self.seen], way, skill, passed], -1)
