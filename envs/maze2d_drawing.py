"""Drawing of mazes, in a module of its own because it imports Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from envs.maze2d_layouts import RADIUS, Layout, Point
from envs.maze2d_rules import SUCCESS_DISTANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_WIDTH, MAX_HEIGHT = 640, 480
OVERSAMPLING = 2  # drawn this much larger and scaled down, which smooths the edges
TRAIL_WIDTH, PATH_WIDTH = 3.0, 1.5

FLOOR = (247, 248, 251)
GRID = (233, 236, 242)
WALL = (96, 108, 128)
LETTERS = (247, 248, 251)
GOAL_AREA = (205, 232, 221)
GOAL = (30, 150, 118)
TRAIL = (158, 176, 208)
PATH = (214, 143, 72)
AGENT = (52, 84, 138)
AGENT_EDGE = (38, 46, 62)


class MazeDrawing:
    """Draws frames with row 0 on top, x to the right and y downwards; the background is drawn once.

    Attributes:
        pixels_per_metre: Scale: medium 60, simple 48, corridor 32. (0, 0) is the frame's upper left corner.
    """

    def __init__(self, layout: Layout) -> None:
        """Draw the walls."""
        n_rows, n_columns = layout.walls.shape
        self.pixels_per_metre = max(4, min(MAX_WIDTH // n_columns, MAX_HEIGHT // n_rows))
        self._scale = self.pixels_per_metre * OVERSAMPLING
        self._font = ImageFont.load_default(12)
        self._width = n_columns * self.pixels_per_metre
        self._background = Image.new("RGB", (n_columns * self._scale, n_rows * self._scale), FLOOR)
        pen = ImageDraw.Draw(self._background)
        for (row, column), wall in np.ndenumerate(layout.walls):
            corner = (column * self._scale, row * self._scale)
            far = (corner[0] + self._scale - 1, corner[1] + self._scale - 1)  # Pillow includes it
            pen.rectangle((*corner, *far), fill=WALL if wall else FLOOR, outline=WALL if wall else GRID)

    def frame(
        self, trail: Sequence[Point], goal: Point, n_steps: int, paths: NDArray[np.float64] | None = None
    ) -> NDArray[np.uint8]:
        """Draw one frame.

        Args:
            trail: Positions of the agent, (x, y) in metres, the current one last.
            goal: Position of the goal, (x, y) in metres.
            n_steps: Step count, written in the corner.
            paths: Paths to show as thin lines, x, y in metres; each ends before its first non-finite point.
                Shape: (n, T, 2).

        Returns:
            The frame. Shape: (height, width, 3).
        """
        image = self._background.copy()
        pen = ImageDraw.Draw(image)
        self._disc(pen, goal, SUCCESS_DISTANCE, GOAL_AREA)
        self._line(pen, np.array(trail), TRAIL_WIDTH, TRAIL)
        for path in () if paths is None else paths:
            finite = np.isfinite(path).all(-1)
            self._line(pen, path if finite.all() else path[: finite.argmin()], PATH_WIDTH, PATH)
        self._disc(pen, goal, SUCCESS_DISTANCE / 3, GOAL)
        here = trail[-1]
        self._disc(pen, here, RADIUS, AGENT_EDGE)
        self._disc(pen, here, RADIUS * 0.8, AGENT)
        image = image.reduce(OVERSAMPLING)
        self._write(ImageDraw.Draw(image), math.dist(here, goal), n_steps)
        return np.array(image)

    def _write(self, pen: ImageDraw.ImageDraw, distance: float, n_steps: int) -> None:
        middle = self.pixels_per_metre / 2  # of the top row, which is wall
        pen.text((10, middle), f"step {n_steps}", fill=LETTERS, font=self._font, anchor="lm")
        place = "at the goal" if distance < SUCCESS_DISTANCE else f"{distance:.1f} m to the goal"
        pen.text((self._width - 10, middle), place, fill=LETTERS, font=self._font, anchor="rm")

    def _disc(self, pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: tuple[int, int, int]) -> None:
        x, y, r = centre[0] * self._scale, centre[1] * self._scale, radius * self._scale
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _line(
        self, pen: ImageDraw.ImageDraw, points: NDArray[np.float64], width: float, colour: tuple[int, int, int]
    ) -> None:
        if len(points) > 1:
            pixels = (points * self._scale).ravel().tolist()
            pen.line(pixels, fill=colour, width=round(width * OVERSAMPLING), joint="curve")


def draw_walls(axis: Axes, layout: Layout) -> None:
    """Draw a maze into a figure, as in the frames: x to the right and y downwards, both in metres.

    Args:
        axis: Axis to draw into; its limits and aspect are set.
        layout: Maze to draw.
    """
    colours = np.where(layout.walls[:, :, None], WALL, FLOOR).astype(np.uint8)
    n_rows, n_columns = layout.walls.shape
    axis.imshow(colours, extent=(0, n_columns, n_rows, 0), interpolation="nearest", zorder=0)
    axis.set(xlabel="x (m)", ylabel="y (m)")
