"""Moves of many agents among the walls of a maze in few torch operations, for mazes on a device."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.maze2d_layouts import CORNER, REACH, SOLID
from envs.maze2d_rules import TAU, MazeRules


class TorchMoves:
    """`MazeRules.move_all` without the impulse, equal to the last bit, in float64.

    Whether an end of a move touches a wall is read from a table: along each axis a position is in one of three parts of
    a cell, and the squared distance to the nearest corner of the cell is compared with the limit of these parts.

    Args:
        rules: Walls and drift.
        device: Device of the positions.
    """

    def __init__(self, rules: MazeRules, device: torch.device) -> None:
        layout = rules.layout
        cells = int(max(layout.size))
        starts = [_parts(cell) for cell in range(cells)]
        self._starts = torch.tensor(np.concatenate(starts)[1:], device=device)
        n = len(self._starts) + 1  # also the number of parts along the longer side
        limits = np.zeros((n + 1, n + 1))  # one more: a position of NaN is behind all parts
        contacts = layout.contacts
        rows, columns = contacts.shape
        limits[:rows, :columns] = np.select([contacts == SOLID, contacts == CORNER], [np.inf, REACH * REACH], 0.0)
        limits[rows], limits[:, columns] = limits[rows - 1], limits[:, columns - 1]  # exactly at the edge of the world
        self._limits, self._width = torch.tensor(limits, device=device).flatten(), n + 1
        self._size = layout.size
        self._drift = torch.tensor(rules.drift, dtype=torch.float64, device=device) if any(rules.drift) else None

    def __call__(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Next positions in metres, (n, 2).

        Args:
            position: x, y in metres, float64, (n, 2).
            velocity: x, y in m/s, clipped to [-1, 1], (n, 2).
        """
        shift = velocity.double().clamp_(-1.0, 1.0).mul_(TAU)
        if self._drift is not None:
            shift += self._drift
        target = shift.add_(position)
        if self._size[0] == self._size[1]:
            target.clamp_(0.0, self._size[0])
        else:
            for along, size in zip(target.unbind(1), self._size, strict=True):
                along.clamp_(0.0, size)
        ends = torch.stack((target.T, position.T), 1)  # (axis, target or position, n)
        part = torch.bucketize(ends, self._starts, right=True)
        to_side = ends.sub_(ends.round()).square_()  # squared distances to the nearest sides of the cell
        # All four combinations of the coordinates: (y of target or position, x of target or position, n).
        to_corner = to_side[1, :, None] + to_side[0, None]
        place = (part[1] * self._width)[:, None] + part[0, None]
        touches = to_corner < self._limits.take(place)
        whole, x_alone, y_alone = touches[0, 0], touches[1, 0], touches[0, 1]
        # Where the whole move is blocked, x alone; else y alone; else none.
        stays = torch.stack((x_alone, x_alone <= y_alone), 1).logical_and_(whole[:, None])
        return torch.where(stays, position, target)


def _parts(cell: int) -> NDArray[np.float64]:
    """Smallest positions in each of the three parts of a cell along an axis, as float64 rounds them, (3,)."""
    near = _first(cell + REACH, lambda x: x - cell >= REACH)
    far = _first(cell + (1.0 - REACH), lambda x: x - cell > 1.0 - REACH)
    return np.array([cell, near, far])


def _first(guess: float, holds: Callable[[float], bool]) -> float:
    """Smallest float64 near a guess for which a monotonic condition holds."""
    while holds(guess):
        guess = math.nextafter(guess, -math.inf)
    while not holds(guess):
        guess = math.nextafter(guess, math.inf)
    return guess
