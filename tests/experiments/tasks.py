"""Environments as a person might bring them, registered on import, and some that cannot be used."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tests.envs.counter import CounterEnv
from tests.recording import GoalEnv

UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float64)


class Drift(gym.Env[Any, Any]):
    """A point that actions push about; nothing is known of its reward and its ends, and it cannot be drawn.

    An episode terminates when the point is far out.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] = UNBOUNDED,
        action_space: spaces.Space[Any] | None = None,
        observation: Any = None,
    ) -> None:
        """Create the environment.

        Args:
            observation_space: What it says it observes.
            action_space: What it says it takes.
            observation: What it observes instead of the point.
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
    """Draws itself: frame n of an episode is n levels grey. Its episodes have no end."""

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
    """Says that it can draw itself, but lacks what that takes."""

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
