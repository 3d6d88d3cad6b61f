"""Overhead of a study per trial: `python -m experiments.benchmarks.sweep`.

The trials only leave the files of a run, on a Ray of this machine. Measures the seconds per trial, and the memory of
the scheduling process as the number of trials grows.
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
from experiments.sweep.folder import SUMMARY, open_study
from experiments.sweep.study import Resources, Study

STUB = """
import os, sys
folder = os.path.join(sys.argv[sys.argv.index("--runs-dir") + 1], sys.argv[sys.argv.index("--name") + 1])
os.makedirs(folder)
with open(os.path.join(folder, "metrics.csv"), "w") as file:
    print("n_total_env_steps,env/episode_return,time/seconds", "100,1.0,0.1", sep="\\n", file=file)
open(os.path.join(folder, "summary.json"), "w").close()
"""
"""Program that takes no time."""

PROGRAM = ("python", "-S", "-c", STUB)


@dataclass(frozen=True)
class SweepBenchmark:
    """Run trials that do nothing."""

    trials: int = 200
    """Number of trials."""
    cpus: int = 2
    """Number of trials at a time."""
    runs_dir: Path = Path("runs")
    """Folder in which the study's folder is created, and deleted at the end."""
    output: Path = Path("experiments/results/sweep.md")
    """File of the results."""


def memory_mib() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def stub_seconds(runs_dir: Path) -> float:
    """Seconds that a trial takes without a study."""
    start, n = time.perf_counter(), 10
    for i in range(n):
        words = [sys.executable, *PROGRAM[1:], "--runs-dir", str(runs_dir / "stub"), "--name", str(i)]
        subprocess.run(words, check=True)
    shutil.rmtree(runs_dir / "stub")
    return (time.perf_counter() - start) / n


def main() -> None:
    """Run the study, measure memory meanwhile, and write the table."""
    config = tyro.cli(SweepBenchmark, prog="python -m experiments.benchmarks.sweep")
    import ray

    from experiments.sweep.ray_tune import connect, run_study

    study = Study("sweep-benchmark", {"stub": ()}, ("None-v0",), seeds=tuple(range(config.trials)))
    folder = config.runs_dir / study.name
    shutil.rmtree(folder, ignore_errors=True)
    alone_s = stub_seconds(config.runs_dir)
    room = connect(None, config.cpus, Resources())
    rows: list[str] = []
    start = time.perf_counter()

    def note() -> bool:
        n_done = len(list(folder.glob(f"*/{SUMMARY}")))
        if n_done >= len(rows) * config.trials / 10:
            rows.append(f"| {n_done} | {time.perf_counter() - start:.1f} | {memory_mib():.1f} |")
        return False

    try:
        with open_study(folder):
            states = run_study(study, folder, None, room=room, stop=note, program=PROGRAM).states
            seconds = time.perf_counter() - start
            note()
    finally:
        ray.shutdown()
    if set(states.values()) != {"done"}:
        raise SystemExit(f"not all trials are finished: {states}")
    shutil.rmtree(folder)
    each_s = seconds / config.trials
    niceness = os.environ.get("RAY_worker_niceness")  # noqa: SIM112  Ray calls it so
    prefix = "" if niceness is None else f"RAY_worker_niceness={niceness} "
    load, n_cores = os.getloadavg()[1], os.cpu_count()
    lines = [
        "# Overhead of a study per trial",
        "",
        f"{config.trials} trials, {config.cpus} at a time, each a process that only leaves the files of a run. MiB is",
        "the resident memory of the scheduling process.",
        "",
        f"    {prefix}python -m experiments.benchmarks.sweep --trials {config.trials} --cpus {config.cpus}",
        "",
        "| trials done | seconds | MiB |",
        "|---|---|---|",
        *rows,
        "",
        f"Alone, a trial takes {alone_s:.3f} s. In the study one ends every {each_s:.3f} s, so each occupies its core",
        f"for {each_s * config.cpus:.3f} s: an overhead of {each_s * config.cpus - alone_s:.3f} s.",
        f"Load of the machine in the last five minutes: {load:.1f} processes on {n_cores} cores.",
        *(
            []
            if niceness is None
            else [f"Ray's workers had niceness {niceness} in place of Ray's 15, as the machine was busy."]
        ),
        "",
        machine_line("ray"),
        "",
    ]
    config.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
