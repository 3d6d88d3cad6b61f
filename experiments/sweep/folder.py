"""Files of a study and of its runs. Light: each worker imports it, and it loads no torch."""

import contextlib
import csv
import errno
import fcntl
import functools
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

# Names of experiments/run/folder.py, which loads torch.
CHECKPOINTS, LOCK, METRICS, SUMMARY = "checkpoints", "lock", "metrics.csv", "summary.json"

SWEEP = "sweep"
"""Subfolder of a study for logs, leases and Tune's own files."""
STOP = "stop"
"""File in `SWEEP` that asks all trainings to save and end."""
WORDS = "study_words.json"
"""File in the folder of a finished run: settings on the command line with which a study finished it."""


def is_done(run: Path, words: Sequence[str]) -> bool:
    """True if the run is finished with these settings; with others, such as more steps, the training itself decides."""
    try:
        return (run / SUMMARY).exists() and json.loads((run / WORDS).read_text()) == list(words)
    except (OSError, ValueError):
        return False


def newest_checkpoint(run: Path) -> int:
    """Environment steps of a run's newest checkpoint; -1 without one."""
    names = os.listdir(run / CHECKPOINTS) if (run / CHECKPOINTS).is_dir() else []
    return max((int(name) for name in names if re.fullmatch(r"\d{12,}", name)), default=-1)


def read_metrics(run: Path) -> dict[str, float]:
    """Steps, seconds, steps_per_second, return (mean of ten episodes) and evaluation of a run, as far as known."""
    try:
        found = (run / METRICS).stat()
        metrics = dict(_read_metrics(run / METRICS, found.st_size, found.st_mtime_ns))
    except (OSError, ValueError):  # not there yet, or being replaced
        metrics = {}
    saved = newest_checkpoint(run)  # steps without the end of an episode or of a fit are not logged
    if saved > metrics.get("steps", 0):
        metrics["steps"] = float(saved)
    if metrics.get("seconds") and "steps" in metrics:
        metrics["steps_per_second"] = metrics["steps"] / metrics["seconds"]
    return metrics


@functools.lru_cache(maxsize=4096)  # each look at a growing file adds an entry
def _read_metrics(path: Path, size: int, mtime_ns: int) -> dict[str, float]:
    with path.open("rb") as file:
        header = file.readline()
        file.seek(max(file.tell() - 1, size - 2**19))  # the last rows are enough, and a long run has many
        rows = file.read().decode().split("\n")[1:-1]  # the first and the last one may be incomplete
    columns: dict[str, list[float]] = {}
    for row in csv.DictReader([header.decode(), *rows]):
        for name, cell in row.items():
            if cell:
                columns.setdefault(name, []).append(float(cell))
    names = {"steps": "n_total_env_steps", "seconds": "time/seconds", "evaluation": "eval/episode_return"}
    last = {short: columns[name][-1] for short, name in names.items() if name in columns}
    returns = columns.get("env/episode_return", [])[-10:]
    return last | ({"return": sum(returns) / len(returns)} if returns else {})


def write_whole(path: Path, text: str) -> None:
    """Write a file such that readers see the old content or the new one."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def open_study(folder: Path) -> Iterator[None]:
    """Create a study's folder and lock it against a second scheduler.

    Raises:
        ValueError: It is the folder of a run, cannot be written, or another process holds it.
    """
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} is the folder of a run, not of a study; give the study another name")
    with contextlib.ExitStack() as held:
        try:
            (folder / SWEEP).mkdir(parents=True, exist_ok=True)
            file = held.enter_context((folder / SWEEP / LOCK).open("w"))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            taken = error.errno == errno.EAGAIN  # Linux and macOS; EACCES is a folder without permission to write
            reason = "is in use: another process runs this study" if taken else f"cannot be written: {error.strerror}"
            raise ValueError(f"{folder} {reason}") from error
        (folder / SWEEP / STOP).unlink(missing_ok=True)
        yield
