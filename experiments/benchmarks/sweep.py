"""What a study costs beside its trials: `python -m experiments.benchmarks.sweep`.

Trials that do nothing but leave the files of a run, on a Ray of this machine; how long each takes, and how much memory
the process that schedules them has as their number grows.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.benchmarks.machine import machine_line
from experiments.sweep.__main__ import Sweep, open_study
from experiments.sweep.study import Resources, Study
from experiments.sweep.tasks import RayPool

STUB = """
import os, sys
folder = os.path.join(sys.argv[sys.argv.index("--runs-dir") + 1], sys.argv[sys.argv.index("--name") + 1])
os.makedirs(folder)
with open(os.path.join(folder, "metrics.csv"), "w") as file:
    print("n_total_env_steps,env/episode_return,time/seconds", "100,1.0,0.1", sep="\\n", file=file)
open(os.path.join(folder, "summary.json"), "w").close()
"""
"""A run of no time."""

PROGRAM = ("python", "-S", "-c", STUB)


@dataclass(frozen=True)
class SweepBenchmark:
    """Schedule trials that do nothing."""

    trials: int = 200
    """How many."""
    cpus: int = 2
    """How many at a time."""
    runs_dir: Path = Path("runs")
    """Where the study's folder is made, and deleted again."""
    output: Path = Path("experiments/results/sweep.md")
    """Where the table goes."""


def memory_mib() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def stub_seconds(runs_dir: Path) -> float:
    """What a trial takes by itself."""
    start, n = time.perf_counter(), 10
    for i in range(n):
        words = [sys.executable, *PROGRAM[1:], "--runs-dir", str(runs_dir / "stub"), "--name", str(i)]
        subprocess.run(words, check=True)
    shutil.rmtree(runs_dir / "stub")
    return (time.perf_counter() - start) / n


def main() -> None:
    """Run the study, note the memory on the way, and write the table."""
    config = tyro.cli(SweepBenchmark, prog="python -m experiments.benchmarks.sweep")
    study = Study("sweep-benchmark", {"stub": ()}, ("None-v0",), seeds=tuple(range(config.trials)))
    folder = config.runs_dir / study.name
    shutil.rmtree(folder, ignore_errors=True)
    alone_s = stub_seconds(config.runs_dir)
    pool = RayPool(None, config.cpus, Resources())
    rows: list[str] = []
    try:
        with open_study(folder):
            sweep = Sweep(study, folder, pool, program=PROGRAM)
            start = time.perf_counter()

            def note() -> bool:
                n_done = sum(one.state == "done" for one in sweep.progress)
                if n_done >= len(rows) * config.trials / 10:
                    rows.append(f"| {n_done} | {time.perf_counter() - start:.1f} | {memory_mib():.1f} |")
                return False

            sweep.run(note)
            seconds = time.perf_counter() - start
            note()
    finally:
        pool.close()
    if not sweep.done:
        raise SystemExit(f"not all trials are done: {sweep.view.summary(sweep.progress)}")
    shutil.rmtree(folder)
    each_s = seconds / config.trials
    niceness = os.environ.get("RAY_worker_niceness")  # noqa: SIM112  Ray calls it so
    prefix = "" if niceness is None else f"RAY_worker_niceness={niceness} "
    load, n_cores = os.getloadavg()[1], os.cpu_count()
    lines = [
        "# What a study costs beside its trials",
        "",
        f"{config.trials} trials, {config.cpus} at a time, each a process that only leaves the files of a run. Memory",
        "is what the process that schedules has resident.",
        "",
        f"    {prefix}python -m experiments.benchmarks.sweep --trials {config.trials} --cpus {config.cpus}",
        "",
        "| trials done | seconds | MiB |",
        "|---|---|---|",
        *rows,
        "",
        f"A trial takes {alone_s:.3f} s by itself. In the study one ends every {each_s:.3f} s, so that each occupies",
        f"its core for {each_s * config.cpus:.3f} s: {each_s * config.cpus - alone_s:.3f} s more than by itself.",
        f"In the last minutes of it {load:.1f} processes on average wanted one of the machine's {n_cores} cores.",
        *(
            []
            if niceness is None
            else [f"Ray's workers had niceness {niceness}, not Ray's own 15, with which they would starve."]
        ),
        "",
        machine_line("ray"),
        "",
    ]
    config.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
