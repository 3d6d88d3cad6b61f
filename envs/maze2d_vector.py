"""Vector environment of `envs.maze2d` in numpy, with all of gymnasium's autoreset modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.endless import termination_function
from envs.maze2d import METADATA, Observation, check_render_mode, drawing_of, observation_space_of
from envs.maze2d_layouts import Layout, Point, find_layout
from envs.maze2d_rules import SUCCESS_DISTANCE, MazeRules

if TYPE_CHECKING:
    from envs.maze2d_drawing import MazeDrawing

Mask = NDArray[np.bool_]
Seeds = int | Sequence[int | None] | None


class Maze2DVectorEnv(VectorEnv[Observation, NDArray[np.float32], NDArray[Any]]):
    """Independent mazes of one layout; with the same seeds, their episodes equal `Maze2D`'s to the last bit.

    Seeds, options, masks and infos are those of gymnasium's SyncVectorEnv. "start" and "goal" of the reset's options
    may also be one for each environment, (num_envs, 2).
    """

    termination_function = staticmethod(termination_function)

    def __init__(
        self,
        num_envs: int = 1,
        layout: str | Layout = "medium",
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **rules: Any,
    ) -> None:
        """Create the environments.

        Args:
            num_envs: Number of environments.
            layout: "simple", "corridor", "medium", or a `Layout`.
            autoreset_mode: Mode of resetting environments whose episode ended.
            render_mode: "rgb_array" or None.
            **rules: Fields of `MazeRules`.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it should be at least 1")
        check_render_mode(render_mode)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**METADATA, "autoreset_mode": self.autoreset_mode}
        self.rules = MazeRules(find_layout(layout), **rules)
        self.layout = self.rules.layout
        self.dynamics_function = self.rules.dynamics_function
        self.reward_function = self.rules.reward_function
        self.single_observation_space = observation_space_of(self.layout)
        self.single_action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators = [seeding.np_random() for _ in range(num_envs)]
        self._was_reset = False
        self._position = np.zeros((num_envs, 2))
        self._goal = np.zeros((num_envs, 2))
        self._distance = np.zeros(num_envs)
        self._n_steps = np.zeros(num_envs, np.int64)
        self._done = np.zeros(num_envs, np.bool_)
        self._drawing: MazeDrawing | None = None

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # as SyncVectorEnv has it
        """The generator of each environment."""
        return tuple(generator for generator, _ in self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:
        """The seed of each environment's generator."""
        return tuple(seed for _, seed in self._generators)

    def reset(self, *, seed: Seeds = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: Seed of the first environment, counted up for the others; or one seed or None for each.
            options: "reset_mask", True for environments to reset; bool, shape (num_envs,). "start" and "goal", x, y in
                metres, (2,) for all or (num_envs, 2).

        Returns:
            Observations of all environments, and infos of those that were reset.
        """
        mask = self._checked_mask((options or {}).get("reset_mask"))
        seeds = self._checked_seeds(seed)
        starts = self._points("start", options)
        goals = self._points("goal", options)
        for i in np.flatnonzero(mask).tolist():
            start = None if starts is None else self.layout.checked_start(starts[i])
            goal = None if goals is None else self.layout.checked_goal(goals[i])
            if seeds[i] is not None:
                self._generators[i] = seeding.np_random(seeds[i])
            self._begin(i, start, goal)
        self._was_reset = True
        self._distance = self.rules.distance(self._position, self._goal)
        return self._observation(), self._info(mask)

    def step(self, actions: NDArray[np.float32]) -> tuple[Observation, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        if not self._was_reset:
            raise gym.error.ResetNeeded("step was called before reset; call reset first")
        resetting = self._done
        if self.autoreset_mode == AutoresetMode.DISABLED and resetting.any():
            ended = np.flatnonzero(resetting).tolist()
            raise gym.error.ResetNeeded(f"the episodes of environments {ended} ended; reset them with a reset_mask")
        velocities = self._checked(actions, resetting)
        self._n_steps += 1
        self._position = self.rules.move_all(self._position, velocities, self._n_steps)
        self._distance = self.rules.distance(self._position, self._goal)
        rewards = self.rules.rewards(self._distance)
        self._done = self._n_steps >= self.rules.max_steps
        infos: dict[str, Any] = {}
        if resetting.any():  # NEXT_STEP: this call resets them instead of stepping
            self._restart(resetting)
            rewards[resetting] = 0.0
        truncations = self._done.copy()
        if self.autoreset_mode == AutoresetMode.SAME_STEP and truncations.any():
            infos = self._final(truncations)
            self._restart(truncations)
        infos.update(self._info(np.ones(self.num_envs, np.bool_)))
        return self._observation(), rewards, np.zeros(self.num_envs, np.bool_), truncations, infos

    def _restart(self, mask: Mask) -> None:
        for i in np.flatnonzero(mask).tolist():
            self._begin(i, None, None)
        self._distance = self.rules.distance(self._position, self._goal)

    def _begin(self, i: int, start: Point | None, goal: Point | None) -> None:
        self._position[i], self._goal[i] = self.layout.draw(self._generators[i][0], start, goal)
        self._n_steps[i] = 0
        self._done[i] = False

    def _observation(self) -> Observation:
        here = self._position.astype(np.float32)
        return {"achieved_goal": here, "desired_goal": self._goal.astype(np.float32), "observation": here.copy()}

    def _info(self, mask: Mask) -> dict[str, Any]:
        """Infos of all environments, zero where the mask is False, and the mask itself under "_key"."""
        return {
            "is_success": (self._distance < SUCCESS_DISTANCE) & mask,
            "_is_success": mask,
            "dist_to_goal": np.where(mask, self._distance, 0.0),
            "_dist_to_goal": mask.copy(),
        }

    def _final(self, mask: Mask) -> dict[str, Any]:
        """Last observations and infos of the episodes in the mask, taken before the reset."""
        last = self._observation()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for i in np.flatnonzero(mask).tolist():
            final_obs[i] = {key: value[i].copy() for key, value in last.items()}
        final_info = self._info(mask.copy())
        return {"final_obs": final_obs, "_final_obs": mask.copy(), "final_info": final_info, "_final_info": mask.copy()}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Draw each environment.

        Returns:
            The frames. Shape: (height, width, 3) each.
        """
        if self.render_mode is None:
            gym.logger.warn('render needs a render_mode: make the environment with render_mode="rgb_array"')
            return None
        if not self._was_reset:
            raise gym.error.ResetNeeded("render was called before reset; call reset first")
        if self._drawing is None:
            self._drawing = drawing_of(self.layout)
        rows = zip(self._position.tolist(), self._goal.tolist(), self._n_steps.tolist(), strict=True)
        return tuple(self._drawing.frame([(x, y)], (to_x, to_y), n) for (x, y), (to_x, to_y), n in rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawing": None}  # Pillow's fonts cannot be pickled

    def _checked(self, actions: NDArray[np.float32], ignored: Mask) -> NDArray[np.float64]:
        values = np.asarray(actions, dtype=np.float64)
        if values.shape != (self.num_envs, 2):
            raise ValueError(f"actions has shape {values.shape}; it should be ({self.num_envs}, 2)")
        if not np.isfinite(values).all():
            values = np.where(ignored[:, None], 0.0, values)
            bad = np.flatnonzero(~np.isfinite(values).all(1))
            if len(bad):
                raise ValueError(
                    f"action of environment {bad[0]} is {tuple(values[bad[0]].tolist())}; "
                    "it should be two finite numbers, which are held to [-1, 1]"
                )
        return values

    def _checked_seeds(self, seed: Seeds) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, (int, np.integer)):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"seed has length {len(seed)}; it should be an int or one for each of {self.num_envs}")
        return [None if one is None else int(one) for one in seed]

    def _checked_mask(self, mask: Mask | None) -> Mask:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"options['reset_mask'] is of type {kind}; it should be a numpy array of bool")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"options['reset_mask'] is {mask}; it should have shape ({self.num_envs},) and a True")
        if not self._was_reset and not mask.all():
            raise gym.error.ResetNeeded("the first reset should be one of all environments")
        return mask.copy()

    def _points(self, option: str, options: dict[str, Any] | None) -> NDArray[np.float64] | None:
        value = (options or {}).get(option)
        if value is None:
            return None
        points = np.asarray(value, dtype=np.float64)
        if points.shape not in ((2,), (self.num_envs, 2)):
            raise ValueError(
                f"options[{option!r}] has shape {points.shape}; it should be (2,), for all environments, "
                f"or ({self.num_envs}, 2)"
            )
        return np.broadcast_to(points, (self.num_envs, 2))
