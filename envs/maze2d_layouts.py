"""Mazes of square cells of 1 m for Maze2D, and the contacts of an agent of radius 0.15 m with their walls.

x counts columns and y counts rows, both in metres from the corner of the first cell; row 0 is drawn on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]

RADIUS = 0.15
"""Radius of the agent, in metres."""
REACH = RADIUS - 1e-6
"""Distance, in metres, below which the agent touches a wall. It is less than the radius so that an agent at exactly
0.15 m does not touch: otherwise rounding would decide, and differently in float32 and float64."""

FREE, SOLID, CORNER = 0, 1, 2
"""Contacts in a part of a cell: none, a wall, or a wall's corner, which is touched only from nearby."""


@dataclass(frozen=True)
class Layout:
    """Maze: its walls, start positions and goals."""

    name: str
    rows: tuple[str, ...]
    """Rows of cells from y = 0 up; "#" is a wall and "." is free."""
    starts: tuple[Point, ...]
    """Start positions (x, y) in metres; drawn uniformly."""
    goals: tuple[Point, ...]
    """Goals (x, y) in metres; drawn uniformly from those that are not the start."""

    def __post_init__(self) -> None:
        if len({len(row) for row in self.rows}) != 1 or set("".join(self.rows)) - {"#", "."}:
            raise ValueError(f"rows is {self.rows}; it should be strings of # and . that are equally long")
        if not self.starts or not self.goals:
            raise ValueError(f"starts is {self.starts} and goals {self.goals}; there should be at least one of each")
        for start in self.starts:
            self.checked_start(start, "starts")
        for goal in self.goals:
            self.checked_goal(goal, "goals")

    @cached_property
    def walls(self) -> NDArray[np.bool_]:
        """True for cells that are walls. Shape: (rows, columns)."""
        return np.array([[cell == "#" for cell in row] for row in self.rows])

    @cached_property
    def size(self) -> Point:
        """Width and height of the world in metres, which are the numbers of columns and rows."""
        n_rows, n_columns = self.walls.shape
        return float(n_columns), float(n_rows)

    @cached_property
    def diameter(self) -> float:
        """Distance from corner to corner, in metres."""
        return math.hypot(*self.size)

    @cached_property
    def contacts(self) -> NDArray[np.uint8]:
        """FREE, SOLID or CORNER for each part of each cell. Shape: (3 rows, 3 columns).

        A cell has 3 x 3 parts: less than `REACH` from one side, from neither, from the other. Walls farther away
        than the neighbouring cells are never touched, as the agent is smaller than a cell.
        """
        padded = np.pad(self.walls, 1)  # beyond the world there is no wall
        n_rows, n_columns = self.walls.shape
        y, x = (np.arange(1, n + 1).repeat(3) for n in (n_rows, n_columns))
        to_y, to_x = (i + np.tile((-1, 0, 1), n) for i, n in ((y, n_rows), (x, n_columns)))
        solid = padded[np.ix_(y, x)] | padded[np.ix_(to_y, x)] | padded[np.ix_(y, to_x)]
        corner = padded[np.ix_(to_y, to_x)]
        return np.where(solid, SOLID, np.where(corner, CORNER, FREE)).astype(np.uint8)

    @cached_property
    def _contact_lists(self) -> list[list[int]]:
        contacts: list[list[int]] = self.contacts.tolist()  # single entries: lists are faster than arrays
        return contacts

    def touches(self, x: float, y: float) -> bool:
        """Return True if an agent at (x, y) is closer than `REACH` to a wall.

        Args:
            x: Position in metres, within the world.
            y: Position in metres, within the world.
        """
        n_rows, n_columns = self.walls.shape
        column, row = min(int(x), n_columns - 1), min(int(y), n_rows - 1)
        in_x, in_y = x - column, y - row
        part_x = 3 * column + 1 - (in_x < REACH) + (in_x > 1.0 - REACH)
        part_y = 3 * row + 1 - (in_y < REACH) + (in_y > 1.0 - REACH)
        contact = self._contact_lists[part_y][part_x]
        if contact != CORNER:
            return contact == SOLID
        to_x, to_y = min(in_x, 1.0 - in_x), min(in_y, 1.0 - in_y)
        return to_x * to_x + to_y * to_y < REACH * REACH

    def draw(self, generator: np.random.Generator, start: Point | None, goal: Point | None) -> tuple[Point, Point]:
        """Draw the start and the goal of an episode.

        Args:
            generator: Source of randomness; one number is drawn for each of the two that is None.
            start: Start (x, y) in metres; None: drawn.
            goal: Goal (x, y) in metres; None: drawn.

        Returns:
            Start and goal, different from each other where there is a choice.
        """
        if start is None:
            start = _draw_other(generator, self.starts, goal)
        if goal is None:
            goal = _draw_other(generator, self.goals, start)
        return start, goal

    def checked_start(self, value: Any, name: str = "options['start']") -> Point:
        """Return `value` if it is (x, y) and touches no wall; raise an error that calls it `name` otherwise."""
        x, y = self._within_world(name, value)
        if self.touches(x, y):
            raise ValueError(
                f"{name} is {(x, y)}, in a wall or closer than the agent's radius to one; "
                f"it should be at least {RADIUS} m from the walls of {self.name!r}"
            )
        return x, y

    def checked_goal(self, value: Any, name: str = "options['goal']") -> Point:
        """Return `value` if it is (x, y) and in a free cell; raise an error that calls it `name` otherwise."""
        x, y = self._within_world(name, value)
        n_rows, n_columns = self.walls.shape
        if self.walls[min(int(y), n_rows - 1), min(int(x), n_columns - 1)]:
            raise ValueError(f"{name} is {(x, y)}, in a wall; it should be in a free cell of {self.name!r}")
        return x, y

    def _within_world(self, name: str, value: Any) -> Point:
        width, height = self.size
        point = np.asarray(value, dtype=np.float64)
        if point.shape != (2,) or not (0 <= point[0] <= width and 0 <= point[1] <= height):  # also false for nan
            raise ValueError(
                f"{name} is {value}; it should be (x, y) in metres in the world of {self.name!r}, "
                f"0 to {width:g} and 0 to {height:g}"
            )
        return float(point[0]), float(point[1])


