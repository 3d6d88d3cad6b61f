"""gymnasium's Pendulum-v1, swing-up of a torque-limited pendulum, with its known functions in torch."""

from __future__ import annotations

import torch
from gymnasium.envs.classic_control import PendulumEnv
from torch import Tensor

from envs.shapes import check_shapes

GRAVITY = 10.0
TAU = 0.05
"""Seconds per step."""
MAX_TORQUE = 2.0
MAX_SPEED = 8.0


def dynamics_function(state: Tensor, context: Tensor | None, action: Tensor) -> Tensor:
    """One step of the true physics; the pendulum's mass and length are 1.

    Args:
        state: cos, sin and theta_dot of an angle theta that is 0 upright. Shape: (..., 3).
        context: Not used.
        action: Torque, clipped to [-2, 2]. Shape: (..., 1), leading dims as in `state`.

    Returns:
        The next state. Shape: (..., 3).
    """
    check_shapes(state, action, 3, 1)
    cos, sin, theta_dot = state.unbind(-1)
    torque = action[..., 0].clamp(-MAX_TORQUE, MAX_TORQUE)
    theta_dot = (theta_dot + TAU * (1.5 * GRAVITY * sin + 3 * torque)).clamp(-MAX_SPEED, MAX_SPEED)
    theta = torch.atan2(sin, cos) + TAU * theta_dot
    return torch.stack((theta.cos(), theta.sin(), theta_dot), dim=-1)


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """-(theta² + 0.1 theta_dot² + 0.001 torque²), for the state before the step.

    Args:
        state: cos, sin, theta_dot. Shape: (..., 3).
        context: Not used.
        action: Torque, clipped to [-2, 2]. Shape: (..., 1).
        next_state: Not used.

    Returns:
        In [-16.3, 0] for speeds up to 8. Shape: (...).
    """
    theta = torch.atan2(state[..., 1], state[..., 0])
    torque = action[..., 0].clamp(-MAX_TORQUE, MAX_TORQUE)
    return -(theta**2 + 0.1 * state[..., 2] ** 2 + 0.001 * torque**2)


class SwingUpPendulum(PendulumEnv):
    """gymnasium's Pendulum-v1. Observation: cos, sin (theta is 0 upright), theta_dot. Never terminates."""

    dynamics_function = staticmethod(dynamics_function)
    reward_function = staticmethod(reward_function)
    torch_vector_env = "envs.on_device:Pendulums"

    def __init__(self, render_mode: str | None = None) -> None:
        """Create the environment.

        Args:
            render_mode: "human", "rgb_array" or None.
        """
        super().__init__(render_mode=render_mode, g=GRAVITY)
