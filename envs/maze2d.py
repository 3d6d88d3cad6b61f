"""Point agent in a maze seen from above, controlled by its velocity; walls make the straight path to the goal fail.

`env.unwrapped` has `dynamics_function`, `reward_function` and `termination_function`, the same task as torch functions.
`envs.maze2d_vector` runs many mazes at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from envs.endless import termination_function
from envs.maze2d_layouts import Layout, Point, find_layout
from envs.maze2d_rules import SUCCESS_DISTANCE, MazeRules

if TYPE_CHECKING:
    from envs.maze2d_drawing import MazeDrawing

Observation = dict[str, NDArray[np.float32]]

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # twice real time


def observation_space_of(layout: Layout) -> spaces.Dict:
    """Dict space of positions (x, y) in metres: the agent's, the goal's, and the agent's again."""
    high = np.array(layout.size, np.float32)
    box = spaces.Box(np.zeros(2, np.float32), high, dtype=np.float32)
    return spaces.Dict({"achieved_goal": box, "desired_goal": box, "observation": box})


def check_render_mode(render_mode: str | None) -> None:
    """Raise unless `render_mode` is None or 'rgb_array'."""
    if render_mode not in (None, *METADATA["render_modes"]):
        raise ValueError(f"render_mode is {render_mode!r}; it should be None or 'rgb_array'")


def drawing_of(layout: Layout) -> MazeDrawing:
    """Make the drawing of a layout; imported here so that Pillow is loaded only for rendering."""
    try:
        from envs.maze2d_drawing import MazeDrawing
    except ImportError as error:
        raise gym.error.DependencyNotInstalled("rendering needs it: pip install pillow") from error
    return MazeDrawing(layout)


class Maze2D(gym.Env[Observation, NDArray[np.float32]]):
    """Go to the goal around the walls; 0.1 s per step, at most 1 m/s along each axis.

    Observation: a Dict of the agent's position, "achieved_goal" and "observation", and the goal, "desired_goal", all
    (x, y) in metres. Reward: minus the distance to the goal after the step, in diameters of the world. Never
    terminates. `info` has "is_success", closer than 0.3 m to the goal, and "dist_to_goal".
    `reset(options={"start": (x, y), "goal": (x, y)})` sets either or both.
    """

    metadata: dict[str, Any] = METADATA

    termination_function = staticmethod(termination_function)
    torch_vector_env = "envs.on_device:Mazes"

    def __init__(self, layout: str | Layout = "medium", *, render_mode: str | None = None, **rules: Any) -> None:
        """Create the environment.

        Args:
            layout: "simple", "corridor", "medium", or a `Layout`.
            render_mode: "rgb_array" or None.
            **rules: Fields of `MazeRules`: reward_type, max_steps, drift, impulse, impulse_at.
        """
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.rules = MazeRules(find_layout(layout), **rules)
        self.layout = self.rules.layout
        self.dynamics_function = self.rules.dynamics_function
        self.reward_function = self.rules.reward_function
        self.observation_space = observation_space_of(self.layout)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        # The state stays in float64; only the observation is rounded.
        self._position: Point | None = None
        self._goal: Point = self.layout.goals[0]
        self._n_steps = 0
        self._trail: list[Point] = []
        self._paths: NDArray[np.float64] | None = None
        self._drawing: MazeDrawing | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        start, goal = (options or {}).get("start"), (options or {}).get("goal")
        start = None if start is None else self.layout.checked_start(start)
        goal = None if goal is None else self.layout.checked_goal(goal)
        self._position, self._goal = self.layout.draw(self.np_random, start, goal)
        self._n_steps = 0
        self._trail = [self._position]
        self._paths = None
        return self._observation(self._position), self._info(self._distance(self._position))

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        if self._position is None:
            raise gym.error.ResetNeeded("step was called before reset; call reset first")
        velocity = self._checked(action)
        self._n_steps += 1
        position = self.rules.move(self._position, velocity, self._n_steps)
        self._position = position
        if self.render_mode is not None:
            self._trail.append(position)
        distance = self._distance(position)
        truncated = self._n_steps >= self.rules.max_steps
        return self._observation(position), self.rules.reward(distance), False, truncated, self._info(distance)

    def _distance(self, position: Point) -> float:
        x, y = position[0] - self._goal[0], position[1] - self._goal[1]
        return math.sqrt(x * x + y * y)

    def _observation(self, position: Point) -> Observation:
        here = np.array(position, np.float32)
        return {"achieved_goal": here, "desired_goal": np.array(self._goal, np.float32), "observation": here.copy()}

    @staticmethod
    def _info(distance: float) -> dict[str, Any]:
        return {"is_success": distance < SUCCESS_DISTANCE, "dist_to_goal": distance}

    @staticmethod
    def _checked(action: NDArray[np.float32]) -> Point:
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (2,):
            raise ValueError(f"action has shape {values.shape}; it should be (2,)")
        x, y = values.tolist()
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"action is {(x, y)}; it should be two finite numbers, which are held to [-1, 1]")
        return x, y

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawing": None}  # Pillow's fonts cannot be pickled

    def draw_paths(self, paths: ArrayLike | None) -> None:
        """Show paths, such as those of a plan, as thin lines in all frames until the next reset.

        Args:
            paths: x, y in metres; they replace earlier paths. Shape: (n, T, 2). None: no paths.
        """
        points = None if paths is None else np.array(paths, np.float64)
        if points is not None and (points.ndim != 3 or points.shape[-1] != 2):
            raise ValueError(f"paths has shape {points.shape}; it should be (n, T, 2)")
        self._paths = points

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the current state.

        Returns:
            Frame, x to the right and y downwards; `MazeDrawing` has its scale. Shape: (height, width, 3).
        """
        if self.render_mode is None:
            gym.logger.warn('render needs a render_mode: make the environment with render_mode="rgb_array"')
            return None
        if self._position is None:
            raise gym.error.ResetNeeded("render was called before reset; call reset first")
        if self._drawing is None:
            self._drawing = drawing_of(self.layout)
        return self._drawing.frame(self._trail, self._goal, self._n_steps, self._paths)
