"""Train among failing environments and kills: `python -m experiments.benchmarks.soak --steps 40000`.

PETS with eight asynchronous instances of cart-pole, in which every 500th step, on average, kills its process, hangs, or
returns NaN. One run is killed at random moments and started again with the same command until it has finished. Beside
it a run with the same settings is left alone. Both have to end with the same metrics and the same checkpoint, bit by
bit, with flat memory, and to leave no processes behind.
"""

import csv
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from envs.cartpole import ContinuousCartPole
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Cell, Table
from experiments.run.folder import checkpoints_of
from layeredrl.storage import Checkpoints

EVERY = 500
"""Mean number of steps between faults, all environments together."""
CLOCKS = {"seconds", "cpu_seconds", "elapsed_s", "run_id"}
"""Keys of a checkpoint that differ between runs of the same settings."""


@dataclass(frozen=True)
class SoakBenchmark:
    """Train among failing environments and kills, beside a run without kills."""

    steps: int = 40_000
    """Number of environment steps of each run."""
    n_envs: int = 8
    """Number of instances of the environment."""
    seed: int = 0
    """Random seed of the runs and of the moments of kills."""
    life: float = 40.0
    """Longest time in seconds from the start of the environments to the next kill; drawn uniformly from 0."""
    minutes: float = 20.0
    """Time in minutes in which one run is killed again and again; then it is left to finish."""
    env_timeout: float = 5.0
    """Time limit for the answer of an environment in seconds; on a busy machine longer."""
    folder: Path = Path("runs/soak")
    """Folder of the runs; its contents are replaced."""
    output: Path = Path("experiments/results/soak.md")
    """Markdown file to write."""


class SabotagedCartPole(ContinuousCartPole):
    """Cart-pole that sometimes kills its process, hangs, or returns NaN; in a process of its own only."""

    def step(self, action: Any) -> Any:
        """Step, or fail."""
        result = super().step(action)
        if multiprocessing.parent_process() is not None and self.np_random.random() < 1 / EVERY:
            kind = self.np_random.integers(3)
            if kind == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == 1:
                time.sleep(3600)
            return (np.full(4, np.nan, np.float32), *result[1:])
        return result


gym.register("Sabotaged-v0", SabotagedCartPole, max_episode_steps=200)


class Run:
    """A run of `experiments.train` that is started again until it has finished.

    Args:
        name: Name of its folder.
        config: Settings of both runs.
    """

    def __init__(self, name: str, config: SoakBenchmark) -> None:
        self.folder, self.n_starts, self.n_orphans = config.folder / name, 0, 0
        words = ["--env", "experiments.benchmarks.soak:Sabotaged-v0", "--n-envs", config.n_envs, "--seed", config.seed]
        words += [
            "--vectorization",
            "async",
            "--on-env-fault",
            "restart",
            "--env-timeout",
            5,
            "--max-env-faults",
            10**6,
        ]
        # A small replay, so that a fit does not take longer and longer.
        words += ["--learning.fit-every", 10 * config.n_envs, "--learning.replay-size", 4000]
        words += ["--trainer.n-total-env-steps", config.steps, "--trainer.checkpoint-every", 25 * config.n_envs]
        words += ["--no-pictures", "--no-tensorboard", "--runs-dir", config.folder, "--name", name]
        self._command = [sys.executable, "-m", "experiments.train", "pets", *map(str, words)]

    def start(self) -> None:
        """Start, or go on."""
        self.n_starts += 1
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def has_finished(self) -> bool:
        """Return True if the process has ended well; raise if it has ended with another exit code."""
        code = self._process.poll()
        if code not in (None, 0):
            raise RuntimeError(f"{self.folder.name} ended with exit code {code}, expected 0; see its log")
        return code == 0

    def kill(self) -> None:
        """Kill the process, and count its workers that outlive it by five seconds."""
        workers = descendants(self._process.pid)
        self._process.kill()
        self._process.wait()
        end = time.monotonic() + 5
        while any(map(is_alive, workers)) and time.monotonic() < end:
            time.sleep(0.1)
        self.n_orphans += sum(map(is_alive, workers))

    def footprint(self) -> list[Cell]:
        """Return environment steps, faults, memory of the process in MiB, open files and descendants."""
        pid = self._process.pid
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        memory, n_files = pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))
        steps, faults = self.last("n_total_env_steps"), self.last("env/faults")
        return [steps, faults, memory, n_files, self.n_workers()]

    def n_workers(self) -> int:
        """Return the number of processes below the run's."""
        return len(descendants(self._process.pid))

    def last(self, column: str) -> int:
        """Return the last count in a column of metrics.csv; 0 if there is none."""
        return next((int(float(row[column])) for row in reversed(self.rows()) if row.get(column)), 0)

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of metrics.csv without clocks."""
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            return []
        return [{key: x for key, x in row.items() if key and not key.startswith("time/")} for row in rows]


def descendants(pid: int) -> list[int]:
    """Return the ids of the processes below a process; none if it has ended."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in tasks.read_text().split()]
        except OSError:
            continue
        found += [x for child in children for x in (child, *descendants(child))]
    return found


