"""Running an agent's levels where observations, actions and transitions stay on a device.

`Hierarchy.act` and `observe` on tensors: the same decisions and transitions, without a copy from the host, and without
a loop over environments. The carry changes once all levels have decided, so that one that raises leaves it as it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl import memory as memories
from layeredrl.decisions import command_of, filled, require_valid
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Level
from layeredrl.levels.forecasts import TensorForecasts
from layeredrl.levels.level import Decision
from layeredrl.metrics import FiniteMeans
from layeredrl.randomness import generator_state, restore_generator


class Outcome(Protocol):
    """Result of a step of E environments; see `TorchStep`."""

    @property
    def obs(self) -> Tensor: ...
    @property
    def reward(self) -> Tensor: ...
    @property
    def terminated(self) -> Tensor: ...
    @property
    def truncated(self) -> Tensor: ...


@dataclass(frozen=True)
class TensorLevelCarry:
    """State of one level in each of E environments, as `LevelCarry` has it."""

    memory: Batch
    action: Tensor
    obs: Tensor
    remaining: Tensor
    elapsed: Tensor
    reward: Tensor
    forecasts: TensorForecasts
    lasts_one: bool = False
    """If True, the actions of all environments are known to last for one step."""


@dataclass
class TensorCarry:
    """State of acting in a set of environments on a device."""

    levels: list[TensorLevelCarry]
    """State of each level, top first."""
    generator: torch.Generator
    """Randomness of acting in these environments."""
    n_due: list[int]
    """Number of environments in which each level decides next."""
    means: FiniteMeans
    """Metrics of the decisions since they were last taken."""

    def state_dict(self) -> dict[str, Any]:
        """The state from which acting continues."""
        return {
            "levels": [
                {
                    "memory": memories.state_of(own.memory),
                    "forecasts": own.forecasts.state_dict(),
                    **{name: getattr(own, name).clone() for name in _TENSORS},
                }
                for own in self.levels
            ],
            **generator_state(self.generator),
            "n_due": list(self.n_due),
            "means": self.means.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in as many environments; another kind of device draws other numbers."""
        if len(state["levels"]) != len(self.levels):
            raise ValueError(f"the carry has {len(state['levels'])} levels, expected {len(self.levels)}")
        for i, (own, saved) in enumerate(zip(self.levels, state["levels"], strict=True)):
            memories.restore(own.memory, saved["memory"])
            own.forecasts.load_state_dict(saved["forecasts"])
            for name in _TENSORS:
                memories.require_shape(name, saved[name], getattr(own, name).shape)
            tensors = {name: saved[name].to(own.obs.device, copy=True) for name in _TENSORS}
            self.levels[i] = replace(own, **tensors, lasts_one=False)
        self.n_due = [int(n) for n in state["n_due"]]
        self.means.load_state_dict(state["means"])
        restore_generator(self.generator, state)


_TENSORS = ("action", "obs", "remaining", "elapsed", "reward")


