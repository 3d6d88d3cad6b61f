"""Runs of `experiments.train` that a study is made of: each once, its result kept as a line of JSON."""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmarks.machine import machine_line

COLOURS = ("#3366aa", "#dd7733", "#338855", "#aa4466")


def train(runs_dir: Path, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Train in a process of its own, or go on where that was stopped; tells the command and what it cost."""
    command = [*arguments, "--runs-dir", str(runs_dir), "--name", name]
    subprocess.run([sys.executable, "-m", "experiments.train", *command], check=True)
    seconds = columns(runs_dir / name / "metrics.csv", ("time/cpu_seconds",))["time/cpu_seconds"]
    return {
        "cpu_seconds": seconds[-1][1],
        "command": "python -m experiments.train " + " ".join(command),
        "machine": machine_line("gymnasium", "tianshou", "mujoco", threads=1),
    }


def columns(path: Path, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Columns of a metrics.csv: environment steps and value, where there is one."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["n_total_env_steps"]), float(row[name])) for row in rows if row[name]] for name in names}


def kept(path: Path) -> list[dict[str, Any]]:
    """The results of a study so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Add one result to a study."""
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def draw_curves(
    path: Path, panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[float, float]]]]], xlabel: str
) -> None:
    """Curves of several seeds, and their median at the points that the first of them has.

    Args:
        path: Of the PNG.
        panels: By the label of a panel and then by that of a line: for each seed its points (x, y).
        xlabel: Of all panels.
    """
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axis, (label, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for colour, (name, seeds) in zip(COLOURS, lines.items(), strict=False):
            curves = [np.array(points) for points in seeds]
            for curve in curves:
                axis.plot(*curve.T, color=colour, alpha=0.3, lw=1)
            if curves:
                x = curves[0][:, 0]
                median = np.median([np.interp(x, *curve.T) for curve in curves], 0)
                axis.plot(x, median, color=colour, label=f"{name}, {len(curves)} seed{'s' * (len(curves) > 1)}")
        axis.set(xlabel=xlabel, ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8)
    figure.savefig(path, dpi=120)
