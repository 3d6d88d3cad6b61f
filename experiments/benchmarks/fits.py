"""Measure the cost of bounded fits as the replay grows: `python -m experiments.benchmarks.fits`.

A level of PETS with a learned reward fits its model to a replay, from which no other transitions are missing than the
newest. Times of all sizes are measured in turn in one process, so that a busy machine slows all of them. Memory of each
size is measured in a process of its own: the largest resident set is a process's.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from tianshou.data import Batch

from agents.pets import PETS
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Cell, Table
from layeredrl.levels import PlannerLevel
from layeredrl.models import FitConfig
from layeredrl.models.config import EnsembleConfig
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import ModelLearningConfig


@dataclass(frozen=True)
class FitBenchmark:
    """Measure the cost of bounded fits."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of transitions in the replay."""
    steps: tuple[int, ...] = (1, 40)
    """Numbers of optimiser steps that bound a fit."""
    state: int = 17
    """Width of observations."""
    action: int = 6
    """Width of actions."""
    wide: bool = True
    """Measure one size with observations of width 376, too."""
    n_envs: tuple[int, ...] = (1, 16)
    """Numbers of environments that the transitions come from."""
    rounds: int = 20
    """Number of fits to measure, after the first."""
    device: str = "cpu"
    """Device of the model."""
    output: Path = Path("experiments/results/fit_cost.md")
    """Markdown file to write."""
    worker: Literal["", "times", "memory"] = ""
    """Print rows of the first number of steps and of environments as JSON; used by the command itself."""


