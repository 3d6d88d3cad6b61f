"""A level that acts by a policy, learned model-free by one of tianshou's off-policy algorithms."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step, torch_train_mode
from torch import Tensor

from layeredrl import action_spaces, off_policy
from layeredrl.checks import require_count, require_counts, require_number
from layeredrl.faults import NonFiniteError
from layeredrl.levels.level import Decision, Level
from layeredrl.metrics import RunningMeans
from layeredrl.off_policy import NonFiniteGradientError, OffPolicyAlgorithm
from layeredrl.off_policy.actors import DeterministicPolicy, SquashedGaussianPolicy
from layeredrl.randomness import derive_seed
from layeredrl.storage import Replay, TensorReplay
from layeredrl.transfers import to_device, to_host

Inputs = Callable[[Tensor, Batch | None], Tensor]
"""Inputs of a policy: (flat observations (n, O), command as in `Level.act`) -> (n, I)."""

Relabel = Callable[[Batch, Replay], Batch]
"""Changes a sampled batch before it is learned from, independently of what was stored.

Tensors, the transition first: `obs`, `obs_next` (n, O); `act` (n, A); `rew`, `discount` (n,), the latter to the power
of the duration and zero where the episode terminated; `command` and `next_command`, as in `Level.act`, where there is
a level above; `duration` (n,). And `index`, an array (n,): the transitions' indices in the replay. An attribute
`on_device` that is True says that it also takes a `TensorReplay`, whose indices are a tensor.
"""


@dataclass(frozen=True)
class PolicyLearningConfig:
    """When and how a policy level learns."""

    n_random_steps: int = 1000
    """Environment steps with random actions before the first update."""
    updates_per_transition: float = 1.0
    """Number of updates for each transition, counted from the first update."""
    batch_size: int = 256
    """Transitions of an update."""
    replay_size: int = 1_000_000
    """Number of transitions kept, all environments together."""
    report_every: int = 1000
    """Environment steps between two reports of metrics."""
    max_skipped: int = 10
    """Updates between two reports that may be skipped because a gradient is not finite; one more is an error."""

    def __post_init__(self) -> None:
        require_counts(self, n_random_steps=0, batch_size=1, replay_size=1, report_every=1, max_skipped=0)
        require_number("updates_per_transition", self.updates_per_transition, 0, math.inf)


class PolicyLevel(Level):
    """Model-free learning: a policy conditioned on the command from above, with a replay of its own.

    Args:
        algorithm: An off-policy actor-critic of tianshou, such as its SAC or TD3; its `gamma` is the level's discount.
        action_space: Action space of the level: a flat Box of [-1, 1].
        command_space: Space of commands from the level above; None for the top level.
        n_envs: Number of environments that it learns in.
        inputs: Inputs of the policy; the observation and the command by default.
        relabel: Changes every sampled batch; None to learn from what was stored.
        duration: Environment steps for which an action lasts.
        learning: When and how to learn.
        name: Name of the level.
        seed: Seed of the replay; policies draw from the global generators of torch and numpy.
    """

    replay: Replay

    def __init__(
        self,
        algorithm: OffPolicyAlgorithm,
        action_space: spaces.Space[Any],
        command_space: spaces.Space[Any] | None = None,
        *,
        n_envs: int,
        inputs: Inputs | None = None,
        relabel: Relabel | None = None,
        duration: int = 1,
        learning: PolicyLearningConfig | None = None,
        name: str = "policy",
        seed: int = 0,
    ) -> None:
        action_spaces.require_unit_box(action_space)
        require_count("duration", duration)
        if not action_spaces.same(algorithm.policy.action_space, action_space):
            raise ValueError(
                f"the algorithm's action space is {algorithm.policy.action_space}, expected {action_space}"
            )
        off_policy.check_algorithm(algorithm)
        off_policy.guard_gradients(algorithm)
        self.algorithm, self.name = algorithm.eval(), name
        self.action_space, self.command_space = action_space, command_space
        self.discount = algorithm.gamma
        self.inputs = ObservationAndCommand(command_space) if inputs is None else inputs
        self.relabel, self.duration = relabel, duration
        self.learning = PolicyLearningConfig() if learning is None else learning
        self.device = next(algorithm.parameters()).device
        self.replay = Replay(self.learning.replay_size, n_envs, seed=derive_seed(seed, f"{name} replay"))
        self.n_total_env_steps = self.last_report = 0
        self.n_updates = self.n_skipped = 0
        self._first: int | None = None  # transitions before the first update
        self._means = RunningMeans()
        self._unread: list[dict[str, float | Tensor]] = []  # metrics of the last updates, on the device

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch()

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        command: Batch | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        duration = np.full(len(obs), self.duration)
        if explore and self.acts_at_random:
            return Decision(action_spaces.uniform(self.action_space, (len(obs),), generator), duration, memory)
        inputs = self.inputs(obs, command)
        if not explore:
            return Decision(self.best_action(inputs), duration, memory)
        return Decision(self.exploring_action(inputs), duration, memory)

    @torch.no_grad()
    def exploring_action(self, inputs: Tensor) -> Tensor:
        """Actions of the policy with its noise, (n, A), for inputs (n, I)."""
        policy, action = self.algorithm.policy, self._act(inputs, explore=True)
        if isinstance(policy, _OWN) and policy.explores_on_device:
            return policy.explore(action).clamp(-1, 1)
        noisy = policy.add_exploration_noise(action.cpu().numpy(), cast(Any, Batch(obs=inputs, info=Batch())))
        return torch.as_tensor(noisy, dtype=torch.float32, device=self.device).clamp(-1, 1)

    @torch.no_grad()
    def best_action(self, inputs: Tensor) -> Tensor:
        """Actions of the policy without noise, (n, A), for inputs (n, I)."""
        return self._act(inputs, explore=False).clamp(-1, 1)

    def _act(self, inputs: Tensor, *, explore: bool) -> Tensor:
        """Actions of the policy before the noise that is added to them, (n, A)."""
        policy = self.algorithm.policy
        if isinstance(policy, _OWN):
            return policy.act(inputs, explore=explore)
        batch: Any = Batch(obs=inputs, info=Batch())
        with policy_within_training_step(policy, enabled=explore):
            action: Tensor = policy(batch).act
        return action

    @property
    def acts_at_random(self) -> bool:
        """True while exploration uses random actions."""
        return self.n_total_env_steps < self.learning.n_random_steps

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        self.replay.add(transitions, env_ids)

    @property
    def host_only(self) -> str | None:
        if type(self).observe is not PolicyLevel.observe:
            return super().host_only
        if self.relabel is None:
            return None
        if getattr(self.relabel, "on_device", False):
            lasts = f"actions of {type(self).__name__} last for {self.duration} steps, and its batches are relabelled"
            return lasts if self.duration != 1 else None
        return f"relabel of {type(self).__name__} reads a replay in the memory of the host"

    def keep_on_device(self) -> None:
        self.replay = cast(Replay, TensorReplay.like(self.replay, self.device))  # it has all methods that are used here

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        if n_total_env_steps < self.learning.n_random_steps or not self.replay:
            return {}
        n_transitions = self.replay.n_added
        if self._first is None:
            self._first, self.last_report = n_transitions - 1, n_total_env_steps
        due = int(self.learning.updates_per_transition * (n_transitions - self._first)) - self.n_updates
        if due > 0:
            with torch_train_mode(self.algorithm):  # once for all: it visits every module, which takes long
                while due > 0:
                    due -= self._updates(min(due, _AT_ONCE))
        if n_total_env_steps - self.last_report < self.learning.report_every:
            return {}
        self._settle()
        return self._report() if self._means or self.n_skipped else {}

    def sample(self, n_updates: int = 1) -> Batch:
        """Draw the transitions of n updates, batch after batch; keys as in `Relabel`."""
        return self.draw(n_updates * self.learning.batch_size)

    def draw(self, n: int) -> Batch:
        """Draw n transitions from the replay, relabelled; keys as in `Relabel`."""
        names = ["obs", "obs_next", "act", "rew", "terminated", "info.duration"]
        if self.command_space is not None:
            names.append("info.command")
        index = self.replay.sample_indices(n)
        found = self.replay.columns(names, index)
        columns = {name.removeprefix("info."): x for name, x in zip(names, found, strict=True)}
        asked = columns.pop("command", Batch())
        there = to_device([*columns.values(), *asked.values()], self.device)
        columns = dict(zip(columns, there, strict=False))
        duration = columns["duration"]
        batch = Batch(
            obs=columns["obs"],
            obs_next=columns["obs_next"],
            act=columns["act"],
            rew=columns["rew"].float(),
            discount=self.discount**duration * ~columns["terminated"],
            duration=duration,
            index=index,
        )
        if self.command_space is not None:
            asked = Batch(dict(zip(asked.get_keys(), there[len(columns) :], strict=True)))
            batch.command = asked
            batch.next_command = Batch(
                action=asked.action,
                obs=asked.obs,
                elapsed=asked.elapsed + duration,
                remaining=asked.remaining - duration,
            )
        batch = self.relabelled(batch)
        for name in ("rew", "discount"):
            if batch[name].shape != index.shape:
                raise ValueError(f"relabel gave {name} of shape {tuple(batch[name].shape)}, expected {index.shape}")
        return batch

    def relabelled(self, batch: Batch) -> Batch:
        """Change a sampled batch, as in `Relabel`; by default with the function given at construction."""
        return batch if self.relabel is None else self.relabel(batch, self.replay)

    def _updates(self, n: int) -> int:
        """Take n updates, whose batches are drawn together: small tensors cost as much as large ones."""
        batch = self.sample(n)
        whole = {
            "obs": self.inputs(batch.obs, batch.get("command")),
            "obs_next": self.inputs(batch.obs_next, batch.get("next_command")),
            "act": batch.act,
            "rew": batch.rew.float(),  # a known or relabelled reward may have any type
            "discount": batch.discount.float(),
        }
        parts = [whole[key].split(self.learning.batch_size) for key in whole]
        self._unread += [self._update(Batch(dict(zip(whole, part, strict=True)))) for part in zip(*parts, strict=True)]
        self.n_updates += n
        if self.device.type == "cpu" or len(self._unread) >= MOST_UNREAD:  # a GPU would wait
            self._settle()
        return n

    def _update(self, batch: Batch) -> dict[str, float | Tensor]:
        try:
            return off_policy.update(self.algorithm, batch) | {"reward": batch.rew.mean()}
        except NonFiniteGradientError:
            return {"gradient_norm": math.nan}

    def _settle(self, *, check: bool = True) -> None:
        """Read the metrics of the last updates from the device, in one copy, and count the updates that were skipped.

        Args:
            check: If False, skipped updates are only counted, so that a level can be saved in any state.

        Raises:
            NonFiniteError: Too many were skipped.
        """
        outcomes, self._unread = self._unread, []
        tensors = [x for metrics in outcomes for x in metrics.values() if isinstance(x, Tensor)]
        values = iter(to_host(*tensors) if tensors else ())
        first = self.n_updates - len(outcomes)
        for i, metrics in enumerate(outcomes):
            read = {name: float(next(values) if isinstance(x, Tensor) else x) for name, x in metrics.items()}
            if math.isfinite(read.get("gradient_norm", 0.0)):
                self._means.add(read)
                continue
            self.n_skipped += 1
            if check and self.n_skipped > self.learning.max_skipped:
                self.n_updates = first + i  # a run that goes on makes up for it
                break
        if check and self.n_skipped > self.learning.max_skipped:  # perhaps counted when the level was saved
            n_others, self.n_skipped = self.n_skipped - 1, 0
            name = off_policy.non_finite_gradient(self.algorithm)
            raise NonFiniteError(
                f"the gradient of {name} of the policy level is not finite in update {self.n_updates}, "
                f"after {n_others} others since the last report"
            )

    def _report(self) -> dict[str, float]:
        """Return means since the last report."""
        metrics = {f"policy/{name}": mean for name, mean in self._means.take().items()}
        if self.n_skipped:
            metrics["policy/skipped_updates"] = self.n_skipped
        metrics["policy/updates"] = self.n_updates
        self.n_skipped, self.last_report = 0, self.n_total_env_steps
        return metrics

    def state_dict(self) -> dict[str, Any]:
        self._settle(check=False)
        return {
            "algorithm": off_policy.state_dict(self.algorithm),
            "means": self._means.state_dict(),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        off_policy.load_state_dict(self.algorithm, state["algorithm"])
        self._means.load_state_dict(state["means"])
        self._unread = []
        for name in _NUMBERS:
            setattr(self, name, state[name])


_OWN = SquashedGaussianPolicy | DeterministicPolicy
_NUMBERS = ("n_total_env_steps", "last_report", "n_updates", "n_skipped", "_first")
_AT_ONCE = 8
"""Largest number of updates whose batches are drawn together; more would not fit into the cache."""


MOST_UNREAD = 1000
"""Number of updates after which their metrics are read from a GPU, if no report is due before."""


class ObservationAndCommand:
    """Inputs of a policy: the flat observation, followed by the command.

    Args:
        command_space: Space of commands; choices become one-hot features.
    """

    def __init__(self, command_space: spaces.Space[Any] | None) -> None:
        self.command_space = command_space

    def width(self, observation_dim: int) -> int:
        """Width I of the inputs."""
        return observation_dim + (0 if self.command_space is None else action_spaces.n_features(self.command_space))

    def __call__(self, obs: Tensor, command: Batch | None) -> Tensor:
        """Inputs (n, I), from observations (n, O) and the command."""
        if self.command_space is None or command is None:
            return obs
        return torch.cat([obs, action_spaces.features(self.command_space, command.action, obs.dtype)], -1)
