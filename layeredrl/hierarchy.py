"""Levels stacked into one agent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.levels import Level
from layeredrl.levels.forecasts import Forecasts
from layeredrl.task import TaskSpec


@dataclass
class LevelCarry:
    """What is under way at one level, one row for each environment."""

    memory: Batch
    """What the level wants to see again, on its device."""
    action: NDArray[Any]
    """Action that stands, (E, A)."""
    obs: NDArray[np.float32]
    """Observation at which it was chosen, (E, O)."""
    remaining: NDArray[np.int64]
    """Environment steps for which it still stands, (E,); zero: a decision is due."""
    elapsed: NDArray[np.int64]
    """Environment steps since it was chosen, (E,)."""
    reward: NDArray[np.float64]
    """Reward accumulated since then, each step's discounted to the start, (E,)."""
    forecasts: Forecasts
    """Predicted returns that wait for the real ones."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors."""
        return {
            "memory": {key: self.memory[key] for key in self.memory.get_keys()},
            "forecasts": self.forecasts.state_dict(),
            **{name: torch.from_numpy(getattr(self, name).copy()) for name in _ARRAYS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if set(state["memory"]) != set(self.memory.get_keys()):
            raise ValueError(
                f"a level's memory holds {sorted(state['memory'])}, expected {sorted(self.memory.get_keys())}"
            )
        for key, value in state["memory"].items():
            _require_shape(f"memory.{key}", value, self.memory[key].shape)
            self.memory[key] = value.to(self.memory[key].device)
        for name in _ARRAYS:
            _require_shape(name, state[name], getattr(self, name).shape)
            getattr(self, name)[:] = state[name].cpu().numpy()
        self.forecasts.load_state_dict(state["forecasts"])


_ARRAYS = ("action", "obs", "remaining", "elapsed", "reward")


@dataclass
class Carry:
    """Everything that is under way in a set of environments. The caller owns it; the agent's levels keep none of it."""

    levels: list[LevelCarry]
    """One for each level, top first."""
    generator: torch.Generator
    """Randomness of acting in these environments."""
    metrics: dict[str, tuple[NDArray[np.int64], Tensor]]
    """What the last step had to tell: environments (n,) and values (n,), on the agent's device."""

    def last_metrics(self) -> dict[str, NDArray[np.float32]]:
        """What the last step had to tell, (E,) by name; NaN where there was nothing."""
        columns = {}
        for name, (env_ids, values) in self.metrics.items():
            columns[name] = np.full(len(self.levels[0].remaining), np.nan, np.float32)
            columns[name][env_ids] = values.cpu().numpy()
        return columns

    def state_dict(self) -> dict[str, Any]:
        """What acting goes on from."""
        return {
            "levels": [level.state_dict() for level in self.levels],
            "generator": self.generator.get_state(),
            "device": self.generator.device.type,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in as many environments; on another kind of device, with other draws."""
        if len(state["levels"]) != len(self.levels):
            raise ValueError(f"the carry has {len(state['levels'])} levels, expected {len(self.levels)}")
        for level, saved in zip(self.levels, state["levels"], strict=True):
            level.load_state_dict(saved)
        if state["device"] == self.generator.device.type:
            self.generator.set_state(state["generator"].cpu())


class Hierarchy:
    """An agent made of levels, top first; a flat agent has one level.

    Acting runs top-down, in the environments in which a level's action has run out. When a level's action ends, the
    actions below end too. Observing runs bottom-up and hands every level the transitions that have ended at its own
    time scale: observation and action at the start, reward summed with the level's discount, true last observation.

    Args:
        levels: Each emits what the next one takes as command; the last emits the environment's actions.
        task: The environments' spaces.
        device: Where the levels compute.
    """

    def __init__(self, levels: Sequence[Level], task: TaskSpec, device: torch.device | str = "cpu") -> None:
        if not levels:
            raise ValueError("levels is empty, expected at least one level")
        if levels[0].command_space is not None:
            raise ValueError(f"the top level takes commands of {levels[0].command_space}, but nothing is above it")
        for above, below in pairwise(levels):
            if above.action_space != below.command_space:
                raise ValueError(
                    f"{type(above).__name__} emits {above.action_space}, but {type(below).__name__} below it takes "
                    f"commands of {below.command_space}"
                )
        if levels[-1].action_space != task.action_space:
            raise ValueError(
                f"{type(levels[-1]).__name__} emits {levels[-1].action_space}, but the environment takes "
                f"{task.action_space}"
            )
        self.levels = list(levels)
        self._suffixes = [f"_level{i}" if _alike(levels[:i], level) else "" for i, level in enumerate(levels)]
        self.task = task
        self.device = torch.device(device)

    def initial_carry(self, n_envs: int, seed: int) -> Carry:
        """Carry for environments that are about to begin.

        Args:
            n_envs: How many environments E; it need not be the number that the agent trains in.
            seed: Of the randomness of acting there.
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
        return Carry(carries, torch.Generator(self.device).manual_seed(seed), {})

    def act(self, obs: NDArray[np.float32], carry: Carry, *, explore: bool) -> NDArray[Any]:
        """Actions for all environments, (E, A), in [-1, 1] for a Box; updates the carry.

        Args:
            obs: Flat observations, (E, O).
            carry: Of these environments.
            explore: Whether to collect experience or to do as well as possible.
        """
        obs_on_device = torch.as_tensor(obs, device=self.device)
        carry.metrics = {}
        for i, own in enumerate(carry.levels):
            due = np.flatnonzero(own.remaining == 0)
            if len(due):
                self._decide(i, due, obs_on_device, carry, explore=explore)
                own.obs[due] = obs[due]
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
        carry.metrics |= {name: (due, values) for name, values in decision.metrics.items()}
        if decision.forecast is not None:
            own.forecasts.open(due, decision.forecast.cpu().numpy(), decision.forecast_steps)

    def observe(self, step: Batch, env_ids: NDArray[np.int64], carry: Carry, *, learn: bool) -> None:
        """Account for one step of some of the environments; updates the carry.

        Args:
            step: Keys `rew`, `terminated`, `truncated` (n,) and `obs_next` (n, O), the true next observation.
            env_ids: Which environments, (n,), in ascending order.
            carry: Of these environments.
            learn: Whether finished transitions go to the levels' replay.
        """
        done = step.terminated | step.truncated
        for i in reversed(range(len(self.levels))):
            level, own = self.levels[i], carry.levels[i]
            own.reward[env_ids] += level.discount ** own.elapsed[env_ids] * step.rew
            own.elapsed[env_ids] += 1
            own.remaining[env_ids] -= 1
            settled, *returns = own.forecasts.step(env_ids, step.rew, step.terminated, step.truncated)
            if len(settled):
                names = ("plan/predicted_return", "plan/achieved_return")
                carry.metrics |= {n: (settled, torch.as_tensor(r)) for n, r in zip(names, returns, strict=True)}
            ended = done | (own.remaining[env_ids] == 0)
            ids = env_ids[ended]
            if not learn or not len(ids):
                continue
            info = Batch(duration=own.elapsed[ids])
            if i > 0:
                above = carry.levels[i - 1]  # which has not counted this step yet
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
        """Begin anew in some of the environments, whose next observation is an episode's first."""
        if not len(env_ids):
            return
        rows = torch.as_tensor(env_ids, device=self.device)
        for level, own in zip(self.levels, carry.levels, strict=True):
            own.remaining[env_ids] = 0
            own.elapsed[env_ids] = 0
            own.reward[env_ids] = 0.0
            own.forecasts.drop(env_ids)
            if own.memory.get_keys():
                _write(own.memory, rows, level.initial_memory(len(env_ids)))

    def abandon(self, carry: Carry, env_ids: NDArray[np.int64], *, learn: bool) -> None:
        """End episodes of which the rest will never be seen: what is stored of them, if it is, ends truncated."""
        if learn:
            for level in self.levels:
                level.abandon(env_ids)
        self.reset(carry, env_ids)

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        """Let every level learn if it is time for that; returns their metrics.

        Names of a level end in its number where one above it is of the same kind.
        """
        metrics: dict[str, float] = {}
        for level, suffix in zip(self.levels, self._suffixes, strict=True):
            metrics |= {f"{name}{suffix}": value for name, value in level.learn(n_total_env_steps).items()}
        return metrics

    def experience(self) -> dict[str, Any]:
        """What the levels learn from, by level."""
        return {str(i): level.replay.state_dict() for i, level in enumerate(self.levels) if level.replay is not None}

    def load_experience(self, state: Mapping[str, Any]) -> None:
        """Restore what `experience` returned."""
        for i, level in enumerate(self.levels):
            if level.replay is not None:
                level.replay.load_state_dict(state[str(i)])

    def state_dict(self) -> dict[str, Any]:
        """Everything learned, by level."""
        return {str(i): level.state_dict() for i, level in enumerate(self.levels)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if len(state) != len(self.levels):
            raise ValueError(f"the state has {len(state)} levels, expected {len(self.levels)}")
        for i, level in enumerate(self.levels):
            level.load_state_dict(state[str(i)])


def _alike(levels: Sequence[Level], level: Level) -> bool:
    """Whether one of some levels is of the same kind as another, so that their metrics have the same names."""
    kinds = set(type(level).__mro__) - set(Level.__mro__)
    return any(kinds & set(type(other).__mro__) for other in levels)


def _command(above: LevelCarry, env_ids: NDArray[np.int64], elapsed: NDArray[np.int64]) -> Batch:
    """What a level asks of the one below when its action has stood for so many steps (n,)."""
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
    for key in memory.get_keys():
        memory[key][rows] = values[key]
