"""The end of a run: pictures, and a table of what came out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import RunConfig
from experiments.pictures import (
    collect_held_out,
    draw_learning_curve,
    draw_model,
    record_episode,
    world_model_of,
    write_gif,
)
from experiments.run import CHECKPOINT, METRICS, can_render
from layeredrl.collector import Episode
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import Logger, closing_table


def finish(
    config: RunConfig[Any],
    agent: Hierarchy,
    folder: Path,
    logger: Logger,
    episodes: Sequence[Episode],
    seconds: float,
    cpu_seconds: float,
) -> None:
    """Draw the pictures that the settings ask for, log them, and print the closing table."""
    n_steps = config.trainer.n_total_env_steps
    rows = {
        "agent": config.agent,
        "environment": config.env,
        "seed": str(config.seed),
        "environment steps": str(n_steps),
    }
    returns = [episode.episode_return for episode in episodes]
    if returns:
        rows["episodes"] = str(len(returns))
        rows["return, last three"] = ", ".join(f"{r:g}" for r in np.round(returns[-3:], 1))
        rows["return, best"] = f"{max(returns):.1f}"
    rows["training time"] = f"{seconds:.1f} s ({cpu_seconds / n_steps:.4f} CPU seconds per environment step)"
    if config.pictures:
        rows |= _draw(config, agent, folder, logger, episodes)
    rows |= {"metrics": str(folder / METRICS), "checkpoint": str(folder / CHECKPOINT)}
    logger.close()  # ends the live display before the table
    closing_table(rows)


def _draw(
    config: RunConfig[Any], agent: Hierarchy, folder: Path, logger: Logger, episodes: Sequence[Episode]
) -> dict[str, str]:
    """Draw, log, and say where the pictures are and what they show."""
    rows: dict[str, str] = {}
    n_steps = config.trainer.n_total_env_steps
    title = f"{config.agent} on {config.env}, seed {config.seed}"
    curve = folder / "learning_curve.png"
    draw_learning_curve(curve, [(e.n_total_env_steps, e.episode_return) for e in episodes], title)
    logger.log_figure("env/learning_curve", curve, n_steps)
    rows["learning curve"] = str(curve)
    world = world_model_of(agent)
    if world is not None:
        picture = folder / "model.png"
        data = collect_held_out(config, agent, seed=config.seed + 2)
        names = [f"state {i}" for i in range(world.encoder.state_space.shape[0])]
        scores = draw_model(picture, world, data, names, f"{title}: the model on held-out transitions")
        logger.log_figure("model/predictions", picture, n_steps)
        rows["model"] = f"{picture} (R² {min(scores.values()):.3f} or better)"
    if can_render(config.env):
        video = folder / "policy.gif"
        frames, fps, episode = record_episode(config, agent, seed=config.seed + 3)
        write_gif(video, frames, fps)
        logger.log_video("env/policy", video, n_steps)
        rows["video"] = f"{video} (return {episode.episode_return:.1f})"
    return rows
