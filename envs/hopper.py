"""gymnasium's Hopper-v5 with its termination known: what does it cost to learn it?

Needs the extra `mujoco`.
"""

from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from torch import Tensor


class KnownEndHopper(HopperEnv):
    """Hopper-v5; it declares when it has fallen."""

    @staticmethod
    def termination_function(state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Return True where the robot has fallen, by its height in metres and the angle of its torso in radians, (...).

        Args:
            state: Shape (..., 11).
            context: Not used.
            action: Not used.
            next_state: Shape (..., 11): height, angles, velocities.
        """
        del state, context, action
        height, angle, rest = next_state[..., 0], next_state[..., 1], next_state[..., 1:]
        return ~((height > 0.7) & (angle.abs() < 0.2) & (rest.abs() < 100).all(-1))
