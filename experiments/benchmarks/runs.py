"""Runs of `experiments.train` that a study is made of: each once, its result kept as a line of JSON."""

import contextlib
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.machine import machine_line
from experiments.run.signals import STOPPED

COLOURS = ("#3366aa", "#dd7733", "#338855", "#aa4466", "#777777", "#bbaa22")
POLL_SECONDS = 1.0
"""Between two looks at whether a run should be asked to stop."""


class RunError(RuntimeError):
    """A run ended neither at its end nor because it was asked to."""


def train(runs_dir: Path, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Train in a process of its own, or go on where that was stopped; tells the command and what it cost."""
    subprocess.run([sys.executable, *_command(runs_dir, name, arguments)], check=True)
    return cost(runs_dir, name, arguments)


def train_until(runs_dir: Path, name: str, arguments: Sequence[str], stop: Callable[[], bool]) -> bool:
    """Train as `train` does, but ask the run to stop once `stop` says so; what it prints goes to NAME.log beside it.

    Returns:
        Whether it came to its end; if not, the same call goes on where it was stopped.

    Raises:
        RunError: It failed.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    return run_until([sys.executable, *_command(runs_dir, name, arguments)], runs_dir / f"{name}.log", stop)


def run_until(command: Sequence[str], log: Path, stop: Callable[[], bool]) -> bool:
    """Run a command that ends on SIGTERM with exit code 75, as `experiments.train` does; as `train_until`."""
    with log.open("a") as output:
        # In a group of its own: Ctrl-C is for the study alone, as a run that is asked twice ends without saving.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # several run side by side
        )
        asked = False
        try:
            while process.poll() is None:
                if not asked and stop():
                    process.terminate()
                    asked = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        finally:
            if process.poll() is None:  # `stop` failed: nobody would look after the run
                process.terminate()
                process.wait()
    # Killed by the signal itself: it came before the run had begun, and there is nothing to lose.
    if process.returncode not in (0, STOPPED, -signal.SIGTERM):
        raise RunError(f"{' '.join(command)} ended with exit code {process.returncode}: see {log}")
    return process.returncode == 0


def cost(runs_dir: Path, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """What a run that was trained has cost, by which command, and on what machine."""
    seconds = columns(runs_dir / name / "metrics.csv", ("time/cpu_seconds",))["time/cpu_seconds"]
    return {
        "cpu_seconds": seconds[-1][1],
        "command": "python " + " ".join(_command(runs_dir, name, arguments)),
        "machine": machine_line("gymnasium", "tianshou", "mujoco", threads=1),
    }


def _command(runs_dir: Path, name: str, arguments: Sequence[str]) -> list[str]:
    return ["-m", "experiments.train", *arguments, "--runs-dir", str(runs_dir), "--name", name]


def columns(path: Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Columns of a metrics.csv: environment steps and value, where there is one; empty if there is no such column."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [(int(row["n_total_env_steps"]), float(row[name])) for row in rows if row.get(name)] for name in names
    }


def kept(path: Path) -> list[dict[str, Any]]:
    """The results of a study so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Add one result to a study."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, which writes: several studies may add to one file
        file.write(json.dumps(result) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def draw_curves(
    path: Path, panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[float, float]]]]], xlabel: str
) -> None:
    """Curves of several seeds; of three or more their median, at the points of the first of them, as far as all go.

    Args:
        path: Of the PNG.
        panels: By the label of a panel and then by that of a line: for each seed its points (x, y).
        xlabel: Of all panels.
    """
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axis, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for colour, (name, seeds) in zip(COLOURS, lines.items(), strict=False):
            curves = [np.array(points) for points in seeds]
            told = f"{name}, {len(curves)} seed{'s' * (len(curves) > 1)}"
            strong = curves  # of two, a median would be a run that there was not
            if len(curves) > 2:
                for curve in curves:
                    axis.plot(*curve.T, color=colour, alpha=0.3, lw=1)
                x = curves[0][:, 0]
                x = x[x <= min(curve[-1, 0] for curve in curves)]
                strong = [np.stack([x, np.median([np.interp(x, *curve.T) for curve in curves], 0)], 1)]
            for curve in strong:  # one point alone is no line
                axis.plot(*curve.T, ".-", color=colour, label=told if curve is strong[0] else None)
        axis.set(xlabel=xlabel, ylabel=label)
        axis.locator_params(axis="x", nbins=6)
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=120)
