"""Environments of a user, registered on import, and some that cannot be used."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tests.envs.counter import CounterEnv
from tests.recording import GoalEnv

UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class Drift(gym.Env[Any, Any]):
    """A point that actions push, without known reward or termination, and without rendering.

    An episode terminates when the point is far from the origin.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] = UNBOUNDED,
        action_space: spaces.Space[Any] | None = None,
        observation: Any = None,
    ) -> None:
        """Create the environment.

        Args:
            observation_space: Declared observation space.
            action_space: Declared action space.
            observation: Observation in place of the point.
        """
        self.observation_space = observation_space
        self.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32) if action_space is None else action_space
        self._observation = observation
        self._point = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._point = self.np_random.normal(size=2)
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._point = self._point + 0.3 * np.asarray(action)
        distance = float(np.square(self._point).sum())
        return self._observe(), -distance, distance > 20, False, {}

    def _observe(self) -> Any:
        return self._point.copy() if self._observation is None else self._observation


class Blinking(Drift):
    """Renders frame n of an episode in n levels of grey. Its episodes have no end."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gym.Env's own)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode
        self._n_frames = 0

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *_ = super().step(np.zeros(2))
        return obs, reward, False, False, {}

    def render(self) -> NDArray[np.uint8]:
        self._n_frames += 1
        return np.full((16, 16, 3), self._n_frames % 256, np.uint8)


class Undrawable(Drift):
    """Declares that it can render, but lacks a package for it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gym.Env's own)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> None:
        raise gym.error.DependencyNotInstalled("pip install crayons")


def make_goal_counter() -> GoalEnv:
    """Dict observations with a goal; the episodes count to six."""
    return GoalEnv(CounterEnv(6))


if "OwnDrift-v0" not in gym.registry:
    gym.register("OwnDrift-v0", Drift, max_episode_steps=15)