def _draw_other(generator: np.random.Generator, points: tuple[Point, ...], taken: Point | None) -> Point:
    others = [point for point in points if point != taken] or points
    return others[generator.integers(len(others))]


def _room(n_columns: int, n_rows: int) -> tuple[str, ...]:
    inside = "#" + "." * (n_columns - 2) + "#"
    return ("#" * n_columns, *[inside] * (n_rows - 2), "#" * n_columns)


_CORNERS = ((1.5, 1.5), (6.5, 6.5), (6.5, 1.5), (1.5, 6.5))

SIMPLE = Layout("simple", _room(10, 10), starts=((1.5, 1.5),), goals=((8.5, 8.5),))
"""Empty room, crossed along its diagonal."""
CORRIDOR = Layout("corridor", _room(20, 5), starts=((1.5, 2.5),), goals=((18.5, 2.5),))
"""Empty corridor, 3 m wide; the goal is 17 m from the start."""
MEDIUM = Layout(
    "medium",
    (  # MEDIUM_MAZE of gymnasium-robotics
        "########",
        "#..##..#",
        "#..#...#",
        "##...###",
        "#..#...#",
        "#.#..#.#",
        "#...#..#",
        "########",
    ),
    starts=_CORNERS,
    goals=_CORNERS,
)
"""Detours between all four corners."""

LAYOUTS = {layout.name: layout for layout in (SIMPLE, CORRIDOR, MEDIUM)}


def find_layout(layout: str | Layout) -> Layout:
    """Layout of a name; a `Layout` is returned unchanged."""
    if isinstance(layout, Layout):
        return layout
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it should be a Layout or one of {', '.join(map(repr, LAYOUTS))}")
    return LAYOUTS[layout]