class DeviceHierarchy:
    """Lets the levels of an agent act and observe in environments on their device.

    Args:
        agent: Its levels decide from tensors, and keep transitions in a `TensorReplay`, if they learn.
        n_envs: Number of environments E.
    """

    def __init__(self, agent: Hierarchy, n_envs: int) -> None:
        self.agent, self.n_envs, self.device = agent, n_envs, agent.device
        self._all = torch.arange(n_envs, device=self.device)
        self._zero = torch.zeros(n_envs, dtype=torch.int64, device=self.device)
        self._one = self._zero + 1
        self._nothing = torch.zeros(n_envs, dtype=torch.float64, device=self.device)

    def initial_carry(self, seed: int) -> TensorCarry:
        """Carry of environments whose episodes are about to begin, with a seed of acting in them."""
        carries = []
        for level in self.agent.levels:
            discrete, width = action_spaces.is_discrete(level.action_space), action_spaces.width(level.action_space)
            dtype = torch.int64 if discrete else torch.float32
            carries.append(
                TensorLevelCarry(
                    memory=level.initial_memory(self.n_envs),
                    action=torch.zeros(self.n_envs, width, dtype=dtype, device=self.device),
                    obs=torch.zeros(self.n_envs, self.agent.task.observation_dim, device=self.device),
                    remaining=self._zero,
                    elapsed=self._zero,
                    reward=self._nothing,
                    forecasts=TensorForecasts(self.n_envs, level.discount, self.device),
                )
            )
        generator = torch.Generator(self.device).manual_seed(seed)
        return TensorCarry(carries, generator, [self.n_envs] * len(carries), FiniteMeans())

    def reset(self, carry: TensorCarry, over: Tensor | None = None) -> None:
        """Reset the carry where an episode begins, a mask (E,); None for all environments."""
        for i, (level, own) in enumerate(zip(self.agent.levels, carry.levels, strict=True)):
            remaining = self._zero if over is None else own.remaining.masked_fill(over, 0)
            memory = own.memory
            if memory.get_keys():
                memory = level.initial_memory(self.n_envs)
                memory = memory if over is None else memories.where(over, memory, own.memory)
            own.forecasts.drop(over)
            carry.levels[i] = replace(own, remaining=remaining, memory=memory)
        if over is None:
            carry.n_due = [self.n_envs] * len(carry.levels)

    def act(self, obs: Tensor, carry: TensorCarry, *, explore: bool) -> Tensor:
        """Actions for all environments, (E, A), in [-1, 1] for a Box; updates the carry. See `Hierarchy.act`.

        Args:
            obs: Flat observations, (E, O).
            carry: Carry of these environments.
            explore: True to collect experience, False to act as well as possible.
        """
        decided: list[TensorLevelCarry] = []
        made: list[tuple[int, Any, Decision]] = []
        for i, n in enumerate(carry.n_due):
            own = carry.levels[i]
            if n:
                own, rows, decision = self._decide(i, n, obs, decided, carry, explore=explore)
                made.append((i, rows, decision))
            decided.append(own)
        for i, rows, decision in made:
            if decision.forecast is not None:
                decided[i].forecasts.open(rows, decision.forecast, decision.forecast_steps)
            carry.means.add(self.agent.named(i, decision.metrics))
        # If the environments fail now, nothing is due: the same actions are tried again.
        carry.levels, carry.n_due = decided, [0] * len(decided)
        return decided[-1].action

    def _decide(
        self,
        i: int,
        n: int,
        obs: Tensor,
        above: Sequence[TensorLevelCarry],
        carry: TensorCarry,
        *,
        explore: bool,
    ) -> tuple[TensorLevelCarry, Any, Decision]:
        """Let level i decide in the n environments that are due; `above` are the levels above after their decisions.

        Returns:
            The level's carry after its decision, the rows (n,) in which it decided, and the decision.
        """
        level, own, everywhere = self.agent.levels[i], carry.levels[i], n == self.n_envs
        rows: Any = slice(None) if everywhere else _first(own.remaining == 0, n)
        command = command_of(above[-1], rows) if above else None
        memory = own.memory if everywhere or not own.memory.get_keys() else own.memory[rows]
        decision = level.act(obs[rows], command, memory, explore=explore, generator=carry.generator)
        action = require_valid(level, decision, own.action.dtype, (n, *own.action.shape[1:]))
        lasts_one = everywhere and bool((decision.duration == 1).all())
        remaining = self._one if lasts_one else filled(decision.duration, self.device)
        if above and not lasts_one:
            remaining = torch.minimum(remaining, above[-1].remaining[rows])
        if everywhere:
            changed = replace(
                own,
                memory=decision.memory,
                action=action,
                obs=obs,
                remaining=remaining,
                elapsed=self._zero,
                reward=self._nothing,
                lasts_one=lasts_one,
            )
            return changed, rows, decision
        changed = TensorLevelCarry(
            memory=memories.replaced(own.memory, rows, decision.memory),
            action=own.action.index_copy(0, rows, action),
            obs=own.obs.index_copy(0, rows, obs[rows]),
            remaining=own.remaining.index_copy(0, rows, remaining),
            elapsed=own.elapsed.index_fill(0, rows, 0),
            reward=own.reward.index_fill(0, rows, 0.0),
            forecasts=own.forecasts,
        )
        return changed, rows, decision

    def observe(self, step: Outcome, carry: TensorCarry, *, learn: bool) -> int | None:
        """Process one step of all environments; updates the carry. See `Hierarchy.observe`.

        A GPU waits once, for the numbers of actions that ended; not at all if those of all levels last for one step.

        Args:
            step: Rewards, flags and the true next observations.
            carry: Carry of the environments.
            learn: If True, finished transitions go to the levels' replay.

        Returns:
            Number of episodes that ended; None if it was not read.
        """
        done = step.terminated | step.truncated
        reward = step.reward.double()
        for i, (level, own) in enumerate(zip(self.agent.levels, carry.levels, strict=True)):
            carry.levels[i] = self._stepped(level, own, reward)
            settled = own.forecasts.step(reward, step.terminated, done)
            if settled is not None:
                names = ("plan/predicted_return", "plan/achieved_return")
                carry.means.add(self.agent.named(i, dict(zip(names, settled, strict=True))))
        ended = [None if own.lasts_one else done | (own.remaining == 0) for own in carry.levels]
        masks = [mask for mask in ended if mask is not None]
        n_done, carry.n_due = None, [self.n_envs] * len(ended)
        if masks:
            *numbers, n_done = torch.stack([*masks, done]).sum(1).tolist()
            counts = iter(numbers)
            carry.n_due = [self.n_envs if mask is None else next(counts) for mask in ended]
        for i in reversed(range(len(carry.levels))) if learn else ():
            if carry.n_due[i] and self.agent.levels[i].replay is not None:
                self._store(i, carry.n_due[i], ended[i], step, carry)
        if n_done != 0 and (masks or any(own.memory.get_keys() for own in carry.levels)):
            self.reset(carry, done)
        return n_done

    def _stepped(self, level: Level, own: TensorLevelCarry, reward: Tensor) -> TensorLevelCarry:
        """Add a step to what an action has accumulated."""
        if own.lasts_one:
            return replace(own, reward=reward, elapsed=self._one, remaining=self._zero)
        factor = level.discount**own.elapsed if level.discount != 1 else 1.0
        return replace(own, reward=own.reward + factor * reward, elapsed=own.elapsed + 1, remaining=own.remaining - 1)

    def _store(self, i: int, n: int, ended: Tensor | None, step: Outcome, carry: TensorCarry) -> None:
        """Give level i its n transitions that have ended."""
        own = carry.levels[i]
        everywhere = ended is None or n == self.n_envs
        env_ids = self._all if everywhere else _first(ended, n)
        rows: Any = slice(None) if everywhere else env_ids
        info = Batch(duration=own.elapsed[rows])
        if i > 0:
            above = carry.levels[i - 1]
            info.command = command_of(above, rows, above.elapsed[rows] - own.elapsed[rows])
        transitions = Batch(
            obs=own.obs[rows],
            act=own.action[rows],
            rew=own.reward[rows],
            terminated=step.terminated[rows],
            truncated=step.truncated[rows],
            obs_next=step.obs[rows],
            info=info,
        )
        level: Any = self.agent.levels[i]
        level.observe(transitions, env_ids)


def _first(mask: Tensor | None, n: int) -> Tensor:
    """Indices (n,) where a mask (E,) is True, in ascending order, of which there are n: a GPU does not wait."""
    assert mask is not None
    return mask.logical_not().to(torch.uint8).argsort(stable=True)[:n]
