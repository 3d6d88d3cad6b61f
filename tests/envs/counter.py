"""Environment whose observations count, so that every stored transition can be checked."""

from __future__ import annotations

from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Ends = Literal["terminate", "truncate", "alternate"]


class CounterEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Observes [steps taken in this episode, index of this episode]; the reward is the new count.

    Episodes are numbered by calls of `reset`, from 0; with "alternate" the even ones terminate and the
    odd ones truncate. Actions are ignored. Truncation is the environment's own, no wrapper is needed.
    """

    def __init__(self, episode_length: int = 5, ends: Ends = "terminate", random_length: bool = False) -> None:
        """Create the environment.

        Args:
            episode_length: Steps per episode; the maximum with `random_length`.
            ends: Kind of end: all terminate, all truncate, or both in turn.
            random_length: Draw the length of each episode from 1 to `episode_length`, by the seed of `reset`.
        """
        if episode_length < 1:
            raise ValueError(f"episode_length is {episode_length}; it should be at least 1")
        if ends not in get_args(Ends):
            raise ValueError(f"ends is {ends!r}; it should be one of {get_args(Ends)}")
        self.observation_space = gym.spaces.Box(0.0, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._longest = episode_length
        self._ends = ends
        self._random_length = random_length
        self._count = 0
        self._episode = -1
        self._length = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        self._episode += 1
        self._length = self._longest
        if self._random_length:
            self._length = int(self.np_random.integers(1, self._longest + 1))
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._count >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was begun; call reset first")
        self._count += 1
        ended = self._count == self._length
        terminates = self._ends == "terminate" or (self._ends == "alternate" and self._episode % 2 == 0)
        return self._observation(), float(self._count), ended and terminates, ended and not terminates, {}

    def _observation(self) -> NDArray[np.float32]:
        return np.array([self._count, self._episode], dtype=np.float32)


def register_counter() -> str:
    """Register `CounterEnv` with gymnasium unless it is registered, and return its id."""
    env_id = "LayeredRLTestCounter-v0"
    if env_id not in gym.registry:
        gym.register(id=env_id, entry_point="tests.envs.counter:CounterEnv")
    return env_id
