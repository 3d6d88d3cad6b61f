"""Files of a study and of its runs. Light: it loads no torch, as each worker imports it."""

import contextlib
import csv
import errno
import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Names of experiments/run/parts.py, which loads torch.
CHECKPOINTS, LOCK, METRICS, SUMMARY = "checkpoints", "lock", "metrics.csv", "summary.json"

SWEEP = "sweep"
"""Subfolder of a study for the files of the scheduler: logs, leases and Tune's own."""
STOP = "stop"
"""File in `SWEEP` that asks all trainings to save and end."""
WORDS = "study_words.json"
"""File in a finished run's folder: the command line with which the study finished it."""

_TAIL = 2**20  # bytes of metrics.csv that are read: the last rows are enough, and a long run has many


def is_done(run: Path, words: Sequence[str]) -> bool:
    """True if the run is finished with these settings. With others, such as more steps, the training itself decides."""
    try:
        return (run / SUMMARY).exists() and json.loads((run / WORDS).read_text()) == list(words)
    except (OSError, ValueError):
        return False


def newest_checkpoint(run: Path) -> int:
    """Environment steps of a run's newest checkpoint; -1 without one."""
    try:
        names = os.listdir(run / CHECKPOINTS)
    except OSError:
        return -1
    return max((int(name) for name in names if re.fullmatch(r"\d{12,}", name)), default=-1)


def read_metrics(run: Path) -> dict[str, float]:
    """Steps, seconds, return (mean of the last ten episodes) and evaluation of a run; absent where not logged yet."""
    try:
        with (run / METRICS).open("rb") as file:
            header = file.readline()
            begin = max(file.tell(), os.fstat(file.fileno()).st_size - _TAIL)
            if begin > file.tell():
                file.seek(begin)
                file.readline()  # begins in the middle
            lines = (header + file.read()).decode().splitlines(keepends=True)
    except (OSError, ValueError):
        return {}
    columns: dict[str, list[float]] = {}
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):  # the last one may be half written
        for name, cell in row.items():
            if cell:
                columns.setdefault(name, []).append(float(cell))
    names = {"steps": "n_total_env_steps", "seconds": "time/seconds", "evaluation": "eval/episode_return"}
    found = {short: columns[name][-1] for short, name in names.items() if name in columns}
    found |= {"steps": int(found["steps"])} if "steps" in found else {}
    returns = columns.get("env/episode_return", [])[-10:]
    return found | ({"return": sum(returns) / len(returns)} if returns else {})


def is_locked(path: Path) -> bool:
    """True if another process of this machine holds the lock of a file."""
    try:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def write_whole(path: Path, text: str) -> None:
    """Write a file such that readers see the old content or the new one."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_tables(folder: Path, study: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write study.json and trials.csv."""
    write_whole(folder / "study.json", json.dumps({"study": study, "trials": rows}, indent=2, default=str) + "\n")
    temporary = folder / f"trials.csv.{uuid.uuid4().hex}.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(folder / "trials.csv")


@contextlib.contextmanager
def open_study(folder: Path) -> Iterator[None]:
    """Create a study's folder and lock it against a second scheduler.

    Raises:
        ValueError: It is the folder of a run, cannot be written, or another process holds it.
    """
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} is the folder of a run, not of a study; give the study another name")
    try:
        (folder / SWEEP).mkdir(parents=True, exist_ok=True)
        file = (folder / SWEEP / LOCK).open("w")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror or error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            taken = error.errno in (errno.EACCES, errno.EAGAIN)
            reason = "is in use: another process runs this study" if taken else f"cannot be locked: {error.strerror}"
            raise ValueError(f"{folder} {reason}") from error
        (folder / SWEEP / STOP).unlink(missing_ok=True)
        yield
