"""Reacher with seven joints of PETS (Chua et al. 2018, arXiv 1805.12114).

Needs the extra `mujoco`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.pets_task import MODELS, PETSTask

N_JOINTS = 7
SHOULDER_Y = -0.188
"""y of the arm's base, in metres; its x and z are 0."""
LENGTHS = (0.1, 0.4, 0.321, 0.16828)
"""Lengths from base to shoulder, to elbow, to wrist, to the tip, in metres."""
GOAL = (0.0, 0.25, 0.0)
"""Mean of the goals, in metres. A choice of ours, within the arm's reach: the source does not say where."""
GOAL_STD = 0.1
"""Standard deviation of each of the goal's coordinates, in metres."""
CONTROL_COST = 0.01


def tip_position(joints: Tensor) -> Tensor:
    """Position of the tip of the hand.

    Computed from the hand back to the base: each joint rotates everything beyond it.

    Args:
        joints: Angles in radians. The last one, which rolls the hand, has no effect. Shape: (..., 7).

    Returns:
        x, y, z in metres. Shape: (..., 3).
    """
    pan, lift, arm_roll, elbow, forearm_roll, wrist, _ = joints.unbind(-1)
    to_shoulder, upper_arm, forearm, hand = LENGTHS
    zero = torch.zeros_like(pan)
    x, y, z = _rotated_about_y(zero + hand, zero, zero, wrist)
    x, y, z = _rotated_about_x(x, y, z, forearm_roll)
    x, y, z = _rotated_about_y(x + forearm, y, z, elbow)
    x, y, z = _rotated_about_x(x, y, z, arm_roll)
    x, y, z = _rotated_about_y(x + upper_arm, y, z, lift)
    x = x + to_shoulder
    sin, cos = pan.sin(), pan.cos()
    return torch.stack((cos * x - sin * y, sin * x + cos * y + SHOULDER_Y, z), dim=-1)


def _rotated_about_x(x: Tensor, y: Tensor, z: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sin, cos = angle.sin(), angle.cos()
    return x, cos * y - sin * z, sin * y + cos * z


def _rotated_about_y(x: Tensor, y: Tensor, z: Tensor, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    sin, cos = angle.sin(), angle.cos()
    return cos * x + sin * z, y, cos * z - sin * x


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """-|tip - goal|² - 0.01 |action|², after the step.

    Args:
        state: Not used.
        context: Not used.
        action: In [-20, 20]. Shape: (..., 7).
        next_state: 7 angles, the goal's x, y, z, 7 angular velocities. Shape: (..., 17).

    Returns:
        At most 0. Shape: (...).
    """
    off = tip_position(next_state[..., :N_JOINTS]) - next_state[..., N_JOINTS : N_JOINTS + 3]
    return -off.square().sum(-1) - CONTROL_COST * action.square().sum(-1)


class PETSReacher(PETSTask):
    """Move the tip of a hand to a goal in space, with seven joints and without gravity; 0.02 s per step, 150 steps.

    Observation: 7 angles (rad), the goal's x, y, z (m), 7 angular velocities (rad/s). Action: torques in [-20, 20] N m.
    Reward: minus the squared distance to the goal, less 0.01 |action|². Starts stretched out and at rest; the goal is
    drawn for each episode, with a standard deviation of 0.1 m.
    """

    metadata = {**PETSTask.metadata, "render_fps": 50}  # noqa: RUF012 (gym.Env's own)
    reward_function = staticmethod(reward_function)

    model_file = str(MODELS / "reacher.xml")
    n_substeps = 2
    n_observations = 17
    camera = {"distance": 2.5, "elevation": -30.0, "azimuth": 135.0, "lookat": np.array([0.2, 0.0, 0.0])}  # noqa: RUF012

    def _start(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        position = self.init_qpos.copy()
        position[N_JOINTS:] = self.np_random.normal(GOAL, GOAL_STD)
        return position, self.init_qvel

    def _observation(self) -> NDArray[np.float64]:
        return np.concatenate([self.data.qpos, self.data.qvel[:N_JOINTS]])

    def _reward_after(self, action: NDArray[np.float64]) -> float:
        off = self.data.site("tip").xpos - self.data.body("goal").xpos
        return float(-np.square(off).sum() - CONTROL_COST * np.square(action).sum())