def is_alive(pid: int) -> bool:
    """Return True if a process runs; one that has ended, but was not waited for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def differences(a: Any, b: Any, place: str = "state") -> list[str]:
    """Return the places in which two states of checkpoints are not equal bit by bit, except for the clocks."""
    if type(a) is not type(b):
        return [place]
    if isinstance(a, dict):
        missing = [f"{place}[{key!r}]" for key in a.keys() ^ b.keys()]
        keys = [key for key in a if key in b and key not in CLOCKS]
        return missing + [x for key in keys for x in differences(a[key], b[key], f"{place}[{key!r}]")]
    if isinstance(a, list | tuple):
        parts = [x for i in range(min(len(a), len(b))) for x in differences(a[i], b[i], f"{place}[{i}]")]
        return parts + ([f"len({place})"] if len(a) != len(b) else [])
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    else:
        same = a == b or (a != a and b != b)  # NaN
    return [] if same else [place]


def soak(config: SoakBenchmark) -> tuple[list[list[Cell]], Run, Run, list[int]]:
    """Train both runs to their ends.

    Returns:
        Footprints of the undisturbed run, minute by minute; the undisturbed and the killed run; and the environment
        steps of the newest checkpoint at each kill.
    """
    alone, killed = Run("alone", config), Run("killed", config)
    rng, rows, kills = random.Random(config.seed), list[list[Cell]](), list[int]()
    begun, kill_at = time.monotonic(), math.inf
    alone.start()
    killed.start()
    while not (alone.has_finished() and killed.has_finished()):
        now = time.monotonic()
        if not killed.has_finished():
            if kill_at == math.inf and killed.n_workers() and now - begun < 60 * config.minutes:
                kill_at = now + rng.uniform(0, config.life)
            if now >= kill_at:
                killed.kill()
                kills.append(checkpoints_of(killed.folder).newest() or 0)
                print(f"kill {len(kills)}, newest checkpoint {kills[-1]}", flush=True)
                killed.start()
                kill_at = math.inf
        if now - begun >= 60 * len(rows) and not alone.has_finished():
            row = [len(rows), *alone.footprint()]
            if not alone.has_finished():
                rows.append(row)
                print(row, flush=True)
        time.sleep(0.2)
    return rows, alone, killed, kills


def report(config: SoakBenchmark, rows: list[list[Cell]], alone: Run, killed: Run, kills: list[int]) -> bool:
    """Compare the runs, write the tables, and return True if the runs are the same and left no worker behind.

    Args:
        config: Settings.
        rows: Footprints of the undisturbed run.
        alone: The undisturbed run.
        killed: The run that was killed.
        kills: Environment steps of the newest checkpoint at each kill.
    """
    metrics = alone.rows(), killed.rows()
    states = [Checkpoints(run.folder / "checkpoints").load() for run in (alone, killed)]
    places = differences(*states)
    returns = [float(row["env/episode_return"]) for row in metrics[0] if row["env/episode_return"]]
    results: list[list[Cell]] = [
        [
            "environment steps of the last checkpoints",
            " and ".join(str(state["n_total_env_steps"]) for state in states),
        ],
        ["kills (SIGKILL)", len(kills)],
        ["newest checkpoints at the kills", f"{len(set(kills))} different ones"],
        ["workers that outlived a kill by 5 s", killed.n_orphans],
        ["rows of metrics.csv", " and ".join(str(len(x)) for x in metrics)],
        ["metrics.csv equal, without clocks", "yes" if metrics[0] == metrics[1] else "NO"],
        ["last checkpoints equal, without clocks", "yes" if not places else f"NO: {', '.join(places[:3])}"],
        ["faults of environments", alone.last("env/faults")],
        ["mean return of the last 40 episodes", float(np.mean(returns[-40:]))],
    ]
    text = f"""PETS (preset demo, a replay of 4000) with {config.n_envs} asynchronous cart-poles, {config.steps} steps.
Every {EVERY}th step, on average, kills its process, makes it hang (detected after {config.env_timeout:g} s), or returns
NaN. One run is killed at random, at most {config.life:g} s after the start of its environments, and started again with
the same command; the other one, beside it, is left alone."""
    columns = ("minute", "steps", "faults", "MiB", "open files", "processes below")
    write_page(
        config.output,
        "Soak among failing environments and kills",
        "python -m experiments.benchmarks.soak "
        f"--steps {config.steps} --life {config.life:g} --env-timeout {config.env_timeout:g}",
        (
            text,
            Table("comparison", "The killed run against the undisturbed one", ("", ""), results),
            Table("footprint", "Footprint of the undisturbed run", columns, rows),
        ),
        machine_line("gymnasium"),
    )
    return metrics[0] == metrics[1] and not places and not killed.n_orphans


def main() -> None:
    """Train both runs, compare them, and write the tables."""
    config = tyro.cli(SoakBenchmark, prog="python -m experiments.benchmarks.soak")
    shutil.rmtree(config.folder, ignore_errors=True)
    if not report(config, *soak(config)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
