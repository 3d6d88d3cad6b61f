"""Measure the cost of bounded fits as the replay grows: `python -m experiments.benchmarks.fits`.

A level of PETS with a learned reward fits its model to a replay, from which no other transitions are missing than the
newest. Each size has a process of its own: the largest resident set is a process's.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    rounds: int = 5
    """Number of fits to measure, after the first."""
    device: str = "cpu"
    """Device of the model."""
    output: Path = Path("experiments/results/fit_cost.md")
    """Markdown file to write."""
    worker: bool = False
    """Print the row of the first size and number of steps as JSON; used by the command itself."""


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


def filled(replay: Replay, n: int, config: FitBenchmark, rng: np.random.Generator) -> int:
    """Fill a replay of one environment with n transitions, as if it loaded them; returns their size in bytes."""
    one = Batch({**transitions(1, config.state, config.action, rng), "info": Batch(duration=np.ones(1, np.int64))})
    other = Replay(replay.buffer.maxsize, 1)
    other.add(one, np.arange(1))
    state = other.state_dict()
    columns = {**transitions(n, config.state, config.action, rng), "info.duration": np.ones(n, np.int64)}
    rows = {name: x.repeat(n, *[1] * (x.ndim - 1)) for name, x in state["rows"].rows.items() if name not in columns}
    rows |= {name: torch.from_numpy(x) for name, x in columns.items()}
    replay.load_state_dict({**state, "rows": {"rows": rows, "start": [0], "stop": [n]}})
    return sum(x.numel() * x.element_size() for x in rows.values())


def resident(name: str) -> int:
    """Return a size of the process in bytes, as Linux calls it: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(config: FitBenchmark) -> list[Cell]:
    """Return a row: size, width, steps, CPU milliseconds of the first and of a later fit, and memory."""
    size, steps = config.sizes[0], config.steps[0]
    rng, device = np.random.default_rng(0), torch.device(config.device)
    task = TaskSpec(Box(-np.inf, np.inf, (config.state,), np.float32), Box(-1, 1, (config.action,), np.float32))
    learning = ModelLearningConfig(
        n_random_steps=1, fit_every=1, replay_size=size + 100, fit=FitConfig(max_steps=steps, batch_size=128)
    )
    model = EnsembleConfig(hidden=(200, 200, 200))
    level = PETS(model=model, learning=learning).build(task, device, seed=0).levels[0]
    assert isinstance(level, PlannerLevel)
    assert level.replay is not None
    n_bytes = filled(level.replay, size, config, rng)
    Path("/proc/self/clear_refs").write_text("5")  # sets the largest resident set to the current one
    before, seconds = resident("VmRSS"), []
    for i in range(1 + config.rounds):
        start = time.process_time()
        level.learn(i + 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.process_time() - start)
        new = Batch({**transitions(1, config.state, config.action, rng), "info": Batch(duration=np.ones(1, np.int64))})
        level.observe(new, np.arange(1))
    extra = resident("VmHWM") - before
    if device.type == "cuda":
        extra = torch.cuda.max_memory_allocated()
    later = 1e3 * float(np.median(seconds[1:]))
    return [size, config.state, steps, 1e3 * seconds[0], later, n_bytes / 1e6, extra / 1e6]


COLUMNS = (
    "transitions",
    "width",
    "optimiser steps",
    "first fit, ms",
    "a later fit, ms",
    "replay, MB",
    "extra memory, MB",
)

EARLIER = """## Earlier measurements

Before fits drew only the rows that they use, at commit ec13b79, a later fit of one step took 386 ms with 10,000
transitions, 3,352 ms with 100,000, and 14,104 ms with 100,000 of width 376, with 1.6 GB of extra memory. With 1,000,000
the first fits had not ended after 200 s.

The default preset on Pendulum-v1, seed 0 (`python -m experiments.train pets --env Pendulum-v1`), with its fits bounded
by 100 steps: 56, 28, 21, 25, 24 and 26 environment steps per CPU second in successive 500 steps."""


def main() -> None:
    """Measure each size in a process of its own, and write the table."""
    config = tyro.cli(FitBenchmark, prog="python -m experiments.benchmarks.fits")
    torch.set_num_threads(1)
    if config.worker:
        print(json.dumps(measure(config)))
        return
    cases = [(size, config.state, config.action, steps) for steps in config.steps for size in config.sizes]
    cases += [(100_000, 376, 17, config.steps[0])] * config.wide
    rows = []
    for size, state, action, steps in cases:
        words = ["--worker", "--sizes", size, "--state", state, "--action", action, "--steps", steps]
        command = [sys.executable, "-m", "experiments.benchmarks.fits", *map(str, words)]
        command += ["--rounds", str(config.rounds), "--device", config.device]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(found.splitlines()[-1]))
    text = f"""Process CPU time of a fit of dynamics and reward bounded by `fit.max_steps`, one thread, median of
{config.rounds} fits with one new transition each; 5 members of 3 x 200, batches of 128 rows. The first fit is that of a
run that goes on: it computes the statistics of all rows. Memory is the growth of the largest resident set over that
of the replay with its rows."""
    table = Table("fits", "Bounded fits", COLUMNS, rows)
    write_page(
        config.output,
        "Cost of bounded fits",
        "python -m experiments.benchmarks.fits",
        [text, table, EARLIER],
        machine_line(),
    )


if __name__ == "__main__":
    main()
