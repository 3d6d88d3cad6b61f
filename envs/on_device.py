"""Mazes, cart-poles and the pendulum on a device, many at once, as `layeredrl.environments.TorchVectorEnv` has them.

States are float64, and the order of operations is that of the environments in numpy: with the same seeds and actions,
transitions are the same, up to the last digits of sines and cosines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray
from torch import Tensor

from envs.cartpole import FORCE as CARTPOLE_FORCE
from envs.cartpole import TAU, ContinuousCartPole, accelerations
from envs.cartpole import termination_function as cartpole_ends
from envs.cartpole_swingup import FORCE as SWINGUP_FORCE
from envs.cartpole_swingup import TAU as SWINGUP_TAU
from envs.cartpole_swingup import CartPoleSwingUp
from envs.maze2d import observation_space_of
from envs.maze2d_layouts import Layout, find_layout
from envs.maze2d_rules import SUCCESS_DISTANCE, MazeRules
from envs.maze2d_torch import TorchMoves
from envs.pendulum import GRAVITY, MAX_SPEED, MAX_TORQUE
from envs.pendulum import TAU as PENDULUM_TAU


class Step(NamedTuple):
    """Result of a step of E environments, on their device."""

    obs: Tensor
    """Flat observations that the step led to, (E, O), float32."""
    reward: Tensor
    """Rewards, (E,)."""
    terminated: Tensor
    """Shape (E,), bool."""
    truncated: Tensor
    """Shape (E,), bool."""
    success: Tensor | None
    """True where the goal is reached, (E,); None if there is none."""


class OnDevice(ABC):
    """Environments on a device, whose physics a subclass gives.

    Args:
        num_envs: Number of environments E.
        device: Their device.
        max_episode_steps: Steps after which an episode is truncated.
        seed: Seed of resets without seeds.
    """

    single_observation_space: spaces.Space[Any]
    single_action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (1,), np.float32)
    state_dim = 4

    def __init__(
        self, num_envs: int, *, device: torch.device | str = "cpu", max_episode_steps: int = 200, seed: int = 0
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it should be at least 1")
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), max_episode_steps
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._state = torch.zeros(num_envs, self.state_dim, dtype=torch.float64, device=self.device)
        self._n_steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._nowhere = torch.zeros(num_envs, dtype=torch.bool, device=self.device)

    def reset(self, mask: Tensor | None = None, *, seeds: Sequence[int] | None = None) -> Tensor:
        """Begin episodes; see `TorchVectorEnv`."""
        if seeds is None:
            state = self._drawn()
        else:
            chosen = [True] * self.num_envs if mask is None else mask.tolist()
            rows = [self._seeded(s) if here else [0.0] * self.state_dim for s, here in zip(seeds, chosen, strict=True)]
            state = torch.tensor(rows, dtype=torch.float64, device=self.device)
            if mask is None:
                self._generator.manual_seed(seeds[0])  # else all runs would draw the same later episodes
        if mask is None:
            self._state, self._n_steps = state, torch.zeros_like(self._n_steps)
        else:
            self._state = torch.where(mask[:, None], state, self._state)
            self._n_steps = torch.where(mask, 0, self._n_steps)
        return self._observation(self._state)

    def step(self, actions: Tensor) -> Step:
        """Take a step in all environments; see `TorchVectorEnv`."""
        before = self._state
        self._state = self._after(before, actions)
        self._n_steps = self._n_steps + 1
        reward, success = self._outcome(before, actions, self._state)
        over = self._n_steps >= self.max_episode_steps
        return Step(self._observation(self._state), reward, self._ends(self._state), over, success)

    def state_dict(self) -> dict[str, Any]:
        """States, steps and the generator of resets; see `TorchVectorEnv`."""
        return {
            "state": self._state.clone(),
            "n_steps": self._n_steps.clone(),
            "generator": self._generator.get_state(),
            "device": self.device.type,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; another kind of device draws other resets."""
        if state["state"].shape != self._state.shape:
            shapes = tuple(state["state"].shape), tuple(self._state.shape)
            raise ValueError(f"the state of the environments has shape {shapes[0]}; it should be {shapes[1]}")
        self._state = state["state"].to(self.device, copy=True)
        self._n_steps = state["n_steps"].to(self.device, copy=True)
        if state["device"] == self.device.type:
            self._generator.set_state(state["generator"].cpu())

    @abstractmethod
    def _seeded(self, seed: int) -> list[float]:
        """State in which the single environment begins with a seed, (S,)."""

    @abstractmethod
    def _drawn(self) -> Tensor:
        """States drawn on the device, (E, S)."""

    @abstractmethod
    def _after(self, state: Tensor, actions: Tensor) -> Tensor:
        """Next states (E, S)."""

    @abstractmethod
    def _outcome(self, before: Tensor, actions: Tensor, after: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rewards (E,), and True where the goal is reached, (E,); None if there is none."""

    def _observation(self, state: Tensor) -> Tensor:
        """Flat observations (E, O)."""
        return state.float()

    def _ends(self, state: Tensor) -> Tensor:
        """True where a state ends the episode, (E,)."""
        return self._nowhere

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, device=self.device, dtype=torch.float64)


class Mazes(OnDevice):
    """`envs.maze2d.Maze2D`: states are the position and the goal.

    Args:
        num_envs: Number of environments.
        layout: "simple", "corridor", "medium", or a `Layout`.
        device: Their device.
        seed: Seed of resets without seeds.
        **rules: Fields of `MazeRules`, but for an impulse.
    """

    single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(
        self,
        num_envs: int,
        layout: str | Layout = "medium",
        *,
        device: torch.device | str = "cpu",
        max_episode_steps: int | None = None,
        seed: int = 0,
        **rules: Any,
    ) -> None:
        self.rules = MazeRules(find_layout(layout), **rules)
        if self.rules.impulse_at is not None:
            raise ValueError(f"impulse_at is {self.rules.impulse_at}; it should be None for mazes on a device")
        self.layout = self.rules.layout
        self.single_observation_space = observation_space_of(self.layout)
        steps = self.rules.max_steps if max_episode_steps is None else min(max_episode_steps, self.rules.max_steps)
        super().__init__(num_envs, device=device, max_episode_steps=steps, seed=seed)
        pairs = [(s, g) for s in self.layout.starts for g in [x for x in self.layout.goals if x != s] or [s]]
        self._pairs = torch.tensor([[*s, *g] for s, g in pairs], dtype=torch.float64, device=self.device)
        self._moves = TorchMoves(self.rules, self.device)

    def _seeded(self, seed: int) -> list[float]:
        start, goal = self.layout.draw(seeding.np_random(seed)[0], None, None)
        return [*start, *goal]

    def _drawn(self) -> Tensor:
        index = torch.randint(len(self._pairs), (self.num_envs,), generator=self._generator, device=self.device)
        return self._pairs[index]

    def _after(self, state: Tensor, actions: Tensor) -> Tensor:
        return torch.cat([self._moves(state[:, :2], actions), state[:, 2:]], 1)

    def _outcome(self, before: Tensor, actions: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        offset = after[:, :2] - after[:, 2:]
        x, y = offset.square_().unbind(1)
        distance = (x + y).sqrt_()
        reached = distance < SUCCESS_DISTANCE
        return reached.double() if self.rules.reward_type == "sparse" else distance / -self.layout.diameter, reached

    def _observation(self, state: Tensor) -> Tensor:
        return torch.cat([state, state[:, :2]], 1).float()


def _symmetric(high: NDArray[np.float32]) -> spaces.Box:
    return spaces.Box(-high, high, dtype=np.float32)


class CartPoles(OnDevice):
    """`envs.cartpole.ContinuousCartPole`."""

    single_observation_space = _symmetric(ContinuousCartPole._highest_observation())
    _rest = (0.0, 0.0, 0.0, 0.0)

    def _seeded(self, seed: int) -> list[float]:
        drawn = seeding.np_random(seed)[0].uniform(low=-0.05, high=0.05, size=(4,))
        return (np.array(self._rest) + drawn).tolist()

    def _drawn(self) -> Tensor:
        x, x_dot, theta, theta_dot = (0.1 * self._uniform(self.num_envs, 4) - 0.05).unbind(1)
        return torch.stack([x, x_dot, theta + self._rest[2], theta_dot], 1)

    def _after(self, state: Tensor, actions: Tensor) -> Tensor:
        _, x_dot, theta, theta_dot = state.unbind(1)
        x_acc, theta_acc = accelerations(CARTPOLE_FORCE * actions[:, 0].double(), theta_dot, theta.sin(), theta.cos())
        return state + TAU * torch.stack([x_dot, x_acc, theta_dot, theta_acc], 1)

    def _outcome(self, before: Tensor, actions: Tensor, after: Tensor) -> tuple[Tensor, None]:
        return torch.ones_like(after[:, 0]), None

    def _ends(self, state: Tensor) -> Tensor:
        return cartpole_ends(state, None, state, state)


class SwingUps(CartPoles):
    """`envs.cartpole_swingup.CartPoleSwingUp`."""

    single_observation_space = _symmetric(CartPoleSwingUp._highest_observation())
    _rest = (0.0, 0.0, math.pi, 0.0)

    def _after(self, state: Tensor, actions: Tensor) -> Tensor:
        x, x_dot, theta, theta_dot = state.unbind(1)
        x_acc, theta_acc = accelerations(SWINGUP_FORCE * actions[:, 0].double(), theta_dot, theta.sin(), theta.cos())
        x_dot, theta_dot = x_dot + SWINGUP_TAU * x_acc, theta_dot + SWINGUP_TAU * theta_acc
        return torch.stack([x + SWINGUP_TAU * x_dot, x_dot, theta + SWINGUP_TAU * theta_dot, theta_dot], 1)

    def _outcome(self, before: Tensor, actions: Tensor, after: Tensor) -> tuple[Tensor, None]:
        return CartPoleSwingUp.reward_function(after, after, actions, self._shown(after)), None

    def _ends(self, state: Tensor) -> Tensor:
        return CartPoleSwingUp.termination_function(state, state, state, state)

    def _observation(self, state: Tensor) -> Tensor:
        return self._shown(state).float()

    @staticmethod
    def _shown(state: Tensor) -> Tensor:
        x, x_dot, theta, theta_dot = state.unbind(1)
        return torch.stack([x, x_dot, theta.cos(), theta.sin(), theta_dot], 1)


class Pendulums(OnDevice):
    """gymnasium's Pendulum-v1; states are the angle and its velocity. Torques are float32, as gymnasium's are."""

    single_observation_space = _symmetric(np.array([1.0, 1.0, MAX_SPEED], np.float32))
    single_action_space = spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)
    state_dim = 2

    def _seeded(self, seed: int) -> list[float]:
        high = np.array([math.pi, 1.0])
        return seeding.np_random(seed)[0].uniform(low=-high, high=high).tolist()

    def _drawn(self) -> Tensor:
        theta, theta_dot = (2 * self._uniform(self.num_envs, 2) - 1).unbind(1)
        return torch.stack([math.pi * theta, theta_dot], 1)

    def _after(self, state: Tensor, actions: Tensor) -> Tensor:
        theta, theta_dot = state.unbind(1)
        push = (3.0 * self._torque(actions)).double()
        theta_dot = theta_dot + (3 * GRAVITY / 2 * theta.sin() + push) * PENDULUM_TAU
        theta_dot = theta_dot.clamp(-MAX_SPEED, MAX_SPEED)
        return torch.stack([theta + theta_dot * PENDULUM_TAU, theta_dot], 1)

    def _outcome(self, before: Tensor, actions: Tensor, after: Tensor) -> tuple[Tensor, None]:
        theta, theta_dot = before.unbind(1)
        theta = torch.remainder(theta + math.pi, 2 * math.pi) - math.pi
        effort = (0.001 * self._torque(actions).square()).double()
        return -(theta.square() + 0.1 * theta_dot.square() + effort), None

    def _observation(self, state: Tensor) -> Tensor:
        theta, theta_dot = state.unbind(1)
        return torch.stack([theta.cos(), theta.sin(), theta_dot], 1).float()

    @staticmethod
    def _torque(actions: Tensor) -> Tensor:
        return actions[:, 0].clamp(-MAX_TORQUE, MAX_TORQUE)
