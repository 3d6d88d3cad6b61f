"""Actions that are repeated for several frames."""

from typing import Any

import gymnasium as gym
import numpy as np

from layeredrl.environments.infos import SUCCESS_KEYS

FRAMES_KEY = "action_repeat_frames"
"""Entry of the info with the number of frames of a step, which is smaller at the end of an episode."""


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Repeat each action for several frames, with the sum of their rewards; stop at an end.

    The info is that of the last frame, but for successes: one in any frame is one of the step.

    Args:
        env: The environment, whose steps are the frames.
        n_frames: Number of frames of an action.
    """

    def __init__(self, env: gym.Env[Any, Any], n_frames: int) -> None:
        super().__init__(env)
        self.n_frames = n_frames
        fps = env.metadata.get("render_fps")
        if isinstance(fps, int | float):  # a picture is drawn after each step
            self.metadata = {**env.metadata, "render_fps": fps / n_frames}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total: Any = None
        successes: dict[str, Any] = {}
        for n in range(1, self.n_frames + 1):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total = reward if n == 1 else total + reward
            successes |= {key: info[key] for key in SUCCESS_KEYS if key in info and _is_true(info[key])}
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, {**info, **successes, FRAMES_KEY: n}


def _is_true(value: Any) -> bool:
    return np.ndim(value) == 0 and bool(value)
