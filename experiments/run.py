"""The parts of a run, put together from its settings; shared by training and evaluation."""

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
from layeredrl.task import TaskSpec

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
CONFIG = "config.json"


def build_agent(config: RunConfig[Any]) -> tuple[TaskSpec, Hierarchy]:
    """Read the task and build the agent, from the seed; nothing is written."""
    torch.set_num_threads(config.threads)
    seed_globals(config.seed)
    task = make_task(config.env, config.n_envs)
    return task, config.settings.build(task, torch.device(config.device), seed=config.seed)


def make_collector(config: RunConfig[Any], agent: Hierarchy) -> Collector:
    """The collector that trains the agent."""
    env = make_vector_env(config.env, config.n_envs, asynchronous=config.async_envs)
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
    folder = config.folder
    if (folder / CONFIG).exists() and not config.fresh:
        raise ValueError(f"{folder} already holds a run; --fresh replaces it, --name chooses another folder")
    if folder.exists() and not (folder / CONFIG).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not the folder of a run; --name chooses another one")
    try:
        if folder.exists():
            _require_writable(folder.parent)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(to_json(config))
    except OSError as error:
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


def _require_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied")
