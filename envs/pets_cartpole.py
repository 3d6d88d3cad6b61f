"""Cart-pole swing-up of PETS (Chua et al. 2018, arXiv 1805.12114).

Needs the extra `mujoco`. `CartPoleSwingUp` of `envs.cartpole_swingup` is a similar task without it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.pets_task import MODELS, PETSTask

POLE_LENGTH = 0.6
"""Length of the pole, in metres."""
TARGET = (0.0, 0.6)
"""x and height of the pole's tip with the greatest reward, in metres from the rail's middle."""
REWARD_WIDTH = 0.6
"""Distance from the target, in metres, at which the reward is 1/e."""
CONTROL_COST = 0.01
RESET_STD = 0.1
"""Standard deviation of the normal noise on the initial positions and velocities."""


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """exp(-|tip - target|² / 0.6²) - 0.01 action², for the tip after the step.

    Args:
        state: Not used.
        context: Not used.
        action: In [-3, 3]. Shape: (..., 1).
        next_state: x, theta, x_dot, theta_dot, where theta is 0 when hanging. Shape: (..., 4).

    Returns:
        At most 1. Shape: (...).
    """
    x, theta = next_state[..., 0], next_state[..., 1]
    off_x = x - POLE_LENGTH * theta.sin() - TARGET[0]
    off_z = -POLE_LENGTH * theta.cos() - TARGET[1]
    return torch.exp(-(off_x.square() + off_z.square()) / REWARD_WIDTH**2) - CONTROL_COST * action.square().sum(-1)


class PETSCartpole(PETSTask):
    """Swing a hanging pole up and hold its tip over the middle of the rail; 0.04 s per step, 200 steps.

    Observation: x (m), theta (rad, 0 is hanging), x_dot, theta_dot. Action: in [-3, 3], times 100 N. Reward: at most 1,
    for the tip 0.6 m above the middle; 3.7 in an episode for hanging still. Starts hanging at rest, with normal noise
    of 0.1 on all four.
    """

    metadata = {**PETSTask.metadata, "render_fps": 25}  # noqa: RUF012 (gym.Env's own)
    reward_function = staticmethod(reward_function)
    angle_dims = (1,)
    observation_names = ("cart position", "pole angle", "cart velocity", "pole angular velocity")

    model_file = str(MODELS / "cartpole.xml")
    n_substeps = 2
    n_observations = 4
    camera = {"distance": 4.0, "elevation": -10.0, "azimuth": 90.0, "lookat": np.zeros(3)}  # noqa: RUF012

    def _start(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        position = self.init_qpos + self.np_random.normal(0.0, RESET_STD, self.model.nq)
        return position, self.init_qvel + self.np_random.normal(0.0, RESET_STD, self.model.nv)

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def _reward_after(self, action: NDArray[np.float64]) -> float:
        tip = self.data.site("tip").xpos
        distance = np.square(tip[[0, 2]] - TARGET).sum()
        return float(np.exp(-distance / REWARD_WIDTH**2) - CONTROL_COST * np.square(action).sum())
