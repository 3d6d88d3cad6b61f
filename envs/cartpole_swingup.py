"""Swing a pole up on a cart and keep it there: the cart-pole of `envs.cartpole`, started with the pole hanging down.

`dynamics_function`, `reward_function` and `termination_function` are the same task as plain torch functions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.cartpole import X_LIMIT, ContinuousCartPole, accelerations
from envs.shapes import check_shapes

FORCE = 5.0
"""Force at action 1, in newtons: half of CartPole-v1's, so that the pole needs several swings to get up."""
TAU = 0.04
"""Seconds per step, as in PETS' cart-pole: a horizon of 25 to 30 steps then covers most of a swing."""


def dynamics_function(state: Tensor, context: Tensor | None, action: Tensor) -> Tensor:
    """One step of the true physics.

    Semi-implicit Euler, unlike `envs.cartpole`: explicit Euler adds energy to a swinging pole.

    Args:
        state: x, x_dot, cos, sin, theta_dot, of an angle theta that is 0 when upright. Shape: (..., 5).
        context: Not used.
        action: Share of the full force, in [-1, 1]; not checked. Shape: (..., 1), leading dims as in `state`.

    Returns:
        The next state. Shape: (..., 5).
    """
    check_shapes(state, action, 5, 1)
    x, x_dot, cos, sin, theta_dot = state.unbind(-1)
    x_acc, theta_acc = accelerations(FORCE * action[..., 0], theta_dot, sin, cos)
    x_dot, theta_dot = x_dot + TAU * x_acc, theta_dot + TAU * theta_acc
    theta = torch.atan2(sin, cos) + TAU * theta_dot
    return torch.stack((x + TAU * x_dot, x_dot, theta.cos(), theta.sin(), theta_dot), dim=-1)


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """(1 + cos theta) / 2 * exp(-(x / 2.4)²): 1 for an upright pole at the centre, 0 for a hanging one.

    Args:
        state: Not used.
        context: Not used.
        action: Not used.
        next_state: x, x_dot, cos, sin, theta_dot. Shape: (..., 5).

    Returns:
        In [0, 1]. Shape: (...).
    """
    upright = (1 + next_state[..., 2].clamp(-1, 1)) / 2  # a learned model's cosine may exceed 1
    return upright * torch.exp(-((next_state[..., 0] / X_LIMIT) ** 2))


def termination_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """True where the cart is off the track after the step.

    Args:
        state: Not used.
        context: Not used.
        action: Not used.
        next_state: x, x_dot, cos, sin, theta_dot. Shape: (..., 5).

    Returns:
        Terminated, bool. Shape: (...).
    """
    return next_state[..., 0].abs() > X_LIMIT


class CartPoleSwingUp(ContinuousCartPole):
    """Swing the pole up and keep it there; the action is a share in [-1, 1] of a force of 5 N.

    Observation: x (m), x_dot (m/s), cos theta, sin theta, theta_dot (rad/s); theta is 0 upright. Reward: see
    `reward_function`. Terminates beyond ±2.4 m, the track's end, as bsuite's swing-up does; rewards are not negative,
    so that leaving the track never gains anything. No angle terminates. Starts within ±0.05 of rest in the centre, the
    pole hanging; `reset(options={"low": ..., "high": ...})` changes that range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (gym.Env's own)

    dynamics_function = staticmethod(dynamics_function)
    reward_function = staticmethod(reward_function)
    termination_function = staticmethod(termination_function)
    torch_vector_env = "envs.on_device:SwingUps"
    observation_names = ("cart position", "cart velocity", "cos of angle", "sin of angle", "angular velocity")
    _drawn_theta_limit = None

    @staticmethod
    def _highest_observation() -> NDArray[np.float32]:
        return np.array([2 * X_LIMIT, np.inf, 1, 1, np.inf], dtype=np.float32)

    @staticmethod
    def _rest() -> NDArray[np.float64]:
        return np.array([0, 0, math.pi, 0])

    @staticmethod
    def _observation(state: NDArray[np.float64]) -> NDArray[np.float32]:
        x, x_dot, theta, theta_dot = state
        return np.array((x, x_dot, np.cos(theta), np.sin(theta), theta_dot), dtype=np.float32)

    @staticmethod
    def _after(state: NDArray[np.float64], action: float) -> NDArray[np.float64]:
        x, x_dot, theta, theta_dot = state
        x_acc, theta_acc = accelerations(np.float64(FORCE * action), theta_dot, np.sin(theta), np.cos(theta))
        x_dot, theta_dot = x_dot + TAU * x_acc, theta_dot + TAU * theta_acc
        return np.array((x + TAU * x_dot, x_dot, theta + TAU * theta_dot, theta_dot))

    @staticmethod
    def _ends(state: NDArray[np.float64]) -> bool:
        return bool(abs(state[0]) > X_LIMIT)

    @staticmethod
    def _reward(state: NDArray[np.float64]) -> float:
        return float((1 + np.cos(state[2])) / 2 * np.exp(-((state[0] / X_LIMIT) ** 2)))
