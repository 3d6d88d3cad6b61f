"""Measure collecting in many mazes, in numpy and as tensors: `python -m experiments.benchmarks.collecting`.

Both paths do the same: SAC acts in all mazes, and stores and learns from what it sees. In numpy, `Collector` steps the
native vector environment, and the replay is in numpy. As tensors, `DeviceCollector` steps the mazes on the device of
the agent, where transitions and replay stay. The paths take turns, some steps at a time; the table shows the median of
the turns. On a CPU it is CPU time of one thread, on a GPU wall-clock time with the device synchronised.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

import envs  # noqa: F401  registers the tasks
from agents.sac import SAC
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Cell, Table
from layeredrl.collector import Collector
from layeredrl.device_collector import DeviceCollector
from layeredrl.environments import make_task, make_torch_vector_env, make_vector_env
from layeredrl.episodes import EpisodeCollector
from layeredrl.randomness import seed_globals

ENV = "Maze2D-Medium-v0"


@dataclass(frozen=True)
class CollectingBenchmark:
    """Measure collecting in many mazes."""

    device: str = "cpu"
    """Device of the agent, and of the mazes as tensors."""
    n_envs: int = 1024
    """Number of mazes."""
    n_turns: int = 15
    """Turns of each path."""
    n_steps: int = 40
    """Steps of all mazes in a turn; of those in which the agent learns, a quarter."""
    output: Path = Path("experiments/results/collecting.md")
    """Markdown file to write."""


PHASES = {
    "random actions": (True, 0),
    "SAC acts": (False, 0),
    "SAC acts, 1 update": (False, 1),
    "SAC acts, 8 updates": (False, 8),
}
"""Phases by name: (random actions, updates in a step of all mazes)."""


def make(path: str, phase: str, n_envs: int, device: torch.device) -> EpisodeCollector:
    """Make an agent with one of the collectors."""
    seed_globals(0)
    at_random, n_updates = PHASES[phase]
    config = SAC.preset("demo")
    learning = replace(
        config.learning,
        n_random_steps=10**9 if at_random else n_envs,
        updates_per_transition=n_updates / n_envs,
        replay_size=1024 * n_envs,
    )
    agent = replace(config, learning=learning).build(make_task(ENV, n_envs), device, seed=0)
    if path == "numpy":
        return Collector(make_vector_env(ENV, n_envs, vectorization="native"), agent, seed=0)
    return DeviceCollector(make_torch_vector_env(ENV, n_envs, device), agent, seed=0)


def seconds_per_step(config: CollectingBenchmark, phase: str) -> dict[str, float]:
    """Return the median time of a step of all mazes, by path."""
    device = torch.device(config.device)
    n_steps = max(1, config.n_steps // 4) if PHASES[phase][1] else config.n_steps
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def turns(path: str) -> Iterator[float]:
        collector = make(path, phase, config.n_envs, device)
        while True:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = clock()
            for _ in range(n_steps):
                collector.step(explore=True)
                collector.agent.learn(collector.n_total_env_steps)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield (clock() - start) / n_steps

    running = {path: turns(path) for path in ("numpy", "tensors")}
    found: dict[str, list[float]] = {path: [] for path in running}
    for i in range(config.n_turns + 1):
        for path, turn in running.items():
            seconds = next(turn)
            if i:  # the first one warms up
                found[path].append(seconds)
    return {path: float(np.median(values)) for path, values in found.items()}


def rows(config: CollectingBenchmark) -> list[list[Cell]]:
    """Return the rows of the table."""
    found: list[list[Cell]] = []
    for phase in PHASES:
        seconds = seconds_per_step(config, phase)
        rates = [config.n_envs / seconds[path] for path in ("numpy", "tensors")]
        found.append([phase, *(1e3 * x for x in seconds.values()), *rates, rates[1] / rates[0]])
    return found


COLUMNS = ("in a step of all mazes", "numpy, ms", "tensors, ms", "numpy, steps/s", "tensors, steps/s", "ratio")


def main() -> None:
    """Measure and write the page."""
    config = tyro.cli(CollectingBenchmark, prog="python -m experiments.benchmarks.collecting")
    torch.set_num_threads(1)
    text = __doc__.split("\n\n")[1] if __doc__ else ""
    table = Table("collecting", f"{config.n_envs} mazes on {config.device}", COLUMNS, rows(config))
    command = "python -m experiments.benchmarks.collecting"
    write_page(config.output, "Collecting in many mazes", command, [text, table], machine_line("gymnasium"))


if __name__ == "__main__":
    main()
