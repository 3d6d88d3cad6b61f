"""The folder of a run: names of its files, and access to it by one process at a time."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from experiments.run.config import RunConfig, from_json, to_dict, to_json
from layeredrl.faults import Fault
from layeredrl.storage import Checkpoints

CHECKPOINTS = "checkpoints"
METRICS = "metrics.csv"
PICTURES = "pictures"
CONFIG = "config.json"
LOCK = "lock"
WANDB_ID = "wandb_id"
RUN_ID = "run_id"
"""Random id of a run, which its checkpoints name."""
CODE = "code.json"
"""Versions of the code that a run was trained with, by name."""
DIAGNOSIS = "diagnosis.json"
"""Metrics of a run's model from `experiments.diagnose`, by policy and name."""
SUMMARY = "summary.json"
"""Results of a run; written last, after the pictures."""

_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk that may be gone when a run that has begun is tried again."""

FREE = {
    *("device", "env_device", "env_timeout", "fresh", "max_env_faults", "on_env_fault", "pictures", "tensorboard"),
    *("wandb", "wandb_group", "wandb_job_type", "wandb_name", "wandb_project", "wandb_tags"),
    *("trainer.checkpoint_every", "trainer.n_total_env_steps", "trainer.pictures_every", "trainer.stop_at_return"),
}
"""Settings that may change when a run is resumed, besides the name and place of its folder."""


@contextlib.contextmanager
def open_folder(config: RunConfig[Any]) -> Iterator[Path]:
    """Lock the folder of a run, after making it, or after checking that its run has the same settings.

    Nothing is changed before this process holds the lock, because two processes would overwrite each other's files.

    Raises:
        Fault: The folder holds this run, but its disk is full or read-only for now.
        ValueError: The folder holds another run or no run, cannot be written, or is locked by another process.
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
            if not (folder / RUN_ID).exists():
                write_whole(folder / RUN_ID, Checkpoints(folder / CHECKPOINTS).owner() or secrets.token_hex(16))
        except OSError as error:
            for path in made:  # empty, or with a lock at most
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path == folder else path.rmdir()
            message = f"{folder} cannot be written: {error.strerror or error}"
            if not made and error.errno in _PASSING:
                raise Fault(message) from error
            raise ValueError(message) from error
        yield folder


def checkpoints_of(folder: Path) -> Checkpoints:
    """Return the checkpoints of a run; those that name another run are refused.

    A folder without an id, such as one of an older run or of a model on W&B, accepts any.
    """
    path = folder / RUN_ID
    return Checkpoints(folder / CHECKPOINTS, run=path.read_text().strip() if path.exists() else None)


def write_whole(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it has either the old content or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(file: IO[str], folder: Path) -> None:
    try:
        # Not flock: processes of environments would inherit it, and keep it when this process has been killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise ValueError(f"{folder} is in use: another process trains this run") from None


def _clear(folder: Path) -> None:
    """Delete the files of a run except its settings, so that the folder remains that of a run.

    The checkpoints are renamed first, so that a process that is killed here leaves none that is half deleted.
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


def _require_own(folder: Path, config: RunConfig[Any]) -> None:
    """Raise unless the folder holds a run with the same settings, or one that may be replaced."""
    if not _holds_run(folder):
        begun = {LOCK, f"{CONFIG}.tmp"}  # left by a process that was killed at once
        if folder.is_dir() and begun.issuperset(path.name for path in folder.iterdir()):
            return
        raise ValueError(f"{folder} exists and is not the folder of a run; --name chooses another one")
    links = [path.name for path in folder.iterdir() if path.is_symlink()]
    if links:
        raise ValueError(
            f"{folder} holds a symbolic link, {links[0]}, expected files of the run; remove it or choose --name"
        )
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
    """Return a nested dict as a flat one with dots in its keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _holds_run(folder: Path) -> bool:
    """Return True if the folder's config.json is that of a run; other programs write files of that name, too."""
    try:
        content = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"agent", "preset", "env", "trainer"} <= content.keys()
