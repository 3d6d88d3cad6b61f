"""Base class of the MuJoCo tasks of PETS (Chua et al. 2018, arXiv 1805.12114) that gymnasium does not have.

Needs the extra `mujoco`.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import NDArray

from envs.endless import termination_function

try:
    import mujoco
except ModuleNotFoundError as error:  # gymnasium's own error does not say how to install it here
    raise gym.error.DependencyNotInstalled(
        "the tasks of PETS need the extra mujoco: pip install 'layeredrl[mujoco]'"
    ) from error
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

MODELS = Path(__file__).parent / "models"
"""Folder of the robots that gymnasium does not ship."""


class PETSTask(MujocoEnv, EzPickle):
    """Robot with torque control that observes its whole state and never terminates.

    Positions of bodies are updated to the joints after the step; MuJoCo alone leaves those of the substep before, which
    the observation does not determine.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array", "depth_array"]}  # noqa: RUF012 (gym.Env's own)
    termination_function = staticmethod(termination_function)

    model_file: ClassVar[str]
    """Path of the robot's model, or its file name among gymnasium's."""
    n_substeps: ClassVar[int]
    """Number of MuJoCo steps per step of the environment."""
    n_observations: ClassVar[int]
    """Width of the observation."""
    camera: ClassVar[dict[str, Any]] = {}
    """Camera position for rendering."""

    def __init__(self, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            **kwargs: Arguments of gymnasium's `MujocoEnv` that concern rendering.
        """
        EzPickle.__init__(self, **kwargs)
        space = spaces.Box(-np.inf, np.inf, (self.n_observations,), np.float64)
        super().__init__(
            self.model_file, self.n_substeps, space, **{"default_camera_config": dict(self.camera), **kwargs}
        )

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        values = np.asarray(action, np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"action is {action}; it should be {self.model.nu} finite numbers")
        reward_before = self._reward_before(values)
        self.do_simulation(values, self.frame_skip)
        mujoco.mj_kinematics(self.model, self.data)
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(reward_before + self._reward_after(values)), False, False, {}

    def reset_model(self) -> NDArray[np.float64]:
        self.set_state(*self._start())
        return self._observation()

    @abstractmethod
    def _start(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Draw the initial positions and velocities of an episode."""

    @abstractmethod
    def _observation(self) -> NDArray[np.float64]:
        """Observation of the current state."""

    def _reward_before(self, action: NDArray[np.float64]) -> float:
        """Part of a step's reward that depends on the state before it."""
        return 0.0

    def _reward_after(self, action: NDArray[np.float64]) -> float:
        """Part of a step's reward that depends on the state after it."""
        return 0.0