def transitions(n: int, state: int, action: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return n random transitions."""
    obs = rng.standard_normal((n, state), np.float32)
    return {
        "obs": obs,
        "act": rng.uniform(-1, 1, (n, action)).astype(np.float32),
        "rew": rng.standard_normal(n),
        "terminated": np.zeros(n, bool),
        "truncated": np.zeros(n, bool),
        "obs_next": obs + 0.1,
    }


def new_rows(n: int, state: int, action: int, rng: np.random.Generator) -> Batch:
    """Return one random transition for each of n environments."""
    return Batch({**transitions(n, state, action, rng), "info": Batch(duration=np.ones(n, np.int64))})


def filled_level(config: FitBenchmark, size: int, rng: np.random.Generator) -> PlannerLevel:
    """Return a level whose replay has `size` transitions, as if it had loaded them."""
    n_envs, steps = config.n_envs[0], config.steps[0]
    observations = Box(-np.inf, np.inf, (config.state,), np.float32)
    task = TaskSpec(observations, Box(-1, 1, (config.action,), np.float32), n_envs=n_envs)
    fit = FitConfig(max_steps=steps, batch_size=128)
    learning = ModelLearningConfig(n_random_steps=1, fit_every=1, replay_size=size + 100 * n_envs, fit=fit)
    model = EnsembleConfig(hidden=(200, 200, 200))
    level = PETS(model=model, learning=learning).build(task, torch.device(config.device), seed=0).levels[0]
    assert isinstance(level, PlannerLevel)
    assert level.replay is not None
    other = Replay(level.replay.buffer.maxsize, n_envs)
    other.add(new_rows(n_envs, config.state, config.action, rng), np.arange(n_envs))
    state, n = other.state_dict(), size // n_envs * n_envs
    columns = {**transitions(n, config.state, config.action, rng), "info.duration": np.ones(n, np.int64)}
    rows = {name: x[:1].repeat(n, *[1] * (x.ndim - 1)) for name, x in state["rows"].rows.items() if name not in columns}
    rows |= {name: torch.from_numpy(x) for name, x in columns.items()}
    start, stop = [0] * n_envs, [n // n_envs] * n_envs
    level.replay.load_state_dict({**state, "rows": {"rows": rows, "start": start, "stop": stop}})
    return level


def timed_fit(config: FitBenchmark, level: PlannerLevel, i: int, rng: np.random.Generator) -> float:
    """Fit for the i-th time, add a transition for each environment, and return the fit's CPU milliseconds."""
    start = time.process_time()
    level.learn(config.n_envs[0] * (i + 1))
    if config.device != "cpu":
        torch.cuda.synchronize()
    milliseconds = 1e3 * (time.process_time() - start)
    level.observe(new_rows(config.n_envs[0], config.state, config.action, rng), np.arange(config.n_envs[0]))
    return milliseconds


def resident(name: str) -> int:
    """Return a size of the process in bytes, as Linux calls it: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure_times(config: FitBenchmark) -> list[list[Cell]]:
    """Return rows: size, width, environments, steps, milliseconds of the first and of a later fit, its ratio."""
    rng = np.random.default_rng(0)
    levels = [filled_level(config, size, rng) for size in config.sizes]
    rounds = [[timed_fit(config, level, i, rng) for level in levels] for i in range(1 + config.rounds)]
    first, later = np.array(rounds[0]), np.array(rounds[1:])
    ratios = np.median(later / later[:, :1], 0)
    columns = zip(config.sizes, first, np.median(later, 0), ratios, strict=True)
    labels = [config.state, config.n_envs[0], config.steps[0]]
    return [[size, *labels, *map(float, values)] for size, *values in columns]


def measure_memory(config: FitBenchmark) -> list[list[Cell]]:
    """Return a row of the first size: size, width, megabytes of the replay, and those that fits need beside it."""
    rng = np.random.default_rng(0)
    level = filled_level(config, config.sizes[0], rng)
    assert level.replay is not None
    n_bytes = sum(x.nbytes for x in level.replay.buffer.columns().values())
    Path("/proc/self/clear_refs").write_text("5")  # sets the largest resident set to the current one
    before = resident("VmRSS")
    for i in range(3):
        timed_fit(config, level, i, rng)
    extra = resident("VmHWM") - before if config.device == "cpu" else torch.cuda.max_memory_allocated()
    return [[config.sizes[0], config.state, n_bytes / 1e6, extra / 1e6]]


TIMES = (
    "transitions",
    "width",
    "environments",
    "optimiser steps",
    "first fit, ms",
    "a later fit, ms",
    "ratio to the smallest",
)
MEMORY = ("transitions", "width", "replay, MB", "extra memory, MB")

EARLIER = """## Earlier measurements

Before fits drew only the rows that they use, at commit ec13b79, a later fit of one step took 386 ms with 10,000
transitions, 3,352 ms with 100,000, and 14,104 ms with 100,000 of width 376, with 1.6 GB of extra memory. With 1,000,000
the first fits had not ended after 200 s.

The default preset on Pendulum-v1, seed 0 (`python -m experiments.train pets --env Pendulum-v1`), with its fits bounded
by 100 steps: 56, 28, 21, 25, 24 and 26 environment steps per CPU second in successive 500 steps."""


def rows_of(config: FitBenchmark, worker: str, **words: object) -> list[list[Cell]]:
    """Return the rows that a process of its own measures."""
    given = {"state": config.state, "action": config.action, "rounds": config.rounds, "device": config.device, **words}
    command = [sys.executable, "-m", "experiments.benchmarks.fits", "--worker", worker]
    for name, value in given.items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows: list[list[Cell]] = json.loads(found.splitlines()[-1])
    return rows


def main() -> None:
    """Measure, and write the tables."""
    config = tyro.cli(FitBenchmark, prog="python -m experiments.benchmarks.fits")
    torch.set_num_threads(1)
    if config.worker:
        print(json.dumps((measure_times if config.worker == "times" else measure_memory)(config)))
        return
    cases = [(n_envs, steps) for n_envs in config.n_envs for steps in config.steps]
    times = [row for n, k in cases for row in rows_of(config, "times", sizes=config.sizes, n_envs=n, steps=k)]
    memory = [row for size in config.sizes for row in rows_of(config, "memory", sizes=size, n_envs=1, steps=1)]
    if config.wide:
        memory += rows_of(config, "memory", sizes=100_000, n_envs=1, steps=1, state=376, action=17)
    text = f"""Process CPU time of a fit of dynamics and reward bounded by `fit.max_steps`, one thread, median of
{config.rounds} fits with one new transition of each environment; 5 members of 3 x 200, batches of 128 rows. The sizes
of a setting take turns in one process; the ratio is the median over turns. The first fit is that of a run that goes
on: it computes the statistics of all rows."""
    notes = ("extra memory: growth of the largest resident set in three fits over that of the replay with its rows",)
    tables = (
        Table("fits", "Time", TIMES, times),
        Table("memory", "Memory", MEMORY, memory, notes),
    )
    command = f"python -m experiments.benchmarks.fits --rounds {config.rounds}"
    write_page(config.output, "Cost of bounded fits", command, [text, *tables, EARLIER], machine_line())


if __name__ == "__main__":
    main()
