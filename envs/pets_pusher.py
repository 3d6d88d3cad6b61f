"""Pusher with seven joints of PETS (Chua et al. 2018, arXiv 1805.12114), with the robot of gymnasium's Pusher-v5.

Needs the extra `mujoco`. Pusher-v5 itself has other distances, steps, episodes and starts, and its arm goes through the
object: MuJoCo 3 softens the contacts of a body that only slides by 1 / mass, and nearly all of the object's inertia is
armature of its joints. Here the object has the inverse weight that MuJoCo 2 computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.pets_task import PETSTask

N_JOINTS = 7
GOAL = (0.45, -0.05, -0.323)
"""Goal of the object in metres, as in the model file. It is 0.048 m lower than the object, so that the reward never
reaches 0."""
OBJECT_START = (-0.25, 0.15)
"""Mean of the object's initial position, in metres along y and x from the model file's, (0.45, -0.05)."""
OBJECT_STD = 0.025
"""Standard deviation of the object's initial position, in metres."""
VELOCITY_NOISE = 0.005
"""Half width of the uniform distribution of the joints' initial velocities, in rad/s."""
OBJECT_GOAL_WEIGHT, TIP_OBJECT_WEIGHT, CONTROL_COST = 1.25, 0.5, 0.1


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """-1.25 |object - goal|₁ - 0.5 |tip - object|₁ - 0.1 |action|², before the step, as in the released environment.

    (The released planner scores a step by the state after it, which shifts the sum along a plan by one step.)

    Args:
        state: 7 angles, 7 angular velocities, x, y, z of the tip, x, y, z of the object. Shape: (..., 20).
        context: Not used.
        action: In [-2, 2]. Shape: (..., 7).
        next_state: Not used.

    Returns:
        At most 0. Shape: (...).
    """
    tip, thing = state[..., 14:17], state[..., 17:20]
    goal = thing.new_tensor(GOAL)
    distances = OBJECT_GOAL_WEIGHT * (thing - goal).abs().sum(-1) + TIP_OBJECT_WEIGHT * (tip - thing).abs().sum(-1)
    return -distances - CONTROL_COST * action.square().sum(-1)


class PETSPusher(PETSTask):
    """Push an object to a goal on a table, with an arm of seven joints, without gravity; 0.04 s per step, 150 steps.

    Observation: 7 angles (rad), 7 angular velocities (rad/s), x, y, z (m) of the wrist, x, y, z (m) of the object.
    Action: torques in [-2, 2] N m. Reward: minus the weighted distances of object and goal and of wrist and object,
    less 0.1 |action|². Starts with the arm stretched out and the object between base and goal, with a little noise.
    """

    metadata = {**PETSTask.metadata, "render_fps": 25}  # noqa: RUF012 (gym.Env's own)
    reward_function = staticmethod(reward_function)
    alike_dims = ((14, 17), (15, 18), (16, 19))  # tip and object; in the first episodes the object does not move

    model_file = "pusher_v5.xml"  # gymnasium's
    n_substeps = 4
    n_observations = 20
    camera = {"distance": 2.5, "elevation": -35.0, "azimuth": 135.0, "lookat": np.array([0.3, -0.1, -0.2])}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        """Create the environment.

        Args:
            **kwargs: Arguments of gymnasium's `MujocoEnv` that concern rendering.
        """
        super().__init__(**kwargs)
        # Mean over three directions, in one of which it does not move; `mj_setConst` would undo it.
        armature = self.model.dof_armature[self.model.joint("obj_slidex").dofadr[0]]
        self.model.body_invweight0[self.model.body("object").id, 0] = 2 / (3 * armature)

    def _start(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        position = self.init_qpos.copy()
        position[-4:-2] = self.np_random.normal(OBJECT_START, OBJECT_STD)
        position[-2:] = 0.0
        velocity = self.init_qvel + self.np_random.uniform(-VELOCITY_NOISE, VELOCITY_NOISE, self.model.nv)
        velocity[-4:] = 0.0
        return position, velocity

    def _observation(self) -> NDArray[np.float64]:
        joints = self.data.qpos[:N_JOINTS], self.data.qvel[:N_JOINTS]
        return np.concatenate([*joints, self.data.body("tips_arm").xpos, self.data.body("object").xpos])

    def _reward_before(self, action: NDArray[np.float64]) -> float:
        tip, thing, goal = (self.data.body(name).xpos for name in ("tips_arm", "object", "goal"))
        to_goal, to_object = np.abs(thing - goal).sum(), np.abs(tip - thing).sum()
        distances = OBJECT_GOAL_WEIGHT * to_goal + TIP_OBJECT_WEIGHT * to_object
        return float(-distances - CONTROL_COST * np.square(action).sum())
