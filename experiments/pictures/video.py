"""Videos of an agent's episodes."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from experiments.run.building import make_envs
from experiments.run.config import RunConfig
from layeredrl.collector import Collector
from layeredrl.environments import headless
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy

MAX_FRAMES = 1000  # an episode may have no end, and all frames are kept in memory


def record_episode(config: RunConfig[Any], agent: Hierarchy, path: Path, *, seed: int) -> float:
    """Play one episode without exploration, write it as a GIF, and return the sum of its rewards.

    Args:
        config: Settings of the run.
        agent: Agent that acts.
        path: File of the GIF.
        seed: Random seed of the episode.

    Raises:
        Exception: The environment cannot render here, or its frames do not make a video.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window opens; without a screen, pygame would report an error
    drawn = replace(config, env_device=None, vectorization="sync")  # an environment on a device draws nothing
    env = make_envs(drawn, 1, render_mode="rgb_array")
    fps = env.metadata.get("render_fps")
    fps = float(fps) if isinstance(fps, int | float) and 0 < fps < math.inf else 30.0
    skip = _skip(fps)  # MuJoCo draws without a GPU in 0.1 s: no picture is drawn that the GIF leaves out
    frames: list[NDArray[np.uint8]] = []
    rewards: list[float] = []
    try:
        collector = Collector(env, agent, seed=seed, learn=False, on_step=lambda step, _: rewards.append(step.rew[0]))
        ended = False
        while not ended and len(rewards) < MAX_FRAMES:
            if len(rewards) % skip == 0:
                frames.append(_frame(env))
            ended = bool(collector.step(explore=False))
        frames.append(_frame(env))  # the final state
        write_gif(path, frames, fps / skip)
    finally:
        env.close()
    return float(sum(rewards))


def _frame(env: VectorEnv[Any, Any, Any]) -> NDArray[np.uint8]:
    """Return the frame (H, W, 3) of the only environment."""
    try:
        frames = env.render()
    except Exception as error:
        problem = headless.problem()
        raise error if problem is None else Fault(problem) from error
    frame = np.asarray(None if frames is None else frames[0])
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        found = f"dtype {frame.dtype} and shape {frame.shape}"
        raise ValueError(f"a frame of the environment has {found}, expected uint8 and (height, width, 3)")
    return frame


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write frames (H, W, 3) as a GIF of at most 25 frames per second.

    Args:
        path: File of the GIF.
        frames: Frames of the same size.
        fps: Frames per second of the environment; frames are left out if there are more than 25.
    """
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"the frames have the shapes {', '.join(map(str, sorted(sizes)))}, expected one for all")
    skip = _skip(fps)
    iio.imwrite(path, np.stack(frames[::skip]), extension=".gif", duration=1000 * skip / fps, loop=0)


def _skip(fps: float) -> int:
    """Return how many frames make one of a GIF with at most about 25 per second."""
    return max(1, round(fps / 25))
