"""Levels stacked into one agent."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.carry import Carry, LevelCarry
from layeredrl.decisions import command_of, filled, require_valid
from layeredrl.levels import Decision, Level
from layeredrl.levels.forecasts import Forecasts
from layeredrl.memory import write
from layeredrl.task import TaskSpec
from layeredrl.transfers import to_device, to_host

M = TypeVar("M")


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
        carry.metrics = {}
        # A level below is due wherever the one above is, so that all of this is known before any level decides.
        due = [np.flatnonzero(own.remaining == 0) for own in carry.levels]
        inputs = self._inputs(obs, due, carry)
        decided: list[_Decided] = []
        for i, ids in enumerate(due):
            if len(ids):
                above = decided[-1] if decided and i else None
                decided.append(self._decide(i, ids, inputs, above, carry, explore=explore))
        self._commit(decided, obs, carry)
        carry.unobserved[:] = True
        return carry.levels[-1].action.copy()

    def _inputs(self, obs: NDArray[np.float32], due: Sequence[NDArray[np.int64]], carry: Carry) -> "_Inputs":
        """Copy to the device, at once for all levels, what they decide from."""
        parts: dict[tuple[int, str], NDArray[Any]] = {(0, "obs"): obs}
        for i, ids in enumerate(due):
            if 0 < len(ids) < len(obs):
                parts[i, "rows"] = ids
            changed = due[i - 1] if i else ids
            if len(changed) == len(ids):  # the level above decides anew for all of them, or there is none
                continue
            if len(changed):
                parts[i, "changed"] = np.searchsorted(ids, changed)
            parts |= {(i, name): x for name, x in command_of(carry.levels[i - 1], ids).items()}
        return dict(zip(parts, to_device([*parts.values()], self.device), strict=True))

    def _decide(
        self,
        i: int,
        due: NDArray[np.int64],
        inputs: "_Inputs",
        fresh: "_Decided | None",
        carry: Carry,
        *,
        explore: bool,
    ) -> "_Decided":
        """Let level i decide in the environments that are due.

        Args:
            i: Index of the level.
            due: Environments, (n,).
            inputs: Result of `_inputs`.
            fresh: What the level above has just decided; None if nothing.
            carry: State of acting.
            explore: True to collect experience.
        """
        level, own = self.levels[i], carry.levels[i]
        everywhere = len(due) == len(own.remaining)
        rows: Any = inputs.get((i, "rows"), slice(None))
        obs = inputs[0, "obs"][rows]
        command = None if fresh is None else fresh.command
        if (i, "action") in inputs:
            command = Batch({name: inputs[i, name] for name in _COMMAND})
            if (i, "changed") in inputs:
                write(command, inputs[i, "changed"], cast(_Decided, fresh).command)
        memory = own.memory if everywhere or not own.memory.get_keys() else own.memory[rows]
        decision = level.act(obs, command, memory, explore=explore, generator=carry.generator)
        action = require_valid(level, decision, _KINDS[own.action.dtype.kind], (len(due), *own.action.shape[1:]))
        remaining = decision.duration
        if i:
            left = carry.levels[i - 1].remaining.copy()
            if fresh is not None:
                left[fresh.env_ids] = fresh.remaining
            remaining = np.minimum(remaining, left[due])
        command = Batch(
            action=action,
            obs=obs,
            elapsed=torch.zeros(len(due), dtype=torch.int64, device=obs.device),
            remaining=filled(remaining, obs.device),
        )
        return _Decided(i, due, rows, decision, remaining, command)

    def _commit(self, decided: "Sequence[_Decided]", obs: NDArray[np.float32], carry: Carry) -> None:
        """Store the decisions of all levels in the carry; nothing is stored if one of them raised."""
        tensors: list[Tensor] = []
        for _, _, _, decision, *_ in decided:
            forecast = [] if decision.forecast is None else [decision.forecast]
            tensors += [decision.action, *forecast, *decision.metrics.values()]
        values = iter(to_host(*tensors) if tensors else ())
        for i, due, rows, decision, remaining, _ in decided:
            own = carry.levels[i]
            own.action[due], own.obs[due], own.remaining[due] = next(values), obs[due], remaining
            own.elapsed[due], own.reward[due] = 0, 0.0
            if len(due) == len(own.remaining):
                own.memory = decision.memory
            elif own.memory.get_keys():
                write(own.memory, rows, decision.memory)
            if decision.forecast is not None:
                own.forecasts.open(due, next(values), decision.forecast_steps)
            metrics = {name: (due, next(values)) for name in decision.metrics}
            carry.metrics |= self.named(i, metrics)

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
                metrics = dict(zip(names, returns, strict=True))
                carry.metrics |= {name: (settled, values) for name, values in self.named(i, metrics).items()}
            ended = done | (own.remaining[env_ids] == 0)
            ids = env_ids[ended]
            if not learn or not len(ids):
                continue
            info = Batch(duration=own.elapsed[ids])
            if i > 0:
                above = carry.levels[i - 1]  # its `elapsed` does not count this step yet
                info.command = command_of(above, ids, above.elapsed[ids] + 1 - own.elapsed[ids])
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
        has_memory = any(own.memory.get_keys() for own in carry.levels)
        rows = torch.as_tensor(env_ids, device=self.device) if has_memory else None
        for level, own in zip(self.levels, carry.levels, strict=True):
            own.remaining[env_ids] = 0
            own.elapsed[env_ids] = 0
            own.reward[env_ids] = 0.0
            own.forecasts.drop(env_ids)
            if rows is not None and own.memory.get_keys():
                write(own.memory, rows, level.initial_memory(len(env_ids)))

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
            metrics |= self.named(i, level.learn(n_total_env_steps))
        return metrics

    def named(self, i: int, metrics: Mapping[str, M]) -> dict[str, M]:
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


_COMMAND = ("action", "obs", "elapsed", "remaining")
_KINDS = {"i": torch.int64, "f": torch.float32}
"""Types of actions on the device, by the kind of those in the carry."""


class _Decided(NamedTuple):
    """Decision of a level in some environments (n,)."""

    level: int
    """Index of the level."""
    env_ids: NDArray[np.int64]
    rows: Any
    """The environments as an index of tensors of all of them."""
    decision: Decision
    remaining: NDArray[np.int64]
    """Environment steps for which the actions last, (n,)."""
    command: Batch
    """Command to the level below."""


_Inputs = dict[tuple[int, str], Tensor]
"""Tensors by level and name: all observations; rows that are due, unless all are; commands; and places among the rows
where the level above decides anew."""
