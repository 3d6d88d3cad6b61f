"""A long run among failing environments: `python -m experiments.benchmarks.soak --minutes 30`.

PETS with eight asynchronous instances of cart-pole, in which every 500th step, on average, kills its process, hangs, or
returns what is no observation. The run has to go on, with flat memory, and leave no processes or file handles behind.
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
from experiments.benchmarks.machine import machine_line
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.loggers import CsvLogger
from layeredrl.randomness import seed_globals
from layeredrl.trainer import Trainer, TrainerConfig

EVERY = 500
"""Steps from one fault to the next, on average, all environments together."""


@dataclass(frozen=True)
class SoakBenchmark:
    """Train among failing environments for some time."""

    minutes: float = 30.0
    """How long."""
    n_envs: int = 8
    """Instances of the environment."""
    output: Path = Path("experiments/results/soak.md")
    """Where the table goes."""


class SabotagedCartPole(ContinuousCartPole):
    """A cart-pole that now and then kills its process, hangs, or returns NaN."""

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
    """Memory of this process in MiB, its open files, and its children."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), len(children)


def main() -> None:
    """Train, note the footprint every minute, and write the table."""
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
    start, rows = time.perf_counter(), []

    def stop() -> bool:
        minutes = (time.perf_counter() - start) / 60
        if minutes >= len(rows):
            memory, files, children = footprint()
            recent = [episode.episode_return for episode in trainer.episodes[-40:]]
            n, mean = collector.n_total_env_steps, float(np.mean(recent or 0))
            rows.append(f"| {minutes:.0f} | {n} | {env.n_faults} | {memory:.1f} | {files} | {children} | {mean:.1f} |")
            print(rows[-1], flush=True)
        return minutes >= config.minutes

    folder = Path("runs/soak")
    folder.mkdir(parents=True, exist_ok=True)
    logger = CsvLogger(folder / "metrics.csv")
    trainer = Trainer(agent, collector, logger, TrainerConfig(n_total_env_steps=10**9), stop=stop)
    trainer.run()
    env.close()
    after = footprint()
    lines = [
        "# A soak among failing environments",
        "",
        f"PETS (preset demo, a replay of {learning.replay_size}) with {config.n_envs} asynchronous cart-poles. Every "
        f"{EVERY}th step, on average,",
        "kills its process, makes it hang (found out after 2 s), or returns NaN. The return is the mean of the last 40",
        "episodes that ended; those that were closed because of a fault do not count.",
        "",
        f"    python -m experiments.benchmarks.soak --minutes {config.minutes:g}",
        "",
        "| minutes | steps | faults | MiB | open files | child processes | return |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += rows
    lines += [
        "",
        f"Open files before the environments were made and after they were closed: {before[1]} and {after[1]}; child",
        f"processes: {before[2]} and {after[2]}. Episodes abandoned: {collector.n_abandoned}.",
        "",
        machine_line("gymnasium"),
        "",
    ]
    config.output.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
