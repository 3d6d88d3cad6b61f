"""HalfCheetah of PETS (Chua et al. 2018, arXiv 1805.12114): gymnasium's, with its forward velocity observed.

Needs the extra `mujoco`. `FullStateHalfCheetah` of `envs.half_cheetah` observes x instead.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import NDArray
from torch import Tensor

from envs.endless import termination_function

try:
    import mujoco  # noqa: F401  gymnasium's own error does not say how to install it here
except ModuleNotFoundError as error:
    raise gym.error.DependencyNotInstalled(
        "PETSHalfCheetah needs the extra mujoco: pip install 'layeredrl[mujoco]'"
    ) from error
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

CONTROL_COST = 0.1
RESET_NOISE = 0.001
"""Scale of the noise on the initial positions and velocities; gymnasium's default is 0.1."""


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """Mean forward velocity of the step in m/s, less 0.1 |action|².

    Args:
        state: Not used.
        context: Not used.
        action: In [-1, 1]. Shape: (..., 6).
        next_state: State that begins with that velocity. Shape: (..., 18).

    Returns:
        Shape: (...).
    """
    return next_state[..., 0] - CONTROL_COST * action.square().sum(-1)


class PETSHalfCheetah(HalfCheetahEnv):
    """Run forward on two legs; 6 torques in [-1, 1], 0.05 s per step, 1000 steps. Never terminates.

    Observation: mean forward velocity of the last step (m/s; 0 at the start), then the observation of
    HalfCheetah-v5: the 8 positions without x, and the 9 velocities. Reward: that velocity, less 0.1 |action|².
    """

    reward_function = staticmethod(reward_function)
    termination_function = staticmethod(termination_function)
    unseen_dims = (0,)  # the next state does not depend on it
    absolute_dims = (0,)
    angle_dims = (2,)  # the pitch

    def __init__(self, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            **kwargs: Arguments of gymnasium's class that concern rendering.
        """
        super().__init__(reset_noise_scale=RESET_NOISE, ctrl_cost_weight=CONTROL_COST, **kwargs)
        EzPickle.__init__(self, **kwargs)  # instead of HalfCheetah-v5's arguments, which this class does not take
        self.observation_space = spaces.Box(-np.inf, np.inf, (18,), np.float64)

    def reset_model(self) -> NDArray[np.float64]:
        return np.concatenate([[0.0], super().reset_model()])

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        rest, reward, terminated, truncated, info = super().step(action)
        return np.concatenate([[info["x_velocity"]], rest]), float(reward), terminated, truncated, info
