"""Runs of `experiments.train` that a study is made of: each once, its result kept as a line of JSON."""

import contextlib
import csv
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.benchmarks.machine import machine_line
from experiments.evaluate import EvaluateConfig, load
from experiments.held_out import collect, displaced, longest_episode, trajectories, transitions
from experiments.pictures import world_model_of
from experiments.signals import STOPPED
from layeredrl.models.diagnostics import evaluate_disagreement, evaluate_one_step, evaluate_open_loop

COLOURS = ("#3366aa", "#dd7733", "#338855", "#aa4466", "#777777", "#bbaa22")
POLL_SECONDS = 1.0
"""Between two looks at whether a run should be asked to stop."""


MODEL_NUMBERS = {
    "R²": "r2",
    "worst R²": "r2_min",
    "residuals": "residual_std",
    "in 90 %": "coverage_90",
    "calibration error": "calibration_error",
    **{f"error, k = {k}": f"open_loop/relative_rmse_{k}" for k in (1, 4, 16)},
}
"""Those of `judge_model` that a table has room for, by their headings there."""


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


def reached(curve: Iterable[Sequence[float]], value: float, within: float = math.inf) -> int | None:
    """Environment steps at which a curve of (environment steps, value) is first at least that high; None if never."""
    return next((int(n) for n, x in curve if x >= value and n <= within), None)


def judge_model(folder: Path, n_steps: int, horizon: int, seed: int) -> dict[str, dict[str, float | None]] | None:
    """What a run's world model is worth, on steps of random and of its own actions; None if it has none.

    The numbers of `experiments.diagnose`, but for those of single dimensions and members.

    Args:
        folder: Of the run.
        n_steps: Environment steps with each policy.
        horizon: Of open-loop rollouts.
        seed: Of the data.
    """
    config, agent, _ = load(EvaluateConfig(folder, device="cpu"))
    world = world_model_of(agent)
    if world is None:
        return None
    told = {}
    for policy, actor in (("random", None), ("agent", agent)):
        data, model = collect(config.env, actor, n_steps=n_steps, seed=seed), world.dynamics
        rows, pieces = transitions(data, world), trajectories(data, min(horizon, longest_episode(data)), world)
        numbers = evaluate_one_step(model, rows).metrics()
        numbers |= evaluate_open_loop(model, pieces, generator=torch.Generator().manual_seed(seed)).metrics()
        numbers |= evaluate_disagreement(model, rows, displaced(rows)).metrics()
        overall = {key: x for key, x in numbers.items() if not key.rpartition("/")[2].startswith(("state_", "member_"))}
        # JSON knows no other numbers; a deterministic model has no density, for instance.
        told[policy] = {key.removeprefix("model/"): x if math.isfinite(x) else None for key, x in overall.items()}
    return told


def model_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models of runs, which have a `variant`, a `seed`, and in `model` what `judge_model` told, in Markdown."""
    rows = [
        (r["variant"], r["seed"], policy, *(rounded(numbers.get(key), 3) for key in MODEL_NUMBERS.values()))
        for r in results
        for policy, numbers in (r["model"] or {}).items()
    ]
    return table(("run", "seed", "actions", *MODEL_NUMBERS), rows)


def returns_table(results: Sequence[Mapping[str, Any]], within: float = math.inf, n_rows: int = 10) -> list[str]:
    """Returns beside their running maximum, at about that many of the `episodes` of runs, in Markdown."""
    ends = sorted({int(n) for r in results for n, _ in r["episodes"] if n <= within})
    rows = []
    for n in sorted({ends[round(i)] for i in np.linspace(0, len(ends) - 1, n_rows)}) if ends else ():
        pasts = [[x for end, x in r["episodes"] if end <= n] for r in results]
        rows.append((n, *(f"{past[-1]:.1f} / {max(past):.1f}" if past else "" for past in pasts)))
    return table(("environment steps", *(f"{r['variant']}, seed {r['seed']}" for r in results)), rows)


def ranking_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Variants by the mean of their running maximum, after the environment steps that all runs had, in Markdown."""
    within = min(r["n_total_env_steps"] for r in results)
    best, last = {}, {}
    for variant in dict.fromkeys(r["variant"] for r in results):
        own = [[x for n, x in r["episodes"] if n <= within] for r in results if r["variant"] == variant]
        best[variant] = np.array([max(x, default=math.nan) for x in own])
        last[variant] = np.array([np.mean(x[-5:]) if x else math.nan for x in own])
    order = sorted(best, key=lambda variant: -float(best[variant].mean()))
    draws = [bootstrap(best[variant], seed) for seed, variant in enumerate(order)]  # runs of a seed are no pairs
    above = [f"{np.mean(a > b):.2f}" for a, b in pairwise(draws)]
    rows = [
        (variant, len(best[variant]), with_interval(best[variant]), with_interval(last[variant]), share)
        for variant, share in zip(order, [*above, ""], strict=True)
    ]
    return table(("", "seeds", f"running maximum at {within}", "mean of the last five", "above the next"), rows)


def rounded(value: float | None, digits: int) -> str:
    """A number for a table; nothing if there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def best_so_far(curve: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """The running maximum of a curve of (environment steps, value)."""
    best = -math.inf
    return [(n, best := max(best, x)) for n, x in curve]


def bootstrap(values: NDArray[np.float64], seed: int = 0, n: int = 10_000) -> NDArray[np.float64]:
    """Means (n,) of values (k,) drawn anew with replacement."""
    draws = np.random.default_rng(seed).integers(len(values), size=(n, len(values)))
    return np.asarray(values[draws].mean(1))


def with_interval(values: NDArray[np.float64]) -> str:
    """Mean of values (k,), and its 95 % interval by the bootstrap."""
    low, high = np.quantile(bootstrap(values), (0.025, 0.975))
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


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
