"""The parts of a run, put together from its settings; shared by training and evaluation."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv

import envs  # noqa: F401  registers the tasks with gymnasium
from experiments.run.config import RunConfig, from_json, to_dict, to_json
from layeredrl.collector import Collector, Episode
from layeredrl.environments import make_task, make_vector_env
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import ConsoleLogger, CsvLogger, Logger, LoggerList, TensorBoardLogger, WandbLogger
from layeredrl.randomness import seed_globals

CHECKPOINTS = "checkpoints"
METRICS = "metrics.csv"
PICTURES = "pictures"
CONFIG = "config.json"
LOCK = "lock"
WANDB_ID = "wandb_id"
CODE = "code.json"
"""Which code a run was made with, name by name."""
DIAGNOSIS = "diagnosis.json"
"""What `experiments.diagnose` found of a run's model: numbers by policy and name."""
SUMMARY = "summary.json"
"""What a run came to; it is there when all is done, pictures too."""

FAULT = 3
"""Exit code of a program that could not go on, through no fault of its input; what a run had learned is saved."""


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
    return Collector(make_envs(config, config.n_envs), agent, seed=config.seed)


def make_envs(config: RunConfig[Any], n_envs: int, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    """Environments of a run, for training or for looking on, with its settings for faults."""
    # A process that does not begin as a copy of this one knows no environments: it has to import them.
    env_id = config.env if ":" in config.env else f"envs:{config.env}"
    return make_vector_env(
        env_id,
        n_envs,
        vectorization=config.vectorization,
        on_fault="restart" if config.on_env_fault == "restart" else "raise",
        timeout_s=config.env_timeout,
        max_faults=config.max_env_faults,
        **kwargs,
    )


def play(config: RunConfig[Any], agent: Hierarchy, n_episodes: int, seed: int) -> list[Episode]:
    """Play episodes without exploration, in environments of their own."""
    env = make_envs(config, min(n_episodes, 8))
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


@contextlib.contextmanager
def open_folder(config: RunConfig[Any]) -> Iterator[Path]:
    """Hold the run's folder: make it and write the settings there, or find the run that these settings go on with.

    Nothing is changed in it before this process alone holds it: two would write over each other.

    Raises:
        ValueError: It holds another run, or something else, or cannot be written, or another process holds it.
    """
    folder, text = config.folder, to_json(config)
    made: list[Path] = []
    with contextlib.ExitStack() as held:
        try:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            if folder not in made:
                _require_own(folder, config)
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            _lock(held.enter_context(os.fdopen(file, "r+")), folder)
            if config.fresh:
                _clear(folder)
            write_whole(folder / CONFIG, text)
        except OSError as error:
            for path in made:  # what was made for nothing
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path == folder else path.rmdir()
            raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
        yield folder


def write_whole(path: Path, text: str) -> None:
    """Write a file such that it is the old one or the new one, whatever happens meanwhile."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(file: IO[str], folder: Path) -> None:
    try:
        # Not flock: processes of environments would inherit that, and hold it when this process has been killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise ValueError(f"{folder} is in use: another process trains this run") from None


def _clear(folder: Path) -> None:
    """Delete a run but for its settings: until others take their place, the folder stays that of a run.

    Its checkpoints go first, in one step: a process that is killed here leaves none that is half deleted.
    """
    doomed = folder / f"{CHECKPOINTS}.tmp"
    if (folder / CHECKPOINTS).is_dir():
        if doomed.exists():
            shutil.rmtree(doomed)
        (folder / CHECKPOINTS).rename(doomed)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (CONFIG, LOCK):
            path.unlink()


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Say that a checkpoint does not fit the settings, whatever kind of error shows it.

    Raises:
        ValueError: In place of the error.
    """
    try:
        yield
    except (Fault, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # types and shapes that no state of this run has
        first, *others = str(error).splitlines() or [""]  # torch names every tensor that does not fit; one will do
        reason = f"{type(error).__name__}: {first} {''.join(others[:1])}"
        raise ValueError(f"{path} does not fit the settings in {CONFIG}: {reason}") from error


def make_logger(config: RunConfig[Any], folder: Path) -> LoggerList:
    """All loggers that the settings ask for."""
    settings = to_dict(config)
    loggers: list[Logger] = [ConsoleLogger(config.trainer.n_total_env_steps), CsvLogger(folder / METRICS)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(settings, folder / "tensorboard"))
    if config.wandb != "off":
        wandb = WandbLogger(config.wandb_settings, settings, folder)
        # Kept from the beginning: a run that is killed before its first checkpoint goes on with the same one.
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


FREE = {
    *("device", "env_timeout", "fresh", "max_env_faults", "on_env_fault", "pictures", "tensorboard"),
    *("wandb", "wandb_group", "wandb_job_type", "wandb_name", "wandb_project", "wandb_tags"),
    *("trainer.checkpoint_every", "trainer.n_total_env_steps", "trainer.pictures_every", "trainer.stop_at_return"),
}
"""Settings that may change when a run goes on. The folder's own name and place may, too."""


def _require_own(folder: Path, config: RunConfig[Any]) -> None:
    """Raise unless the folder holds a run, and the one that these settings mean, or one that they replace."""
    if not _holds_run(folder):
        begun = {LOCK, f"{CONFIG}.tmp"}  # what a process leaves that is killed at once
        if folder.is_dir() and begun.issuperset(path.name for path in folder.iterdir()):
            return
        raise ValueError(f"{folder} exists and is not the folder of a run; --name chooses another one")
    links = [path.name for path in folder.iterdir() if path.is_symlink()]
    if links:
        raise ValueError(f"{folder} holds a link, {links[0]}, to what may not be the run's; remove it or choose --name")
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied")
    if config.fresh:
        return
    advice = "--fresh replaces it, --name chooses another folder"
    agent = json.loads((folder / CONFIG).read_bytes())["agent"]
    if agent != config.agent:  # before anything is imported because a file names it
        changed = f"agent was {agent!r} and is {config.agent!r}"
        raise ValueError(f"{folder} holds a run with other settings: {changed}; {advice}")
    try:
        before = from_json(folder / CONFIG)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    old, new = flatten(to_dict(before)), flatten(to_dict(config))
    free = FREE | {"name", "runs_dir"}
    changed = [key for key in sorted({*old, *new} - free) if old.get(key) != new.get(key)]
    if changed:
        named = ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in changed[:5])
        raise ValueError(f"{folder} holds a run with other settings: {named}; {advice}")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one with dots in its keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _holds_run(folder: Path) -> bool:
    """Whether a folder's config.json is that of a run; other programs write files of that name too."""
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"agent", "preset", "env", "trainer"} <= content.keys()
