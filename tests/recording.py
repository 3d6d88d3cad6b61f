"""Levels, environments and a logger that record their steps, for tests to compare with a plain loop."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from tianshou.data import Batch

from layeredrl.levels import Decision, Level, RandomLevel
from layeredrl.loggers import Logger
from layeredrl.storage import Replay
from tests.envs.counter import CounterEnv


class Step(NamedTuple):
    """One step of an environment."""

    obs: list[float]
    action: list[float]
    reward: float
    obs_next: list[float]
    terminated: bool
    truncated: bool


class DiaryEnv(CounterEnv):
    """Records the seed and the steps of every episode."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.diary: list[list[Step]] = []
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.diary.append([])
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        before = self._observation().tolist()
        result = super().step(action)
        obs, reward, terminated, truncated, _ = result
        self.diary[-1].append(Step(before, np.ravel(action).tolist(), reward, obs.tolist(), terminated, truncated))
        return result


class GoalEnv(gym.ObservationWrapper):
    """Dict observations; the desired goal changes from episode to episode."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        inner = env.observation_space
        goal = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = gym.spaces.Dict(observation=inner, desired_goal=goal, achieved_goal=goal)

    def observation(self, observation):
        count, episode = observation.astype(np.float64)
        return {
            "observation": observation,
            "desired_goal": np.array([10 + episode]),
            "achieved_goal": np.array([-count]),
        }


class RecordingRandomLevel(RandomLevel):
    """Acts at random and stores its transitions."""

    def __init__(self, action_space: gym.Space, n_envs: int, **kwargs: Any) -> None:
        super().__init__(action_space, **kwargs)
        self.replay = Replay(2000 * n_envs, n_envs)

    def observe(self, transitions, env_ids) -> None:
        self.replay.add(transitions, env_ids)


Policy = Callable[[np.ndarray, np.ndarray | None, int], tuple[list[float], int]]
"""Observation (O,), command (C,) and the number of decisions before in this episode to action and duration."""


class FunctionLevel(Level):
    """Decides for each environment by a plain function, and stores its transitions."""

    def __init__(
        self,
        policy: Policy,
        action_space: gym.Space,
        command_space: gym.Space | None = None,
        *,
        n_envs: int = 1,
        discount: float = 1.0,
    ) -> None:
        self.policy, self.action_space, self.command_space = policy, action_space, command_space
        self.discount = discount
        self.replay = Replay(2000 * n_envs, n_envs)

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch(n_decisions=torch.zeros(n_envs, dtype=torch.int64))

    def act(self, obs, command, memory, *, explore, generator) -> Decision:
        rows = [
            self.policy(
                obs[i].numpy(), None if command is None else command.action[i].numpy(), int(memory.n_decisions[i])
            )
            for i in range(len(obs))
        ]
        actions = torch.tensor([action for action, _ in rows])
        durations = np.array([duration for _, duration in rows])
        return Decision(actions, durations, Batch(n_decisions=memory.n_decisions + 1))

    def observe(self, transitions, env_ids) -> None:
        self.replay.add(transitions, env_ids)


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dicts, lists and tuples by path; tensors as lists, so that `==` compares them exactly."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: leaf for key, part in items for name, leaf in leaves(part, f"{path}.{key}").items()}
    return {path: (state.dtype, state.tolist()) if isinstance(state, torch.Tensor) else state}


def stored(replay: Replay, env_id: int) -> Batch:
    """The transitions of one environment in the order of time."""
    ring = replay.buffer.buffers[env_id]
    return ring[ring.sample_indices(0)]


class RecordingLogger(Logger):
    """Keeps all metrics that are logged."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        if metrics:
            self.records.append((n_total_env_steps, dict(metrics)))
