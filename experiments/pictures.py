"""What a run leaves for the eye: learning curve, the model's predictions, a video of the policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch

from experiments.config import RunConfig
from layeredrl.collector import Collector
from layeredrl.environments import make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel, RandomLevel
from layeredrl.world_model import WorldModel

matplotlib.use("agg")

BLUE, ORANGE, GREY = "#3465a4", "#e07b39", "#888888"
MAX_FRAMES = 1000  # an episode may have no end, and the frames wait in memory


def world_model_of(agent: Hierarchy) -> WorldModel | None:
    """The world model that the agent plans with, if it does."""
    return next((level.world for level in agent.levels if isinstance(level, PlannerLevel)), None)


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
    kept: list[Batch] = []
    for actor in (agent, Hierarchy([RandomLevel(agent.task.action_space)], agent.task)):
        env = make_vector_env(config.env)
        collector = Collector(env, actor, seed=seed, learn=False, on_step=lambda step, _: kept.append(step))
        try:
            while collector.n_total_env_steps < n_steps // 2:
                collector.step(explore=False)
        finally:
            env.close()
    return Batch.cat(kept)


@torch.no_grad()
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
        Share of the variance of the change that the model explains (R2), by name of the dimension.
    """
    device = world.dynamics.device
    obs, act, obs_next = (torch.as_tensor(data[key], device=device) for key in ("obs", "act", "obs_next"))
    state, context = world.encode(obs)
    mean, weights, std, _ = world.dynamics.predict(state, context, act)
    center = (weights.unsqueeze(-1) * mean).sum(2).mean(1)
    second = (weights.unsqueeze(-1) * (mean.square() + std.square())).sum(2).mean(1)
    spread = (second - center.square()).clamp(min=0).sqrt().cpu().numpy()
    truth = (world.encode(obs_next)[0] - state).cpu().numpy()
    guess = (center - state).cpu().numpy()
    figure = Figure(layout="constrained")
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure.set_size_inches(2.6 * columns, 2.6 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    scores: dict[str, float] = {}
    for i, (name, axes) in enumerate(zip(names, panels, strict=False)):
        variance = max(float(truth[:, i].var()), 1e-12)
        scores[name] = 1 - float(np.square(truth[:, i] - guess[:, i]).mean()) / variance
        low, high = truth[:, i].min(), truth[:, i].max()
        axes.plot([low, high], [low, high], color=GREY, lw=1)
        axes.errorbar(
            truth[:, i], guess[:, i], yerr=spread[:, i], fmt=".", color=BLUE, ecolor=ORANGE, ms=3, elinewidth=0.6
        )
        axes.set_title(f"{name}: R² {scores[name]:.4f}", fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("true change in one step", fontsize=9)
    figure.supylabel("predicted change ± std", fontsize=9)
    figure.savefig(path, dpi=120)
    return scores


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
    env = make_vector_env(config.env, render_mode="rgb_array")
    frames: list[NDArray[np.uint8]] = []
    rewards: list[float] = []
    try:
        collector = Collector(env, agent, seed=seed, learn=False, on_step=lambda step, _: rewards.append(step.rew[0]))
        ended = False
        while not ended and len(frames) < MAX_FRAMES:
            frames.append(np.asarray(env.render()[0]))  # type: ignore[index]
            ended = bool(collector.step(explore=False))
        write_gif(path, frames, float(env.metadata.get("render_fps", 30)))
    finally:
        env.close()
    return float(sum(rewards))


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write pictures as an animation, at no more than 25 a second."""
    skip = max(1, round(fps / 25))
    iio.imwrite(path, np.stack(frames[::skip]), extension=".gif", duration=1000 * skip / fps, loop=0)
