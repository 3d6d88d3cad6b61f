"""Cart-pole with a continuous force: the physics of gymnasium's CartPole-v1, action in [-1, 1]; and CartPole-v1 itself.

`dynamics_function`, `reward_function` and `termination_function` are the same task as plain torch functions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from numpy.typing import NDArray
from torch import Tensor

from envs.shapes import check_shapes

if TYPE_CHECKING:
    from envs.cartpole_drawing import CartPoleDrawing

GRAVITY = 9.8
POLE_MASS = 0.1
TOTAL_MASS = POLE_MASS + 1.0
HALF_LENGTH = 0.5  # of the pole; its full length is 1
POLE_MASS_LENGTH = POLE_MASS * HALF_LENGTH
FORCE = 10.0
"""Force at action 1, in newtons."""
TAU = 0.02
"""Seconds per step."""
X_LIMIT = 2.4
"""Distance from the centre, in metres, beyond which the episode ends."""
THETA_LIMIT = 12 * 2 * math.pi / 360
"""Angle from upright, in radians, beyond which the episode ends."""

Number = TypeVar("Number", np.float64, Tensor)


def accelerations(force: Number, theta_dot: Number, sin: Number, cos: Number) -> tuple[Number, Number]:
    """Acceleration of the cart and angular acceleration of the pole (Florian 2007, eq. 23 and 24).

    The order of the operations is gymnasium's, so that float64 trajectories agree to the last bit.

    Args:
        force: Force on the cart, in newtons. Shape: (...).
        theta_dot: Angular velocity of the pole, in rad/s. Shape: (...).
        sin: Sine of the pole's angle from upright. Shape: (...).
        cos: Cosine of the same angle. Shape: (...).

    Returns:
        Accelerations in m/s² and rad/s². Shape: (...) each.
    """
    temp = (force + POLE_MASS_LENGTH * (theta_dot * theta_dot) * sin) / TOTAL_MASS
    inertia = HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * (cos * cos) / TOTAL_MASS)
    theta_acc = (GRAVITY * sin - cos * temp) / inertia
    x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS
    return x_acc, theta_acc


def dynamics_function(state: Tensor, context: Tensor | None, action: Tensor) -> Tensor:
    """One Euler step of the true physics.

    Args:
        state: x, x_dot, theta, theta_dot. Shape: (..., 4).
        context: Not used.
        action: Share of the full force, in [-1, 1]; not checked. Shape: (..., 1), leading dims as in `state`.

    Returns:
        The next state. Shape: (..., 4).
    """
    check_shapes(state, action, 4, 1)
    _, x_dot, theta, theta_dot = state.unbind(-1)
    x_acc, theta_acc = accelerations(FORCE * action[..., 0], theta_dot, theta.sin(), theta.cos())
    change = torch.stack((x_dot, x_acc, theta_dot, theta_acc), dim=-1)
    return state + TAU * change


def discrete_dynamics_function(state: Tensor, context: Tensor | None, action: Tensor) -> Tensor:
    """One Euler step for CartPole-v1's discrete actions.

    Args:
        state: x, x_dot, theta, theta_dot. Shape: (..., 4).
        context: Not used.
        action: 0 (push left) or 1 (push right), integers. Shape: (..., 1), leading dims as in `state`.

    Returns:
        The next state. Shape: (..., 4).
    """
    return dynamics_function(state, context, (2 * action - 1).to(state.dtype))


def reward_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """1 for every step, the terminating one included.

    Args:
        state: Not used.
        context: Not used.
        action: Not used.
        next_state: Shape: (..., 4).

    Returns:
        Ones. Shape: (...).
    """
    return next_state.new_ones(next_state.shape[:-1])


def termination_function(state: Tensor, context: Tensor | None, action: Tensor, next_state: Tensor) -> Tensor:
    """True where the cart is off the track or the pole has tilted too far after the step.

    Args:
        state: Not used.
        context: Not used.
        action: Not used.
        next_state: x, x_dot, theta, theta_dot. Shape: (..., 4).

    Returns:
        Terminated, bool. Shape: (...).
    """
    return (next_state[..., 0].abs() > X_LIMIT) | (next_state[..., 2].abs() > THETA_LIMIT)


class ContinuousCartPole(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Balance a pole on a cart; the action is a share in [-1, 1] of a force of 10 N.

    Observation: x (m), x_dot (m/s), theta (rad, 0 is upright), theta_dot (rad/s). Reward: 1 per step. Terminates
    beyond ±2.4 m or ±12°. `reset(options={"low": ..., "high": ...})` changes the range of the initial state, as in
    CartPole-v1.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 (gym.Env's own)

    dynamics_function = staticmethod(dynamics_function)
    reward_function = staticmethod(reward_function)
    termination_function = staticmethod(termination_function)
    torch_vector_env = "envs.on_device:CartPoles"

    observation_names: tuple[str, ...] = ("cart position", "cart velocity", "pole angle", "pole angular velocity")
    _drawn_theta_limit: float | None = THETA_LIMIT

    def __init__(self, render_mode: str | None = None) -> None:
        """Create the environment.

        Args:
            render_mode: "rgb_array" or None.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}; it should be None or 'rgb_array'")
        self.render_mode = render_mode
        high = self._highest_observation()
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state: NDArray[np.float64] | None = None
        self._terminated = False
        self._n_steps = 0
        self._last_action = 0.0
        self._drawing: CartPoleDrawing | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        low, high = maybe_parse_reset_bounds(options, -0.05, 0.05)  # CartPole-v1's defaults
        self._state = self._rest() + self.np_random.uniform(low=low, high=high, size=(4,))
        self._terminated = False
        self._n_steps = 0
        self._last_action = 0.0
        return self._observation(self._state), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._state is None:
            raise gym.error.ResetNeeded("step was called before reset; call reset first")
        if self._terminated:
            gym.logger.warn("step was called after the episode terminated; call reset first")
        self._last_action = self._checked(action)
        # The state stays in float64, as in CartPole-v1; only the observation is rounded.
        self._state = self._after(self._state, self._last_action)
        self._terminated = self._ends(self._state)
        self._n_steps += 1
        return self._observation(self._state), self._reward(self._state), self._terminated, False, {}

    @staticmethod
    def _highest_observation() -> NDArray[np.float32]:
        # Twice the limits, so that the observation that ends an episode is still within bounds.
        return np.array([2 * X_LIMIT, np.inf, 2 * THETA_LIMIT, np.inf], dtype=np.float32)

    @staticmethod
    def _rest() -> NDArray[np.float64]:
        """Mean of the initial state, (4,)."""
        return np.zeros(4)

    @staticmethod
    def _observation(state: NDArray[np.float64]) -> NDArray[np.float32]:
        return state.astype(np.float32)

    @staticmethod
    def _after(state: NDArray[np.float64], action: float) -> NDArray[np.float64]:
        x, x_dot, theta, theta_dot = state
        x_acc, theta_acc = accelerations(np.float64(FORCE * action), theta_dot, np.sin(theta), np.cos(theta))
        x, x_dot = x + TAU * x_dot, x_dot + TAU * x_acc
        theta, theta_dot = theta + TAU * theta_dot, theta_dot + TAU * theta_acc
        return np.array((x, x_dot, theta, theta_dot), dtype=np.float64)

    @staticmethod
    def _ends(state: NDArray[np.float64]) -> bool:
        return bool(abs(state[0]) > X_LIMIT or abs(state[2]) > THETA_LIMIT)

    @staticmethod
    def _reward(state: NDArray[np.float64]) -> float:
        return 1.0

    def _checked(self, action: NDArray[np.float32]) -> float:
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (1,):
            raise ValueError(f"action has shape {values.shape}; it should be (1,)")
        value = float(values[0])
        if not -1.0 <= value <= 1.0:  # also false for nan
            raise ValueError(f"action is {value}; it should be a finite number in [-1, 1]")
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawing": None}  # Pillow's fonts cannot be pickled

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the current state.

        Returns:
            The frame. Shape: (300, 480, 3).
        """
        if self.render_mode is None:
            gym.logger.warn('render needs a render_mode: make the environment with render_mode="rgb_array"')
            return None
        if self._state is None:
            raise gym.error.ResetNeeded("render was called before reset; call reset first")
        if self._drawing is None:
            try:
                from envs.cartpole_drawing import CartPoleDrawing
            except ImportError as error:
                raise gym.error.DependencyNotInstalled("rendering needs it: pip install pillow") from error
            self._drawing = CartPoleDrawing(X_LIMIT, self._drawn_theta_limit, 2 * HALF_LENGTH)
        return self._drawing.frame(self._state, self._last_action, self._n_steps)


class DiscreteCartPole(CartPoleEnv):
    """gymnasium's CartPole-v1, two actions of full force, with its known functions in torch."""

    dynamics_function = staticmethod(discrete_dynamics_function)
    reward_function = staticmethod(reward_function)
    termination_function = staticmethod(termination_function)

    def __init__(self, render_mode: str | None = None) -> None:
        """Create the environment, with the reward of 1 per step.

        Args:
            render_mode: "human", "rgb_array" or None.
        """
        super().__init__(render_mode=render_mode)
