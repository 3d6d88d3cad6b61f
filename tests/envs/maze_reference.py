"""Reference of Maze2D's rules: slow and simple."""

import numpy as np

from envs.maze2d_layouts import Layout


def blocked(layout: Layout, x: float, y: float) -> bool:
    """True if a wall cell has a point closer than 0.15 m."""
    for row, cells in enumerate(layout.rows):
        for column, cell in enumerate(cells):
            nearest_x = min(max(x, column), column + 1)
            nearest_y = min(max(y, row), row + 1)
            if cell == "#" and np.hypot(x - nearest_x, y - nearest_y) < 0.15:
                return True
    return False


def move(layout: Layout, position: np.ndarray, velocity: np.ndarray, push: np.ndarray) -> np.ndarray:
    width, height = len(layout.rows[0]), len(layout.rows)
    target = np.clip(position + 0.1 * np.clip(velocity, -1, 1) + push, 0, [width, height])
    for end in (target, np.array([target[0], position[1]]), np.array([position[0], target[1]])):
        if not blocked(layout, *end):
            return end
    return position


def free_positions(layout: Layout, n: int, seed: int) -> np.ndarray:
    """Random positions that touch no wall. Shape: (n, 2)."""
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < n:
        place = rng.uniform(0, [len(layout.rows[0]), len(layout.rows)])
        if not blocked(layout, *place):
            found.append(place)
    return np.array(found)
