"""gymnasium's Ant-v5 sent to a goal in the plane, as in DADS (arXiv 1907.01657).

Needs the extra `mujoco`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

try:
    import mujoco  # noqa: F401  gymnasium's own error does not say how to install it here
except ModuleNotFoundError as error:
    raise gym.error.DependencyNotInstalled("AntGoal needs the extra mujoco: pip install 'layeredrl[mujoco]'") from error
from gymnasium.envs.mujoco.ant_v5 import AntEnv

from envs.endless import termination_function

GOAL_RANGE = 15.0
"""Half width of the square that goals are drawn from, in metres."""
SUCCESS_DISTANCE = 1.5
"""Distance to the goal, in metres, below which the agent has reached it."""

Observation = dict[str, NDArray[np.float32]]


def reward_function(state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """Minus the distance to the goal, in metres.

    Args:
        state: Not used.
        context: The goal x, y. Shape: (..., 2).
        action: Not used.
        next_state: State that begins with the torso's x, y. Shape: (..., 29).

    Returns:
        At most 0. Shape: (...).
    """
    return -torch.linalg.vector_norm(next_state[..., :2] - context, dim=-1)


class AntGoal(AntEnv):
    """Walk to a goal on four legs; 8 torques in [-1, 1], 0.05 s per step.

    Observation: a Dict of "achieved_goal", the torso's x, y in metres; "desired_goal", likewise; "observation", the
    other 13 positions and the 14 velocities of Ant-v5. Reward: minus the distance to the goal after the step. Never
    terminates, not even upside down. `info` has "is_success", closer than 1.5 m to the goal, and
    "dist_to_goal". `reset(options={"goal": (x, y)})` sets the goal of that episode.
    """

    reward_function = staticmethod(reward_function)
    termination_function = staticmethod(termination_function)

    def __init__(self, *, goal: ArrayLike | None = None, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            goal: x, y of all episodes, in metres; None: drawn uniformly from [-15, 15]² in each episode.
            **kwargs: Arguments of gymnasium's class that concern rendering or the initial state.
        """
        super().__init__(
            terminate_when_unhealthy=False,
            include_cfrc_ext_in_observation=False,
            exclude_current_positions_from_observation=False,
            **kwargs,
        )
        EzPickle.__init__(self, goal=goal, **kwargs)  # instead of Ant-v5's arguments, which this class does not take
        self._fixed_goal = None if goal is None else _checked_goal("goal", goal)
        self._goal = np.zeros(2)
        box = {"achieved_goal": 2, "desired_goal": 2, "observation": self.observation_space.shape[0] - 2}
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, (width,), np.float32) for key, width in box.items()}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        given = (options or {}).get("goal")
        goal = self._fixed_goal if given is None else _checked_goal("options['goal']", given)
        flat, _ = super().reset(seed=seed, options=options)
        self._goal = self.np_random.uniform(-GOAL_RANGE, GOAL_RANGE, 2) if goal is None else goal
        return self._split(flat), self._info(flat)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        flat, *_ = super().step(action)
        info = self._info(flat)
        return self._split(flat), -info["dist_to_goal"], False, False, info

    def _split(self, flat: NDArray[np.float64]) -> Observation:
        achieved, rest = flat[:2].astype(np.float32), flat[2:].astype(np.float32)
        return {"achieved_goal": achieved, "desired_goal": self._goal.astype(np.float32), "observation": rest}

    def _info(self, flat: NDArray[np.float64]) -> dict[str, Any]:
        distance = float(np.linalg.norm(flat[:2] - self._goal))
        return {"is_success": distance < SUCCESS_DISTANCE, "dist_to_goal": distance}


def _checked_goal(name: str, value: ArrayLike) -> NDArray[np.float64]:
    goal = np.array(value, np.float64)
    if goal.shape != (2,) or not np.isfinite(goal).all():
        raise ValueError(f"{name} is {value!r}; it should be two finite numbers (x, y), in metres")
    return goal
