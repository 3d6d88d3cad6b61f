"""The end of a run: pictures, and a table of the results."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from experiments.pictures.learning_curve import draw_learning_curve
from experiments.pictures.model import draw_model
from experiments.pictures.states import state_names
from experiments.pictures.video import record_episode
from experiments.run.building import can_render
from experiments.run.config import RunConfig
from experiments.run.folder import CHECKPOINTS, CONFIG, METRICS, PICTURES, SUMMARY, write_whole
from experiments.run.held_out import collect_held_out, world_model_of
from layeredrl.environments.registration import with_own_extra
from layeredrl.episodes import Episode
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import Logger, closing_table
from layeredrl.randomness import fork_globals
from layeredrl.storage import Checkpoints
from layeredrl.trainer import success_rate


@dataclass(frozen=True)
class Training:
    """Results of a training."""

    episodes: Sequence[Episode]
    """All finished episodes, in the order of their ends."""
    n_total_env_steps: int
    """Total environment steps; several environments side by side may take a few more than the settings say."""
    seconds: float
    """Wall time in seconds."""
    cpu_seconds: float
    """CPU time of this process in seconds."""


def finish(
    config: RunConfig[Any],
    agent: Hierarchy,
    folder: Path,
    *,
    logger: Logger,
    training: Training,
    save: Callable[[], object],
) -> None:
    """Draw and log the pictures, save, log the model, and print the closing table.

    Args:
        config: Settings of the run.
        agent: Trained agent.
        folder: Folder of the run.
        logger: Logger of pictures and model; closed at the end.
        training: Results of the training.
        save: Function that saves a checkpoint or raises a `Fault`; called after the pictures.

    Raises:
        Fault: The last checkpoint or the summary could not be written, so that the run is not finished.
    """
    n_steps = training.n_total_env_steps
    rows = {
        "agent": config.agent,
        "environment": config.env,
        "seed": str(config.seed),
        "environment steps": str(n_steps),
    }
    if config.action_repeat > 1:
        rows["action repeat"] = f"{config.action_repeat} frames in an environment step"
    returns = [episode.episode_return for episode in training.episodes]
    if returns:
        rows["episodes"] = str(len(returns))
        rows["return, last three"] = ", ".join(f"{r:g}" for r in np.round(returns[-3:], 1))
        rows["return, best"] = f"{max(returns):.1f}"
    rate = success_rate(training.episodes[-20:])
    if rate is not None:
        rows["success, last twenty"] = f"{rate:.2f}"
    rows["training time"] = (
        f"{training.seconds:.1f} s ({training.cpu_seconds / n_steps:.4f} CPU seconds per environment step)"
    )
    spent = {part: seconds for level in agent.levels for part, seconds in level.cpu_seconds.items()}
    if spent:
        spent["acting and the environment"] = max(0.0, training.cpu_seconds - sum(spent.values()))
        rows["CPU time"] = ", ".join(f"{part} {s / training.cpu_seconds:.0%}" for part, s in spent.items())
    if config.pictures:
        with fork_globals():
            rows |= _draw(config, agent, folder, logger, training)
        save()  # the logs' positions: W&B would ignore records that a longer run logs at the positions of the pictures
    log_model(folder, logger)
    if (folder / METRICS).exists():  # it is written with the first finished episode or fit
        rows["metrics"] = str(folder / METRICS)
    rows["checkpoints"] = str(folder / CHECKPOINTS)
    try:
        write_whole(folder / SUMMARY, json.dumps(rows, indent=2) + "\n")
    except OSError as error:
        raise Fault(f"{folder / SUMMARY} could not be written: {error}") from error
    logger.close()  # ends the live display before the table
    closing_table(rows)


def log_model(folder: Path, logger: Logger) -> None:
    """Log the files that `experiments.evaluate` needs: the settings, and the newest checkpoint without its replay."""
    newest = Checkpoints(folder / CHECKPOINTS).newest()
    if newest is not None:
        checkpoint = f"{CHECKPOINTS}/{newest:012d}"
        names = (CONFIG, f"{checkpoint}/manifest.json", f"{checkpoint}/state.pt")
        logger.log_model({name: folder / name for name in names}, newest)


def _draw(config: RunConfig[Any], agent: Hierarchy, folder: Path, logger: Logger, training: Training) -> dict[str, str]:
    """Draw and log the pictures; return their files and contents, or the reason why one is missing, as table rows."""
    n_steps = training.n_total_env_steps
    title = f"{config.agent} on {config.env}, seed {config.seed}"

    def draw_curve() -> str:
        path = folder / "learning_curve.png"
        draw_learning_curve(path, [(e.n_total_env_steps, e.episode_return) for e in training.episodes], title)
        logger.log_figure("env/learning_curve", path, n_steps)
        return str(path)

    def draw_predictions() -> str | None:
        world = world_model_of(agent)
        if world is None:
            return None
        path = folder / "model.png"
        data = collect_held_out(config, agent, seed=config.seed + 2)
        names = state_names(world.encoder, world.task)
        scores = draw_model(path, world, data, names, f"{title}: the model on held-out transitions")
        logger.log_figure("model/predictions", path, n_steps)
        above = [score for score in scores.values() if score >= 0]
        lowest = f"{min(above):.3f}" if above else "0"
        return f"{path} (R² {lowest} or better in {len(above)} of {len(scores)} dimensions)"

    def record_video() -> str | None:
        if not can_render(config.environment):
            return None
        path = folder / "policy.gif"
        print(f"recording a video, {path}", flush=True)  # MuJoCo may draw for minutes without a GPU
        episode_return = record_episode(config, agent, path, seed=config.seed + 3)
        logger.log_video("env/policy", path, n_steps)
        return f"{path} (return {episode_return:.1f})"

    rows: dict[str, str | None] = {"learning curve": drawn(draw_curve)}
    if (folder / PICTURES).is_dir():
        rows["skills"] = str(folder / PICTURES)
    rows |= {"model": drawn(draw_predictions), "video": drawn(record_video)}
    return {name: value for name, value in rows.items() if value is not None}


def drawn(draw: Callable[[], str | None]) -> str | None:
    """Return the result of `draw`, or the reason why it failed: no picture is worth a run or an evaluation."""
    try:
        return draw()
    except Exception as error:  # of the environment, matplotlib, imageio or the disk
        kind = "" if isinstance(error, Fault | gym.error.Error) else f"{type(error).__name__}: "
        return f"none: {kind}{with_own_extra(' '.join(str(error).split()))}"
