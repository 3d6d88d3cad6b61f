"""Levels stacked into one agent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.levels import Level
from layeredrl.levels.forecasts import Forecasts
from layeredrl.task import TaskSpec

M = TypeVar("M")


@dataclass
class LevelCarry:
    """State of one level in each of E environments."""

    memory: Batch
    """Memory of the level, on its device."""
    action: NDArray[Any]
    """Current action, (E, A)."""
    obs: NDArray[np.float32]
    """Observation at which it was chosen, (E, O)."""
    remaining: NDArray[np.int64]
    """Environment steps until the action ends, (E,); zero: a decision is due."""
    elapsed: NDArray[np.int64]
    """Environment steps since it was chosen, (E,)."""
    reward: NDArray[np.float64]
    """Reward accumulated since then, each step's discounted to the start, (E,)."""
    forecasts: Forecasts
    """Predicted returns, until they can be compared with the achieved ones."""

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors."""
        return {
            "memory": _to_dict(self.memory),
            "forecasts": self.forecasts.state_dict(),
            **{name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        _restore("memory", self.memory, state["memory"])
        for name in _ARRAYS:
            _require_shape(name, state[name], getattr(self, name).shape)
            getattr(self, name)[:] = state[name].cpu().numpy()
        self.forecasts.load_state_dict(state["forecasts"])


_ARRAYS = ("action", "obs", "remaining", "elapsed", "reward")


@dataclass
class Carry:
    """State of acting in a set of environments. The caller owns it; the agent's levels keep none of it."""

    levels: list[LevelCarry]
    """State of each level, top first."""
    generator: torch.Generator
    """Randomness of acting in these environments."""
    metrics: dict[str, tuple[NDArray[np.int64], Tensor]]
    """Metrics of the last step by name: environments (n,) and values (n,)."""
    unobserved: NDArray[np.bool_]
    """True in environments whose last action has not been observed yet, (E,)."""

    def last_metrics(self) -> dict[str, NDArray[np.float32]]:
        """Metrics of the last step by name, each of shape (E,); NaN where a level reported none."""
        columns = {}
        for name, (env_ids, values) in self.metrics.items():
            columns[name] = np.full(len(self.levels[0].remaining), np.nan, np.float32)
            columns[name][env_ids] = values.cpu().numpy()
        return columns

    def state_dict(self) -> dict[str, Any]:
        """The state from which acting continues."""
        return {
            "levels": [level.state_dict() for level in self.levels],
            "generator": self.generator.get_state(),
            "device": self.generator.device.type,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in as many environments; another kind of device draws other numbers."""
        if len(state["levels"]) != len(self.levels):
            raise ValueError(f"the carry has {len(state['levels'])} levels, expected {len(self.levels)}")
        for level, saved in zip(self.levels, state["levels"], strict=True):
            level.load_state_dict(saved)
        self.unobserved[:] = False  # a step that was not observed is taken again
        if state["device"] == self.generator.device.type:
            self.generator.set_state(state["generator"].cpu())


class Hierarchy:
    """An agent made of levels, top first; a flat agent has one level.

    Acting runs top-down, in the environments in which a level's action has ended. When a level's action ends, the
    actions below end too. Observing runs bottom-up and gives every level the transitions that have ended at its own
    time scale: observation and action at the start, reward summed with the level's discount, true last observation.

    Args:
        levels: The action space of each is the command space of the next; the last one's is the environment's.
        task: The environments' spaces.
        device: Device of the levels.

    Attributes:
        names: Unique names of the levels, which key their states: `Level.name`, numbered where several have the same.
    """

    def __init__(self, levels: Sequence[Level], task: TaskSpec, device: torch.device | str = "cpu") -> None:
        if not levels:
            raise ValueError("levels is empty, expected at least one level")
        if levels[0].command_space is not None:
            raise ValueError(
                f"the top level takes commands of {levels[0].command_space}, but there is no level above it"
            )
        for above, below in pairwise(levels):
            if below.command_space is None or not action_spaces.same(above.action_space, below.command_space):
                raise ValueError(
                    f"{type(above).__name__} emits {above.action_space}, but {type(below).__name__} below it takes "
                    f"commands of {below.command_space}"
                )
        if not action_spaces.same(levels[-1].action_space, task.action_space):
            raise ValueError(
                f"{type(levels[-1]).__name__} emits {levels[-1].action_space}, but the environment takes "
                f"{task.action_space}"
            )
        self.levels = list(levels)
        self.names = _unique([level.name for level in levels])
        self._shares_metrics = [any(_alike(level, other) for other in levels if other is not level) for level in levels]
        self.task = task
        self.device = torch.device(device)

    def initial_carry(self, n_envs: int, seed: int) -> Carry:
        """Carry of environments whose episodes are about to begin.

        Args:
            n_envs: Number of environments E; it may differ from the number that the agent trains in.
            seed: Seed of acting in these environments.
        """
        n_obs = self.task.observation_dim
        carries = []
        for level in self.levels:
            discrete, width = action_spaces.is_discrete(level.action_space), action_spaces.width(level.action_space)
            carries.append(
                LevelCarry(
                    memory=level.initial_memory(n_envs),
                    action=np.zeros((n_envs, width), np.int64 if discrete else np.float32),
                    obs=np.zeros((n_envs, n_obs), np.float32),
                    remaining=np.zeros(n_envs, np.int64),
                    elapsed=np.zeros(n_envs, np.int64),
                    reward=np.zeros(n_envs),
                    forecasts=Forecasts(n_envs, level.discount),
                )
            )
        return Carry(carries, torch.Generator(self.device).manual_seed(seed), {}, np.zeros(n_envs, bool))

    def act(self, obs: NDArray[np.float32], carry: Carry, *, explore: bool) -> NDArray[Any]:
        """Actions for all environments, (E, A), in [-1, 1] for a Box; updates the carry.

        Args:
            obs: Flat observations, (E, O).
            carry: Carry of these environments.
            explore: True to collect experience, False to act as well as possible.

        Raises:
            RuntimeError: The last action of an environment has not been observed.
        """
        if carry.unobserved.any():
            raise RuntimeError(
                f"act is called again, but its last action is not observed yet in {_named_envs(carry.unobserved)}, "
                "expected `observe` after every step, or `reset` (`layeredrl.Policy` observes by itself)"
            )
        obs_on_device = torch.as_tensor(obs, device=self.device)
        carry.metrics = {}
        for i, own in enumerate(carry.levels):
            due = np.flatnonzero(own.remaining == 0)
            if len(due):
                self._decide(i, due, obs_on_device, carry, explore=explore)
                own.obs[due] = obs[due]
        carry.unobserved[:] = True
        return carry.levels[-1].action.copy()

    def _decide(self, i: int, due: NDArray[np.int64], obs: Tensor, carry: Carry, *, explore: bool) -> None:
        """Let level i decide in the environments that are due."""
        level, own = self.levels[i], carry.levels[i]
        above = carry.levels[i - 1] if i > 0 else None
        everywhere = len(due) == len(own.remaining)
        rows: Any = slice(None) if everywhere else torch.as_tensor(due, device=self.device)
        command = None if above is None else _command(above, due, above.elapsed[due])
        if command is not None:
            command.to_torch_(device=self.device)
        memory = own.memory if everywhere or not own.memory.get_keys() else own.memory[rows]
        decision = level.act(obs[rows], command, memory, explore=explore, generator=carry.generator)
        if (decision.duration < 1).any():
            raise ValueError(
                f"{type(level).__name__} decided for a duration of {decision.duration}, expected at least 1 everywhere"
            )
        action = decision.action.cpu().numpy()
        if action.shape != own.action[due].shape or action.dtype.kind != own.action.dtype.kind:
            raise ValueError(
                f"{type(level).__name__} decided for actions of shape {action.shape} and type {action.dtype}, "
                f"expected {own.action[due].shape} and {own.action.dtype}"
            )
        own.action[due] = action
        if everywhere:
            own.memory = decision.memory
        elif own.memory.get_keys():
            _write(own.memory, rows, decision.memory)
        own.remaining[due] = decision.duration
        if above is not None:
            own.remaining[due] = np.minimum(decision.duration, above.remaining[due])
        own.elapsed[due] = 0
        own.reward[due] = 0.0
        carry.metrics |= {name: (due, values) for name, values in self._named(i, decision.metrics).items()}
        if decision.forecast is not None:
            own.forecasts.open(due, decision.forecast.cpu().numpy(), decision.forecast_steps)

    def observe(self, step: Batch, env_ids: NDArray[np.int64], carry: Carry, *, learn: bool) -> None:
        """Process one step of some of the environments; updates the carry.

        Args:
            step: Keys `rew`, `terminated`, `truncated` (n,) and `obs_next` (n, O), the true next observation.
            env_ids: Indices of the environments, (n,), in ascending order.
            carry: Carry of all environments.
            learn: If True, finished transitions go to the levels' replay.
        """
        done = step.terminated | step.truncated
        carry.unobserved[env_ids] = False
        for i in reversed(range(len(self.levels))):
            level, own = self.levels[i], carry.levels[i]
            own.reward[env_ids] += level.discount ** own.elapsed[env_ids] * step.rew
            own.elapsed[env_ids] += 1
            own.remaining[env_ids] -= 1
            settled, *returns = own.forecasts.step(env_ids, step.rew, step.terminated, step.truncated)
            if len(settled):
                names = ("plan/predicted_return", "plan/achieved_return")
                metrics = {name: torch.as_tensor(values) for name, values in zip(names, returns, strict=True)}
                carry.metrics |= {name: (settled, values) for name, values in self._named(i, metrics).items()}
            ended = done | (own.remaining[env_ids] == 0)
            ids = env_ids[ended]
            if not learn or not len(ids):
                continue
            info = Batch(duration=own.elapsed[ids])
            if i > 0:
                above = carry.levels[i - 1]  # its `elapsed` does not count this step yet
                info.command = _command(above, ids, above.elapsed[ids] + 1 - own.elapsed[ids])
            transitions = Batch(
                obs=own.obs[ids],
                act=own.action[ids],
                rew=own.reward[ids],
                terminated=step.terminated[ended],
                truncated=step.truncated[ended],
                obs_next=step.obs_next[ended],
                info=info,
            )
            level.observe(transitions, ids)
        self.reset(carry, env_ids[done])

    def reset(self, carry: Carry, env_ids: NDArray[np.int64]) -> None:
        """Reset the carry of environments whose next observation is the first of an episode."""
        if not len(env_ids):
            return
        carry.unobserved[env_ids] = False
        rows = torch.as_tensor(env_ids, device=self.device)
        for level, own in zip(self.levels, carry.levels, strict=True):
            own.remaining[env_ids] = 0
            own.elapsed[env_ids] = 0
            own.reward[env_ids] = 0.0
            own.forecasts.drop(env_ids)
            if own.memory.get_keys():
                _write(own.memory, rows, level.initial_memory(len(env_ids)))

    def abandon(self, carry: Carry, env_ids: NDArray[np.int64], *, learn: bool) -> None:
        """End episodes whose rest is never observed; their stored transitions, if any, end truncated."""
        if learn:
            for level in self.levels:
                level.abandon(env_ids)
        self.reset(carry, env_ids)

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        """Let every level learn if its learning is due; returns their metrics.

        Metrics of levels of the same kind begin with the level's name, as do those of acting.
        """
        metrics: dict[str, float] = {}
        for i, level in enumerate(self.levels):
            metrics |= self._named(i, level.learn(n_total_env_steps))
        return metrics

    def _named(self, i: int, metrics: Mapping[str, M]) -> dict[str, M]:
        """Metrics of level i, beginning with its name where another level's could have the same names."""
        return {f"{self.names[i]}/{name}": x for name, x in metrics.items()} if self._shares_metrics[i] else {**metrics}

    def experience(self) -> dict[str, Any]:
        """Replays of the levels, by name."""
        return {
            name: level.replay.state_dict()
            for name, level in zip(self.names, self.levels, strict=True)
            if level.replay is not None
        }

    def load_experience(self, state: Mapping[str, Any]) -> None:
        """Restore what `experience` returned."""
        for name, level in zip(self.names, self.levels, strict=True):
            if level.replay is not None:
                level.replay.load_state_dict(state[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, by name of the level, and the offset of observations if there is one."""
        state: dict[str, Any] = {name: level.state_dict() for name, level in zip(self.names, self.levels, strict=True)}
        offset = self.task.offset
        return state | {_OFFSET: torch.from_numpy(offset.values)} if offset is not None and offset.used else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        names = [name for name in state if name != _OFFSET]
        if names != self.names:
            raise ValueError(f"the state has the levels {', '.join(names)}, expected {', '.join(self.names)}")
        for name, level in zip(self.names, self.levels, strict=True):
            level.load_state_dict(state[name])
        if self.task.offset is not None:
            none = torch.zeros(self.task.observation_dim, dtype=torch.float64)
            self.task.offset.set(state.get(_OFFSET, none).cpu().numpy())


_OFFSET = "observation_offset"


def _named_envs(mask: NDArray[np.bool_]) -> str:
    """Names of the environments in a mask (E,), at most three of them."""
    ids = np.flatnonzero(mask).tolist()
    rest = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"environment{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids[:3]))}{rest}"


def _unique(names: Sequence[str]) -> list[str]:
    """Names, with the number of the level behind those that occur several times."""
    return [f"{name}{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _alike(level: Level, other: Level) -> bool:
    """Return True if two levels are of the same kind, so that their metrics have the same names."""
    return bool((set(type(level).__mro__) - set(Level.__mro__)) & set(type(other).__mro__))


def _command(above: LevelCarry, env_ids: NDArray[np.int64], elapsed: NDArray[np.int64]) -> Batch:
    """Command of a level to the one below, at `elapsed` environment steps (n,) after the level's decision."""
    return Batch(
        action=above.action[env_ids],
        obs=above.obs[env_ids],
        elapsed=elapsed,
        remaining=above.remaining[env_ids] + above.elapsed[env_ids] - elapsed,
    )


def _require_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"the carry's {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")


def _write(memory: Batch, rows: Tensor, values: Batch) -> None:
    """Overwrite rows of a memory, which may be nested."""
    for key in memory.get_keys():
        if isinstance(memory[key], Batch):
            _write(memory[key], rows, values[key])
        else:
            memory[key][rows] = values[key]


def _to_dict(memory: Batch) -> dict[str, Any]:
    """A copy of a memory as nested dicts of tensors."""
    return {key: _to_dict(x) if isinstance(x, Batch) else x.clone() for key, x in memory.items()}


def _restore(name: str, memory: Batch, state: Mapping[str, Any]) -> None:
    """Replace the tensors of a memory by those of `_to_dict`, on the same devices."""
    if set(state) != set(memory.get_keys()):
        raise ValueError(f"the carry's {name} holds {sorted(state)}, expected {sorted(memory.get_keys())}")
    for key, value in state.items():
        if isinstance(memory[key], Batch):
            _restore(f"{name}.{key}", memory[key], value)
        else:
            _require_shape(f"{name}.{key}", value, memory[key].shape)
            memory[key] = value.to(memory[key].device, copy=True)
