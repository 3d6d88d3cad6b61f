"""PointMaze and AntMaze of gymnasium-robotics with the dense reward, in float32, and their known functions in torch.

Needs the extra `robotics`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import NDArray
from torch import Tensor

try:
    import mujoco  # noqa: F401
    from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv
    from gymnasium_robotics.envs.maze.maps import MEDIUM_MAZE, U_MAZE
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
except ModuleNotFoundError as error:
    raise gym.error.DependencyNotInstalled(
        "PointMaze and AntMaze need the extra robotics: pip install 'layeredrl[robotics]'"
    ) from error

from envs.endless import termination_function

MAPS = {"umaze": U_MAZE, "medium": MEDIUM_MAZE}

Observation = dict[str, NDArray[np.float32]]


def reward_function(state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """exp(-distance to the goal in metres).

    Args:
        state: Not used.
        context: The goal x, y. Shape: (..., 2).
        action: Not used.
        next_state: State that begins with the achieved goal x, y. Shape: (..., S).

    Returns:
        In [0, 1]. Shape: (...).
    """
    return (-torch.linalg.vector_norm(next_state[..., :2] - context, dim=-1)).exp()


class _DenseMaze(gym.Env[Observation, NDArray[np.float32]]):
    """Base of both mazes; comes before gymnasium-robotics' class in the method resolution order."""

    reward_function = staticmethod(reward_function)
    termination_function = staticmethod(termination_function)

    def __init__(self, maze: str = "umaze", *, render_mode: str | None = None, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            maze: "umaze" or "medium".
            render_mode: A mode of gymnasium-robotics, or None.
            **kwargs: Arguments of gymnasium-robotics' class that concern rendering.
        """
        if maze not in MAPS:
            raise ValueError(f"maze is {maze!r}; it should be one of {', '.join(map(repr, MAPS))}")
        super().__init__(render_mode=render_mode, maze_map=MAPS[maze], reward_type="dense", **kwargs)
        EzPickle.__init__(self, maze, render_mode=render_mode, **kwargs)  # instead of the base class's arguments
        Path(self.tmp_xml_file_path).unlink(missing_ok=True)  # already loaded, and never removed otherwise
        # Sorted: the achieved goal comes first in a state, where reward_function expects it.
        parts = sorted(self.observation_space.spaces.items())
        self.observation_space = spaces.Dict(
            {key: spaces.Box(-np.inf, np.inf, part.shape, np.float32) for key, part in parts}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        return self._in_float32(obs), info

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return self._in_float32(obs), float(reward), terminated, truncated, info

    @staticmethod
    def _in_float32(obs: dict[str, NDArray[np.float64]]) -> Observation:
        return {key: obs[key].astype(np.float32) for key in sorted(obs)}


class PointMaze(_DenseMaze, PointMazeEnv):
    """A ball pushed through a maze of 1 m cells: PointMaze_UMazeDense-v3 and PointMaze_MediumDense-v3."""


class AntMaze(_DenseMaze, AntMazeEnv):
    """An ant in a maze of 4 m cells: AntMaze_UMazeDense-v5 and AntMaze_MediumDense-v5."""
