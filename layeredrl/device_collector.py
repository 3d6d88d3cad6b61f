"""Steps and resets environments that live on a device, for an agent on the same device."""

import math
import warnings
from collections.abc import Mapping
from operator import index
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from layeredrl.action_spaces import choices, same
from layeredrl.checks import require_count
from layeredrl.device_carry import DeviceHierarchy
from layeredrl.environments.answers import LARGEST, as_faults, shown
from layeredrl.environments.torch_vector import TorchStep, TorchVectorEnv
from layeredrl.episodes import Episode, EpisodeCollector, warn_of_cut
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.randomness import environment_and_acting_seeds
from layeredrl.transfers import same_device, to_host

READ_EVERY = 16
"""Steps from one read of finished episodes from a GPU to the next."""


class _Ends(NamedTuple):
    """Episodes that ended in a step, on the device, (E,) each; rows where `done` is False mean nothing."""

    done: Tensor
    episode_return: Tensor
    length: Tensor
    success: Tensor


class DeviceCollector(EpisodeCollector):
    """`Collector` for a `TorchVectorEnv`: observations, actions, transitions and replay stay on the device.

    A step copies nothing from the host, and takes no loop over environments. What the host has to know, the episodes
    that ended and whether all numbers are finite, is read once in `read_every` steps.

    Args:
        env: The environments. Their resets after the first one are drawn on the device.
        agent: Acts, and stores the transitions if `learn` is True. Its levels keep them on the device from now on.
        seed: Seed of the environments and of acting in them.
        learn: If True, the agent stores the transitions.
        read_every: Steps from one read to the next; by default 1 on a CPU, which does not wait, else `READ_EVERY`.

    Raises:
        TypeError: A level keeps its transitions in the memory of the host; `HostVector` is for such agents.
        ValueError: Spaces, devices or numbers of environments do not fit.
    """

    def __init__(
        self, env: TorchVectorEnv, agent: Hierarchy, *, seed: int, learn: bool = True, read_every: int | None = None
    ) -> None:
        _require_fit(env, agent, learn)
        if read_every is not None:
            require_count("read_every", read_every)
        if learn:
            reason = host_only(agent)
            if reason is not None:
                raise TypeError(
                    f"{reason}, expected an agent for environments on a device: use HostVector for this one"
                )
            for level in agent.levels:
                level.keep_on_device()
        self.env, self.agent, self.learn = env, agent, learn
        self.n_envs, self.device = env.num_envs, agent.device
        on_cpu = self.device.type == "cpu"
        self.read_every = read_every if read_every is not None else 1 if on_cpu else READ_EVERY
        self.n_total_env_steps = 0
        self._n_reports = 0  # of success
        env_seeds, acting_seed = environment_and_acting_seeds(seed)
        self._env_rng = np.random.default_rng(env_seeds)
        self._levels = DeviceHierarchy(agent, self.n_envs)
        self._carry = self._levels.initial_carry(acting_seed)
        self._nothing = torch.zeros(self.n_envs, dtype=torch.float64, device=self.device)
        self._never = torch.zeros(self.n_envs, dtype=torch.bool, device=self.device)
        self._over = self._succeeded = self._never  # the episode of these has ended
        self._obs, self._returns, self._lengths = self._nothing, self._nothing, self._nothing.long()
        self._n_steps = 0  # of the environments since their last common beginning
        self._n_over: int | None = 0  # their number; None if it was not read
        self._bounds = _bounds(agent.task.action_space)
        self._largest = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._broken: Fault | None = None
        self._unread: list[tuple[int, _Ends]] = []  # with the number of environment steps
        self._read: list[Episode] = []  # by `state_dict`, not yet returned
        self._begin()

    def take_metrics(self) -> dict[str, float]:
        return self._carry.means.take()

    def close(self) -> None:
        close = getattr(self.env, "close", None)
        if close is not None:
            close()

    def step(self, *, explore: bool) -> list[Episode]:
        self._begin_due()
        actions = self._levels.act(self._obs, self._carry, explore=explore)
        with as_faults("step"):
            step = self.env.step(self.agent.task.to_env_units(actions))
        self._look(step, actions)
        n_done = self._levels.observe(step, self._carry, learn=self.learn)
        self.n_total_env_steps += self.n_envs
        self._n_steps += 1
        self._obs, self._over = step.obs, step.terminated | step.truncated
        self._returns = self._returns + step.reward
        self._lengths = self._lengths + 1
        if step.success is not None:
            self._n_reports += 1
            self._succeeded = self._succeeded | step.success
        if n_done is None and self.device.type == "cpu":
            n_done = int(self._over.sum())
        self._n_over = n_done
        if n_done != 0:
            self._finish(self._over)
        return [] if self._n_steps % self.read_every else self._ended()

    def _finish(self, over: Tensor) -> None:
        """Reset the counters of episodes that ended, a mask (E,)."""
        ends = _Ends(over, self._returns, self._lengths, self._succeeded)
        self._unread.append((self.n_total_env_steps, ends))
        self._returns = self._returns.masked_fill(over, 0.0)
        self._lengths = self._lengths.masked_fill(over, 0)
        self._succeeded = self._succeeded & ~over

    def _ended(self) -> list[Episode]:
        """Episodes that ended and were not returned yet, read from the device."""
        self._settle()
        episodes, self._read = self._read, []
        return episodes

    def _settle(self) -> None:
        """Read from the device, in one copy, the episodes that ended, and raise if a number is not finite."""
        if self.device.type == "cpu" and not self._unread:
            return
        values = iter(to_host(self._largest, *(x for _, ends in self._unread for x in ends)))
        self._require_finite(next(values).tolist())
        for n_total_env_steps, _ in self._unread:
            done, returns, lengths, succeeded = (next(values) for _ in _Ends._fields)
            self._read += [
                Episode(
                    env_id=int(i),
                    episode_return=float(returns[i]),
                    length=int(lengths[i]),
                    n_total_env_steps=n_total_env_steps,
                    success=bool(succeeded[i]) if self._n_reports else None,
                )
                for i in np.flatnonzero(done)
            ]
        self._unread = []

    def _look(self, step: TorchStep, actions: Tensor) -> None:
        """Note the largest numbers of a step, NaN where there is one; on a CPU, raise at once."""
        self._step, self._actions = step, actions
        shifted = actions - self._bounds[0] if self._bounds[0] else actions
        sizes = [step.obs, step.reward, shifted if shifted.is_floating_point() else shifted.float()]
        largest = [torch.linalg.vector_norm(x, math.inf) for x in sizes]
        if self.device.type == "cpu":
            self._require_finite([float(x) for x in largest])
        else:
            self._largest = torch.maximum(self._largest, torch.stack([x.double() for x in largest]))

    def _look_at_reset(self) -> None:
        """Note the largest number of the observations that episodes begin with; on a CPU, raise if it is not finite."""
        largest = torch.linalg.vector_norm(self._obs, math.inf).double()
        if self.device.type != "cpu":
            self._largest[0] = torch.maximum(self._largest[0], largest)
        elif not float(largest) <= LARGEST:
            row = int((~(self._obs.abs() <= LARGEST).all(1)).nonzero()[0, 0])
            self._broken = Fault(
                f"the first observation of environment {row} is {shown(self._obs[row].tolist())}, expected finite "
                "numbers in float32"
            )
            raise self._broken

    def _require_finite(self, largest: list[float]) -> None:
        """Raise if observations or rewards were not finite in float32, or an action was not in the action space."""
        limits = LARGEST, LARGEST, self._bounds[1]
        names = ("observation", "reward", "action")
        wrong = [i for i, (x, limit) in enumerate(zip(largest, limits, strict=True)) if not x <= limit]
        if not wrong:
            return
        kind = wrong[-1]  # an action first: the others follow from it
        values = [self._step.obs, self._step.reward[:, None], self._actions][kind].double().cpu()
        shifted = values - self._bounds[0] if kind == 2 else values
        rows = (~(shifted.abs() <= limits[kind]).all(1)).nonzero()[:, 0].tolist()
        row = f" {rows[0]} is {shown(values[rows[0]].tolist())}" if rows else "s was not valid"
        expected = f"one of {self.agent.task.action_space}" if kind == 2 else "finite numbers in float32"
        when = f"in one of the last {self.read_every} steps, " if self.read_every > 1 else ""
        self._broken = Fault(f"the {names[kind]} of environment{row}, {when}expected {expected}")
        raise self._broken

    def _begin_due(self) -> None:
        """Begin episodes where the last one ended; a step later, so that an error of a reset loses no step."""
        if self._n_over == 0:
            return
        with as_faults("reset"):
            self._obs = self.env.reset(self._over)
        self._over, self._n_over = self._never, 0
        self._look_at_reset()

    def _begin(self) -> None:
        """Begin episodes in all environments, as a `Collector` with the same seed does."""
        seeds = self._env_rng.integers(2**31, size=self.n_envs).tolist()
        with as_faults("reset"):
            self._obs = self.env.reset(seeds=seeds)
        self._over, self._n_over = self._never, 0
        self._returns, self._lengths = self._nothing, self._nothing.long()
        self._succeeded = self._never
        self._n_steps = 0
        self._levels.reset(self._carry)
        self._look_at_reset()

    def _begin_all(self) -> None:
        self._unread, self._read = [], []  # episodes from before
        if self._n_steps:
            self._begin()

    def _cut_off(self, max_steps: int) -> list[Episode]:
        if self._n_steps < max_steps:
            return []
        long = self._lengths >= max_steps
        if not long.any():
            return []
        warn_of_cut(max_steps)
        self._abandon(long)
        self._over, self._n_over = self._over | long, None
        self._finish(long)
        return self._ended()

    def _abandon(self, over: Tensor) -> None:
        """End episodes whose rest is never observed, a mask (E,), as truncated."""
        for level in self.agent.levels if self.learn else ():
            replay: Any = level.replay
            if replay is not None:
                replay.truncate(over)
        self._levels.reset(self._carry, over)
        self._carry.n_due = [int((own.remaining == 0).sum()) for own in self._carry.levels]

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps, with that of the environments.

        Raises:
            Fault: A number was not finite, so that the steps since the last state are not to be kept.
        """
        if self._broken is not None:
            raise self._broken
        self._settle()
        return {
            "n_total_env_steps": self.n_total_env_steps,
            "n_steps": self._n_steps,
            "n_reports": self._n_reports,
            "n_over": self._n_over,  # decides whether a reset is drawn
            "env_rng": self._env_rng.bit_generator.state,
            "env": self.env.state_dict(),
            "carry": self._carry.state_dict(),
            "unread": [tuple(vars(episode).values()) for episode in self._read],
            **{name: getattr(self, f"_{name}").clone() for name in _TENSORS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self._broken = None
        if "env" not in state:
            raise ValueError(
                "the collector's state is that of environments in the memory of the host, expected one of "
                "environments on a device"
            )
        for name in _TENSORS:
            saved, shape = state[name], getattr(self, f"_{name}").shape
            if saved.shape != shape:
                raise ValueError(f"the collector's {name} has shape {tuple(saved.shape)}, expected {tuple(shape)}")
            setattr(self, f"_{name}", saved.to(self.device))
        self.n_total_env_steps, self._n_steps = index(state["n_total_env_steps"]), index(state["n_steps"])
        self._n_reports, self._n_over = index(state["n_reports"]), state["n_over"]
        self._env_rng.bit_generator.state = state["env_rng"]
        self._carry.load_state_dict(state["carry"])
        self._read, self._unread = [Episode(*row) for row in state["unread"]], []
        if state["env"] is not None:
            self.env.load_state_dict(state["env"])
            return
        warnings.warn(
            "the state of the environments was not saved: all running episodes are closed as truncated",
            RuntimeWarning,
            stacklevel=2,
        )
        self._abandon(self._over.logical_not())
        self._begin()


_TENSORS = ("obs", "over", "returns", "lengths", "succeeded")


def host_only(agent: Hierarchy) -> str | None:
    """Return the reason why an agent cannot learn in a `DeviceCollector`; None if it can."""
    if agent.task.offset is not None:
        return "observations are float64, of which an offset is subtracted on the host"
    return next((level.host_only for level in agent.levels if level.host_only is not None), None)


def _bounds(space: spaces.Space[Any]) -> tuple[float, float]:
    """Return the middle of the actions, and the largest distance from it."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts, starts = choices(space)
        lowest, highest = min(starts), max(s + n - 1 for s, n in zip(starts, counts, strict=True))
        return (lowest + highest) / 2, (highest - lowest) / 2
    return 0.0, 1.0


def _require_fit(env: TorchVectorEnv, agent: Hierarchy, learn: bool) -> None:
    """Raise unless an agent can act in the environments, and learn if it should."""
    task, device = agent.task, torch.device(env.device)
    if not same_device(device, agent.device):
        raise ValueError(f"the environments' device is {device}, expected the agent's, {agent.device}")
    for name, has, wants in (
        ("action", env.single_action_space, task.own_action_space),
        ("observation", env.single_observation_space, task.observation_space),
    ):
        if not same(has, wants):
            raise ValueError(f"the environments' {name} space is {has}, expected the agent's, {wants}")
    if learn and env.num_envs != task.n_envs:
        raise ValueError(f"there are {env.num_envs} environments, expected {task.n_envs}, as the agent's task says")
