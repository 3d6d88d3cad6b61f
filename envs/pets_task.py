"""What the tasks of PETS (Chua et al. 2018, arXiv 1805.12114) that gymnasium does not have share: a MuJoCo environment.

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
        "the tasks of PETS need the extra mujoco: pip install '.[mujoco]'"
    ) from error
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

MODELS = Path(__file__).parent / "models"
"""The folder of the robots that gymnasium does not ship."""


class PETSTask(MujocoEnv, EzPickle):
    """A robot of torques that observes its whole state and never terminates.

    Positions of bodies are those of the joints after the step; MuJoCo by itself leaves those of a substep before, which
    the observation would not determine.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array", "depth_array"]}  # noqa: RUF012 (gym.Env's own)
    termination_function = staticmethod(termination_function)

    model_file: ClassVar[str]
    """Path of the robot, or its name among gymnasium's."""
    n_substeps: ClassVar[int]
    """MuJoCo's steps per step of the environment."""
    n_observations: ClassVar[int]
    """Width of the observation."""
    camera: ClassVar[dict[str, Any]] = {}
    """From where it is rendered."""

    def __init__(self, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            **kwargs: Those of gymnasium's `MujocoEnv` that have to do with rendering.
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
        """Draw the positions and velocities that an episode starts with."""

    @abstractmethod
    def _observation(self) -> NDArray[np.float64]:
        """What is observed of the present state."""

    def _reward_before(self, action: NDArray[np.float64]) -> float:
        """The part of a step's reward that is of the state before it."""
        return 0.0

    def _reward_after(self, action: NDArray[np.float64]) -> float:
        """The part of a step's reward that is of the state after it."""
        return 0.0
