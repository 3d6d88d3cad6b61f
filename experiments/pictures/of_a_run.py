"""What a run leaves for the eye: learning curve, the model's predictions, a video of the policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch

from experiments.run.config import RunConfig
from experiments.run.held_out import collect, transitions
from experiments.run.parts import make_envs
from layeredrl.collector import Collector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.models.diagnostics.figures import BLUE, ORANGE, draw_predictions
from layeredrl.models.diagnostics.measures import evaluate_one_step
from layeredrl.world_model import WorldModel

matplotlib.use("agg")

MAX_FRAMES = 1000  # an episode may have no end, and the frames wait in memory


def world_model_of(agent: Hierarchy) -> WorldModel | None:
    """The world model that the agent plans the environment's own actions with, if it does."""
    level = agent.levels[0]
    return level.world if isinstance(level, PlannerLevel) and len(agent.levels) == level.duration == 1 else None


def draw_learning_curve(path: Path, episodes: Sequence[tuple[int, float]], title: str) -> None:
    """Returns of the training episodes against environment steps.

    Args:
        path: Of the PNG.
        episodes: (n_total_env_steps at its end, return) of every episode.
        title: Above the picture.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    steps, returns = [n for n, _ in episodes], [r for _, r in episodes]
    many = len(episodes) > 50
    axes.plot(steps, returns, ".", color=BLUE, alpha=0.3 if many else 1.0, label="episode")
    if many:
        window = len(episodes) // 25
        mean = np.convolve(returns, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], mean, color=BLUE, label=f"mean of {window}")
    else:
        axes.plot(steps, returns, color=BLUE, alpha=0.4)
    if returns:
        axes.step(steps, np.maximum.accumulate(returns), where="post", color=ORANGE, lw=1, label="best so far")
        axes.legend(loc="lower right")
    axes.set(xlabel="environment steps", ylabel="episode return", title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def collect_held_out(config: RunConfig[Any], agent: Hierarchy, seed: int, n_steps: int = 400) -> Batch:
    """Fresh transitions that no model was trained on: half by the agent, half by random actions.

    Returns:
        Batch with `obs`, `act`, `obs_next`, each (N, width).
    """
    parts = [collect(config.env, actor, n_steps=n_steps // 2, seed=seed) for actor in (agent, None)]
    return Batch.cat(parts)


def draw_model(path: Path, world: WorldModel, data: Batch, names: Sequence[str], title: str) -> dict[str, float]:
    """The change that the model predicts against the change that happened, for each dimension of the state.

    The next state itself would lie on the diagonal for any model: states change little in a step.

    Args:
        path: Of the PNG.
        world: The world model.
        data: Keys `obs`, `act`, `obs_next`.
        names: Of the dimensions.
        title: Above the picture.

    Returns:
        R² of the predicted change by name of the dimension, without dimensions that do not vary.
    """
    report = evaluate_one_step(world.dynamics, transitions(data, world))
    draw_predictions(report, names, title=title).savefig(path, dpi=120)
    scores = zip(names, report.mixture.r2.tolist(), report.varies.tolist(), strict=True)
    return {name: r2 for name, r2, varies in scores if varies}


def record_episode(config: RunConfig[Any], agent: Hierarchy, path: Path, *, seed: int) -> float:
    """Play one episode without exploration, draw it as a GIF, and return its return.

    Args:
        config: Settings of the run.
        agent: Acts.
        path: Of the GIF.
        seed: Of the episode.

    Raises:
        gymnasium.error.Error: The environment cannot draw itself here.
    """
    env = make_envs(config, 1, render_mode="rgb_array")
    frames: list[NDArray[np.uint8]] = []
    rewards: list[float] = []
    try:
        collector = Collector(env, agent, seed=seed, learn=False, on_step=lambda step, _: rewards.append(step.rew[0]))
        ended = False
        while not ended and len(frames) < MAX_FRAMES:
            frames.append(np.asarray(env.render()[0]))
            ended = bool(collector.step(explore=False))
        frames.append(np.asarray(env.render()[0]))  # how it ended
        write_gif(path, frames, float(env.metadata.get("render_fps", 30)))
    finally:
        env.close()
    return float(sum(rewards))


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write pictures as an animation, at no more than 25 a second."""
    skip = max(1, round(fps / 25))
    iio.imwrite(path, np.stack(frames[::skip]), extension=".gif", duration=1000 * skip / fps, loop=0)
