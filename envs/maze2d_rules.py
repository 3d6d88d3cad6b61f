"""Rules of Maze2D: moves among walls and rewards, for one agent, for many at once, and as torch functions.

`MazeRules.move` and `MazeRules.move_all` agree to the last bit: the order of the operations is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.maze2d_layouts import CORNER, REACH, SOLID, Layout, Point
from envs.shapes import check_shapes

TAU = 0.1
"""Seconds per step."""
SUCCESS_DISTANCE = 0.3
"""Distance to the goal, in metres, below which the agent has reached it."""
MAX_PUSH = 1.0
"""Largest sum of drift and impulse, in metres along each axis. Only the end of a move is checked against the walls, so
that a move of 1.3 m, a wall and the agent's radius on both sides, could cross a wall."""


@dataclass(frozen=True)
class MazeRules:
    """Moves and rewards of a maze."""

    layout: Layout
    """Walls, start positions and goals."""
    reward_type: str = "dense"
    """"dense": minus the distance to the goal, in diameters of the world; "sparse": 1 at the goal, else 0."""
    max_steps: int = 400
    """Number of steps after which an episode is truncated."""
    drift: Point = (0.0, 0.0)
    """Displacement (x, y) in metres, added to the move of every step."""
    impulse: Point = (0.0, 0.0)
    """Displacement (x, y) in metres, added to the move of one step of each episode."""
    impulse_at: int | None = None
    """Number of the step with the impulse; 1 is the first step of an episode."""

    def __post_init__(self) -> None:
        if self.reward_type not in ("dense", "sparse"):
            raise ValueError(f"reward_type is {self.reward_type!r}; it should be 'dense' or 'sparse'")
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; it should be at least 1")
        if self.impulse_at is not None and self.impulse_at < 1:
            raise ValueError(f"impulse_at is {self.impulse_at}; it should be None or at least 1, the first step")
        for name in ("drift", "impulse"):
            object.__setattr__(self, name, _checked_push(name, getattr(self, name)))
        if any(self.impulse) and self.impulse_at is None:
            raise ValueError(f"impulse is {self.impulse} and impulse_at None; it should be the number of a step")
        together = [abs(d) + abs(i) for d, i in zip(self.drift, self.impulse, strict=True)]
        if max(together) > MAX_PUSH:
            raise ValueError(
                f"drift is {self.drift} and impulse {self.impulse}; together they should be at most {MAX_PUSH:g} m "
                "along each axis, or the agent could jump over walls"
            )

    def move(self, position: Point, velocity: Point, step: int) -> Point:
        """One step of one agent: the whole move or, if a wall blocks it, x alone, else y alone, else none.

        Args:
            position: (x, y) in metres.
            velocity: (x, y) in m/s, clipped to [-1, 1]; finite.
            step: Number of the step in the episode; 1 is the first.

        Returns:
            Next position (x, y) in metres.
        """
        x, y = position
        shift_x = TAU * min(max(velocity[0], -1.0), 1.0) + self.drift[0]
        shift_y = TAU * min(max(velocity[1], -1.0), 1.0) + self.drift[1]
        if step == self.impulse_at:
            shift_x, shift_y = shift_x + self.impulse[0], shift_y + self.impulse[1]
        width, height = self.layout.size
        to_x, to_y = min(max(x + shift_x, 0.0), width), min(max(y + shift_y, 0.0), height)
        for end in ((to_x, to_y), (to_x, y), (x, to_y)):
            if not self.layout.touches(*end):
                return end
        return position

    def move_all(
        self, position: NDArray[np.float64], velocity: NDArray[np.float64], step: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """One step of many agents.

        Args:
            position: x, y in metres. Shape: (n, 2).
            velocity: x, y in m/s, clipped to [-1, 1]; finite. Shape: (n, 2).
            step: Number of the step in each agent's episode; 1 is the first. Shape: (n,).

        Returns:
            Next positions in metres. Shape: (n, 2).
        """
        shift = TAU * np.minimum(np.maximum(velocity, -1.0), 1.0) + self._drift_array
        if self.impulse_at is not None:
            shift = np.where((step == self.impulse_at)[:, None], shift + self._impulse_array, shift)
        target = np.minimum(np.maximum(position + shift, 0.0), self._size_array)
        ends = np.stack((target, target, position))
        ends[1, :, 1] = position[:, 1]  # x alone
        ends[2, :, 1] = target[:, 1]  # y alone
        whole, x_alone, y_alone = self._touches(ends)[:, :, None]
        slid = np.where(x_alone, np.where(y_alone, position, ends[2]), ends[1])
        return np.where(whole, slid, target)

    def distance(self, position: NDArray[np.float64], goal: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distances in metres between positions and goals (n, 2). Shape: (n,)."""
        offset = position - goal
        x, y = offset[:, 0], offset[:, 1]
        return np.sqrt(x * x + y * y)

    def rewards(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rewards of steps that end at a distance from the goal, in metres. Shape: that of `distance`."""
        if self.reward_type == "sparse":
            return (distance < SUCCESS_DISTANCE).astype(np.float64)
        return -distance / self.layout.diameter

    def reward(self, distance: float) -> float:
        """Reward of one step that ends at a distance from the goal, in metres."""
        if self.reward_type == "sparse":
            return float(distance < SUCCESS_DISTANCE)
        return -distance / self.layout.diameter

    def _touches(self, position: NDArray[np.float64]) -> NDArray[np.bool_]:
        """`Layout.touches` of many positions (..., 2). Shape: (...)."""
        # Positions are not negative, so that the cast is the floor.
        cell = np.minimum(position.astype(np.int64), self._last_cell)
        inside = position - cell
        part = 3 * cell + 1 - (inside < REACH) + (inside > 1.0 - REACH)
        contact = self.layout.contacts.ravel()[part[..., 1] * self.layout.contacts.shape[1] + part[..., 0]]
        touching: NDArray[np.bool_] = contact == SOLID
        at_corner = contact == CORNER
        if at_corner.any():
            to_side = np.minimum(inside, 1.0 - inside)
            x, y = to_side[..., 0], to_side[..., 1]
            touching |= at_corner & (x * x + y * y < REACH * REACH)
        return touching

    @cached_property
    def _size_array(self) -> NDArray[np.float64]:
        return np.array(self.layout.size)

    @cached_property
    def _last_cell(self) -> NDArray[np.int64]:
        return self._size_array.astype(np.int64) - 1

    @cached_property
    def _drift_array(self) -> NDArray[np.float64]:
        return np.array(self.drift)

    @cached_property
    def _impulse_array(self) -> NDArray[np.float64]:
        return np.array(self.impulse)

    def dynamics_function(self, state: Tensor, context: Tensor | None, action: Tensor) -> Tensor:
        """One step among the walls, with the drift but without the impulse, which depends on time.

        Args:
            state: Position x, y in metres, alone, or twice as in an observation's achieved_goal and observation; the
                second is ignored. Shape: (..., 2) or (..., 4).
            context: Not used.
            action: Velocity in m/s, clipped to [-1, 1]. Shape: (..., 2), leading dims as in `state`.

        Returns:
            The next state. Shape: that of `state`.
        """
        width = 4 if state.shape[-1:] == (4,) else 2
        check_shapes(state, action, width, 2)
        position = state[..., :2]
        contacts, size, drift = _on_device(self.layout, self.drift, state.device, state.dtype)
        shift = TAU * action.clamp(-1.0, 1.0) + drift
        target = torch.minimum((position + shift).clamp(min=0.0), size)
        x_alone = torch.stack((target[..., 0], position[..., 1]), -1)
        y_alone = torch.stack((position[..., 0], target[..., 1]), -1)
        blocked = _touches(torch.stack((target, x_alone, y_alone)), contacts, size).unsqueeze(-1)
        slid = torch.where(blocked[1], torch.where(blocked[2], position, y_alone), x_alone)
        after = torch.where(blocked[0], slid, target)
        return torch.cat((after, after), -1) if width == 4 else after

    def reward_function(self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Reward of the environment.

        Args:
            state: Not used.
            context: The goal x, y in metres. Shape: (..., 2).
            action: Not used.
            next_state: State that begins with the position x, y in metres. Shape: (..., 2) or (..., 4).

        Returns:
            Rewards in [-1, 0] (dense), or 0 and 1 (sparse). Shape: (...).
        """
        distance: Tensor = torch.linalg.vector_norm(next_state[..., :2] - context, dim=-1)
        if self.reward_type == "sparse":
            return (distance < SUCCESS_DISTANCE).to(next_state.dtype)
        return -distance / self.layout.diameter


def _checked_push(name: str, value: Any) -> Point:
    push = np.asarray(value, dtype=np.float64)
    if push.shape != (2,) or not all(map(math.isfinite, push)):
        raise ValueError(f"{name} is {value}; it should be two finite numbers (x, y), in metres")
    return float(push[0]), float(push[1])


@cache
def _on_device(layout: Layout, drift: Point, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Contacts (3 rows, 3 columns) and size (2,) of a layout, and the drift (2,), as tensors."""
    with torch.inference_mode(False):  # planning runs in inference mode; later uses need gradients
        size, push = (torch.tensor(point, dtype=dtype, device=device) for point in (layout.size, drift))
        return torch.from_numpy(layout.contacts).to(device), size, push


def _touches(position: Tensor, contacts: Tensor, size: Tensor) -> Tensor:
    """`Layout.touches` of many positions (..., 2). Shape: (...)."""
    # Clamped as integers, so that nan, of a particle that diverged, still indexes the table.
    cell = torch.minimum(position.long().clamp(min=0), (size - 1).long())
    inside = position - cell
    part = 3 * cell + 1 - (inside < REACH).long() + (inside > 1.0 - REACH).long()
    contact = contacts[part[..., 1], part[..., 0]]
    to_corner = torch.minimum(inside, 1.0 - inside).square().sum(-1)
    return (contact == SOLID) | ((contact == CORNER) & (to_corner < REACH * REACH))
