"""Frames and figures of the mazes: things are drawn where they are."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from matplotlib.figure import Figure

import envs  # noqa: F401  registers the tasks
from envs.maze2d import Maze2D
from envs.maze2d_drawing import AGENT, FLOOR, GOAL, PATH, TRAIL, WALL, draw_walls
from envs.maze2d_layouts import LAYOUTS, MEDIUM

SCALES = {"simple": 48, "corridor": 32, "medium": 60}


def centre_of(frame: np.ndarray, colour: tuple[int, int, int], scale: int) -> np.ndarray:
    """Mean position x, y, in metres, of all pixels of a colour."""
    y, x = np.nonzero((frame == colour).all(-1))
    return np.array([x.mean() + 0.5, y.mean() + 0.5]) / scale


@pytest.mark.parametrize("name", SCALES)
def test_agent_goal_and_walls_are_drawn_at_their_positions(name: str) -> None:
    scale, layout = SCALES[name], LAYOUTS[name]
    env = Maze2D(name, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(7):
        env.step(np.array([0.73, 0.31], np.float32))
    frame = env.render()
    assert frame is not None
    assert frame.dtype == np.uint8
    assert frame.shape == (layout.walls.shape[0] * scale, layout.walls.shape[1] * scale, 3)
    np.testing.assert_allclose(centre_of(frame, AGENT, scale), env._position, atol=1.0 / scale)
    np.testing.assert_allclose(centre_of(frame, GOAL, scale), env._goal, atol=1.0 / scale)
    assert (frame == TRAIL).all(-1).any()
    centres = frame[scale // 3 :: scale, scale // 3 :: scale]  # no letters and no discs there
    walls, floor = (centres == WALL).all(-1), (centres == FLOOR).all(-1)
    assert (walls == layout.walls).mean() > 0.97
    assert (floor & layout.walls).sum() == 0


def test_paths_are_shown_until_the_next_reset() -> None:
    env = Maze2D("medium", render_mode="rgb_array")
    env.reset(seed=0, options={"start": (1.5, 1.5), "goal": (6.5, 6.5)})
    bare = env.render()
    paths = np.array([[[2.0, 4.3], [3.0, 4.3], [3.0, 6.0]], [[5.0, 2.0], [6.0, 2.0], [np.nan, 2.0]]])
    env.draw_paths(paths)
    shown = env.render()
    assert bare is not None
    assert shown is not None
    coloured = (shown == PATH).all(-1)
    assert not (bare == PATH).all(-1).any()
    for x, y in ((2.5, 4.3), (3.0, 5.0), (5.5, 2.0)):
        row, column = round(y * 60), round(x * 60)
        assert coloured[row - 1 : row + 2, column - 1 : column + 2].any()
    assert not coloured[:, int(6.2 * 60) :].any()
    assert coloured.sum() < 600  # thin
    env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal((env.render() == PATH).all(-1), coloured)
    env.draw_paths(np.zeros((0, 4, 2)))
    assert not (env.render() == PATH).all(-1).any()
    env.draw_paths(paths)
    env.reset(seed=0, options={"start": (1.5, 1.5), "goal": (6.5, 6.5)})
    np.testing.assert_array_equal(env.render(), bare)
    env.draw_paths(None)
    with pytest.raises(ValueError, match=r"paths has shape \(3, 2\); it should be \(n, T, 2\)"):
        env.draw_paths(paths[0])


def test_passes_gymnasiums_checks_of_rendering() -> None:
    check_env(gym.make("Maze2D-Corridor-v0", render_mode="rgb_array").unwrapped)


def test_walls_in_figures_are_where_the_agent_touches_them() -> None:
    axis = Figure().subplots()
    draw_walls(axis, MEDIUM)
    assert axis.get_xlim() == (0, 8)
    assert axis.get_ylim() == (8, 0)  # downwards, as in the frames
    (image,) = axis.images
    left, right, bottom, top = image.get_extent()
    colours = np.asarray(image.get_array())
    rng = np.random.default_rng(0)
    for x, y in rng.uniform(0.01, 7.99, (200, 2)):
        row = int((y - top) / (bottom - top) * colours.shape[0])
        column = int((x - left) / (right - left) * colours.shape[1])
        assert (tuple(colours[row, column]) == WALL) == MEDIUM.touches(int(x) + 0.5, int(y) + 0.5)
