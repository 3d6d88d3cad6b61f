"""The parts of a run, put together from its settings; shared by training and evaluation."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

import envs  # noqa: F401  registers the tasks with gymnasium
from experiments.config import RunConfig, to_dict, to_json
from layeredrl.collector import Collector, Episode
from layeredrl.environments import make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import ConsoleLogger, CsvLogger, Logger, LoggerList, TensorBoardLogger, WandbLogger
from layeredrl.randomness import seed_globals

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
CONFIG = "config.json"


def build_agent(config: RunConfig[Any]) -> Hierarchy:
    """Read the task and build the agent, from the seed; nothing is written.

    Raises:
        ValueError: The settings ask for what there is not, or do not fit together.
    """
    device = torch.device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {config.device!r}, but torch finds {torch.cuda.device_count()} GPUs here")
    torch.set_num_threads(config.threads)
    seed_globals(config.seed)
    agent: Hierarchy = config.settings.build(make_task(config.env, config.n_envs), device, seed=config.seed)
    return agent


def make_collector(config: RunConfig[Any], agent: Hierarchy) -> Collector:
    """The collector that trains the agent."""
    # A process that does not begin as a copy of this one knows no environments: it has to import them.
    env_id = config.env if ":" in config.env else f"envs:{config.env}"
    env = make_vector_env(env_id, config.n_envs, asynchronous=config.async_envs)
    return Collector(env, agent, seed=config.seed)


def play(config: RunConfig[Any], agent: Hierarchy, n_episodes: int, seed: int) -> list[Episode]:
    """Play episodes without exploration, in environments of their own."""
    env = make_vector_env(config.env, min(n_episodes, 8))
    try:
        return Collector(env, agent, seed=seed, learn=False).collect_episodes(n_episodes)
    finally:
        env.close()


def can_render(env_id: str) -> bool:
    """Whether an environment can draw itself as an array."""
    env = gym.make(env_id)
    try:
        return "rgb_array" in env.metadata.get("render_modes", [])
    finally:
        env.close()


def open_folder(config: RunConfig[Any]) -> Path:
    """Make the run's folder and write its settings there.

    Raises:
        ValueError: It holds another run, or cannot be written.
    """
    folder, text = config.folder, to_json(config)
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        if folder not in made:
            _require_replaceable(folder, config.fresh)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(text)
    except OSError as error:
        with contextlib.suppress(OSError):  # what was made for nothing; what never was cannot be removed
            (folder / CONFIG).unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def make_logger(config: RunConfig[Any], folder: Path) -> LoggerList:
    """All loggers that the settings ask for."""
    settings = to_dict(config)
    loggers: list[Logger] = [ConsoleLogger(config.trainer.n_total_env_steps), CsvLogger(folder / METRICS)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(settings, folder / "tensorboard"))
    if config.wandb != "off":
        loggers.append(WandbLogger(config.wandb_settings, settings, folder))
    return LoggerList(loggers)


def _require_replaceable(folder: Path, fresh: bool) -> None:
    if not _holds_run(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not the folder of a run; --name chooses another one")
    if _holds_run(folder) and not fresh:
        raise ValueError(f"{folder} already holds a run; --fresh replaces it, --name chooses another folder")
    if not os.access(folder.parent, os.W_OK):
        raise PermissionError(13, "Permission denied")


def _holds_run(folder: Path) -> bool:
    """Whether a folder's config.json is that of a run; other programs write files of that name too."""
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"agent", "preset", "env", "trainer"} <= content.keys()
