"""The parts of a run, built from its settings: agent, environments, collector, loggers."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv

import envs  # noqa: F401  registers the tasks with gymnasium
from experiments.run.config import RunConfig, to_dict
from experiments.run.flags import as_typed
from experiments.run.folder import METRICS, WANDB_ID, write_whole
from layeredrl.collector import Collector
from layeredrl.device_collector import DeviceCollector, host_only
from layeredrl.environments import EnvConfig, make_env, make_task, make_torch_vector_env, make_vector_env
from layeredrl.episodes import EpisodeCollector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels.goals import ACHIEVED_KEY
from layeredrl.loggers import ConsoleLogger, CsvLogger, Logger, LoggerList, TensorBoardLogger, WandbLogger
from layeredrl.randomness import seed_globals
from layeredrl.transfers import same_device

GOAL_ENVIRONMENT = "Maze2D-Medium-v0"
"""An environment with goals, on which every agent works."""


def build_agent(config: RunConfig[Any]) -> Hierarchy:
    """Read the task and build the agent from the seed; nothing is written.

    Raises:
        ValueError: The environment or the device does not exist, or settings do not fit together.
    """
    device = torch.device(config.device)
    for flag, name in (("--device", config.device), ("--env-device", config.env_device or "cpu")):
        wanted = torch.device(name)
        if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"{flag} is {name!r}, but torch finds {torch.cuda.device_count()} GPUs here")
    torch.set_num_threads(config.threads)
    seed_globals(config.seed)
    task = make_task(config.environment, config.n_envs)
    try:
        agent: Hierarchy = config.settings.build(task, device, seed=config.seed)
    except ValueError as error:
        message = as_typed(str(error), config)
        if ACHIEVED_KEY in message and ACHIEVED_KEY not in task.slices:
            message += f"; {config.agent} works on goal environments, such as --env {GOAL_ENVIRONMENT}"
        raise ValueError(message) from error
    return agent


def require_wandb(config: RunConfig[Any]) -> None:
    """Raise a `ValueError` if the run logs to W&B, and W&B refuses its environment variables."""
    if config.wandb == "off":
        return
    import wandb

    try:
        wandb.Settings().update_from_env_vars(os.environ)
    except (ValueError, wandb.Error) as error:
        reason = str(error).partition("For further information")[0]  # where pydantic's documentation is
        raise ValueError(f"W&B refuses an environment variable WANDB_...: {reason}") from error


def make_collector(config: RunConfig[Any], agent: Hierarchy) -> EpisodeCollector:
    """Build the collector that trains the agent, on the device of its environments if it can learn there."""
    if config.env_device is not None:
        reason = host_only(agent)
        if not same_device(torch.device(config.env_device), torch.device(config.device)):
            reason = f"the agent is on {config.device}"
        if reason is None:
            env = make_torch_vector_env(_imported(config), config.n_envs, config.env_device)
            return DeviceCollector(env, agent, seed=config.seed)
        print(f"Observations of the environments on {config.env_device} go through the host: {reason}")
    return Collector(make_envs(config, config.n_envs), agent, seed=config.seed)


def _imported(config: RunConfig[Any]) -> EnvConfig:
    """Recipe of the environments; a process that is not forked from this one has to import them."""
    return config.environment if ":" in config.env else replace(config.environment, id=f"envs:{config.env}")


def make_envs(config: RunConfig[Any], n_envs: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Build environments of a run, with its settings for faults."""
    return make_vector_env(
        _imported(config),
        n_envs,
        vectorization=config.vectorization,
        device=config.env_device,
        on_fault="restart" if config.on_env_fault == "restart" else "raise",
        timeout_s=config.env_timeout,
        max_faults=config.max_env_faults,
        **kwargs,
    )


def make_envs_here(config: RunConfig[Any], n_envs: int) -> VectorEnv[Any, Any, Any]:
    """Build environments of a run in this process, because other processes would take longer to start than to run."""
    return make_envs(replace(config, vectorization="sync") if config.vectorization == "async" else config, n_envs)


def can_render(env: str | EnvConfig) -> bool:
    """Return True if the environment can render an array."""
    made = make_env(env)
    try:
        return "rgb_array" in (made.metadata.get("render_modes") or ())
    finally:
        made.close()


def make_logger(config: RunConfig[Any], folder: Path) -> LoggerList:
    """Build the loggers that the settings ask for."""
    settings = to_dict(config)
    loggers: list[Logger] = [ConsoleLogger(config.trainer.n_total_env_steps), CsvLogger(folder / METRICS)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(settings, folder / "tensorboard"))
    if config.wandb != "off":
        wandb = WandbLogger(config.wandb_settings, settings, folder, folder / METRICS)
        # Written at once, so that a run that is killed before its first checkpoint resumes the same W&B run.
        path = folder / WANDB_ID
        given = os.environ.get("WANDB_RUN_ID")  # by the agent of a W&B sweep, or a person
        if not path.exists():
            write_whole(path, given or str(wandb.state_dict()["run_id"]))
        known = path.read_text().strip()
        if given and given != known:
            raise ValueError(
                f"{folder} logs to the W&B run {known}, but WANDB_RUN_ID is {given}; choose another --name"
            )
        wandb.load_state_dict({"run_id": known, "n_records": 0})
        loggers.append(wandb)
    return LoggerList(loggers)
