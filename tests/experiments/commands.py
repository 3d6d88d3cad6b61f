"""The command lines, called in this process, and what they leave."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import evaluate, train

QUICK = ("--preset", "debug", "--no-pictures", "--no-tensorboard")
"""A run of a fraction of a second."""


def call(main: Callable[[], None], *args: object) -> None:
    """Run a command with arguments, in a terminal wide enough for paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [main.__module__, *map(str, args)])
        patch.setenv("COLUMNS", "400")
        main()


def run_train(*args: object) -> None:
    call(train.main, *args)


def run_evaluate(*args: object) -> None:
    call(evaluate.main, *args)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, as text."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv that a second run has to repeat to the last digit."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder)]


def episode_returns(folder: Path) -> list[float]:
    return [float(row["env/episode_return"]) for row in read_metrics(folder) if row["env/episode_return"]]


def all_files(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder, with its content; None for a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
