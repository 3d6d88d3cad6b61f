"""Train among failing environments for a long time: `python -m experiments.benchmarks.soak --minutes 30`.

PETS with eight asynchronous instances of cart-pole, in which every 500th step, on average, kills its process, hangs, or
returns NaN. The run has to continue, with flat memory, and leave no processes or file handles behind.
"""

import os
import signal
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro

from agents.pets import PETS
from envs.cartpole import ContinuousCartPole
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Cell, Table
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.loggers import CsvLogger
from layeredrl.randomness import seed_globals
from layeredrl.trainer import Trainer, TrainerConfig

EVERY = 500
"""Mean number of steps between faults, all environments together."""


@dataclass(frozen=True)
class SoakBenchmark:
    """Train among failing environments for some time."""

    minutes: float = 30.0
    """Duration in minutes."""
    n_envs: int = 8
    """Number of instances of the environment."""
    output: Path = Path("experiments/results/soak.md")
    """Markdown file to write."""


class SabotagedCartPole(ContinuousCartPole):
    """Cart-pole that sometimes kills its process, hangs, or returns NaN."""

    def step(self, action: Any) -> Any:
        """Step, or fail."""
        result = super().step(action)
        if self.np_random.random() < 1 / EVERY:
            kind = self.np_random.integers(3)
            if kind == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == 1:
                time.sleep(3600)
            return (np.full(4, np.nan, np.float32), *result[1:])
        return result


def footprint() -> tuple[float, int, int]:
    """Return the memory of this process in MiB, and the numbers of its open files and children."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), len(children)


def main() -> None:
    """Train, record the footprint every minute, and write the table."""
    config = tyro.cli(SoakBenchmark, prog="python -m experiments.benchmarks.soak")
    torch.set_num_threads(1)
    seed_globals(0)
    warnings.simplefilter("ignore")
    gym.register("Sabotaged-v0", SabotagedCartPole, max_episode_steps=200)
    before = footprint()
    settings = PETS.preset("demo")
    # A small replay, so that a fit does not take longer and longer.
    learning = replace(settings.learning, fit_every=10 * config.n_envs, replay_size=4000)
    agent = replace(settings, learning=learning).build(
        make_task("Sabotaged-v0", config.n_envs), torch.device("cpu"), seed=0
    )
    env = make_vector_env(
        "Sabotaged-v0", config.n_envs, vectorization="async", on_fault="restart", timeout_s=2.0, max_faults=10**6
    )
    collector = Collector(env, agent, seed=0)
    rows: list[list[Cell]] = []
    start = time.perf_counter()

    def stop() -> bool:
        minutes = (time.perf_counter() - start) / 60
        if minutes >= len(rows):
            memory, files, children = footprint()
            recent = [episode.episode_return for episode in trainer.episodes[-40:]]
            n, mean = collector.n_total_env_steps, float(np.mean(recent or 0))
            rows.append([round(minutes), n, env.n_faults, memory, files, children, mean])
            print(rows[-1], flush=True)
        return minutes >= config.minutes

    folder = Path("runs/soak")
    folder.mkdir(parents=True, exist_ok=True)
    logger = CsvLogger(folder / "metrics.csv")
    trainer = Trainer(agent, collector, logger, TrainerConfig(n_total_env_steps=10**9), stop=stop)
    trainer.run()
    env.close()
    after = footprint()
    text = f"""PETS (preset demo, a replay of {learning.replay_size}) with {config.n_envs} asynchronous cart-poles.
Every {EVERY}th step, on average, kills its process, makes it hang (detected after 2 s), or returns NaN."""
    columns = ("minutes", "steps", "faults", "MiB", "open files", "child processes", "return")
    notes = (
        "return: mean of the last 40 finished episodes; those that a fault closed do not count",
        f"open files before the environments were made and after they were closed: {before[1]} and {after[1]}; child "
        f"processes: {before[2]} and {after[2]}; abandoned episodes: {collector.n_abandoned}",
    )
    write_page(
        config.output,
        "Soak among failing environments",
        f"python -m experiments.benchmarks.soak --minutes {config.minutes:g}",
        (text, Table("soak", "Footprint", columns, rows, notes)),
        machine_line("gymnasium"),
    )


if __name__ == "__main__":
    main()
