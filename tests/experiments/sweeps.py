"""Studies for tests: training that is no training, and pools without Ray."""

import csv
import io
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from experiments.sweep import __main__ as sweep
from experiments.sweep import guard as sweep_guard
from experiments.sweep.__main__ import Sweep
from experiments.sweep.guard import Attempt, Told
from experiments.sweep.study import Study
from experiments.sweep.tasks import GUARD, supervision

RUNS = Path("runs/s")

STUB = """
import fcntl, os, signal, sys, time
from pathlib import Path

options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder, seed = Path(options["--runs-dir"], options["--name"]), int(options["--seed"])
fault, pause_s = options.get("--fault"), float(options.get("--pause", 0))
if fault == "bad":
    print("error: there is no such setting", file=sys.stderr)
    sys.exit(2)
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
lock = (folder / "lock").open("w")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
stop, metrics = [], folder / "metrics.csv"
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
first = not metrics.exists()
n = max((int(path.name) for path in folder.glob("checkpoints/0*")), default=0)
rows = metrics.read_text().splitlines()[: n + 1] if n else ["n_total_env_steps,env/episode_return,time/seconds"]
metrics.write_text("\\n".join(rows) + "\\n")
while n < int(options["--steps"]) and not stop:
    n += 1
    with metrics.open("a") as file:
        print(n, (n * 7919 + seed) % 101 + 0.5, time.monotonic(), sep=",", file=file)
    if fault == "once" and first and n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "checkpoints" / f"{n:012d}").mkdir()
    time.sleep(pause_s)
if stop:
    sys.exit(75)
(folder / "summary.json").write_text("{}")
"""
"""Behaves as experiments.train does, without its imports."""


class Threads:
    """What Ray's workers do, in threads."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._ended: queue.SimpleQueue[tuple[str, Told]] = queue.SimpleQueue()

    def room(self) -> int:
        return 2

    def submit(self, token: str, attempt: str) -> None:
        self.attempts.append(Attempt(**json.loads(attempt)))
        threading.Thread(target=self._make, args=(token, attempt)).start()

    def _make(self, token: str, attempt: str) -> None:
        self._ended.put((token, json.loads(supervision()(str(GUARD), attempt))))

    def wait(self, seconds: float) -> list[tuple[str, Told]]:
        try:
            return [self._ended.get(timeout=seconds)]
        except queue.Empty:
            return []


class Script:
    """Makes no try, but tells how each has ended."""

    def __init__(self, tell: Callable[[Attempt], Told]) -> None:
        self.attempts: list[Attempt] = []
        self._tell, self._told = tell, list[tuple[str, Told]]()

    def room(self) -> int:
        return 2

    def submit(self, token: str, attempt: str) -> None:
        self.attempts.append(Attempt(**json.loads(attempt)))
        self._told.append((token, self._tell(self.attempts[-1])))

    def wait(self, seconds: float) -> list[tuple[str, Told]]:
        told, self._told = self._told, []
        return told


PROGRAM = ("python", "-S", "-c", STUB)
"""In place of experiments.train."""


def a_study(**changes: object) -> Study:
    return replace(Study("s", {"a": ()}, ("E-v0",), seeds=(0, 1), common={"steps": 5}), **changes)


def prepare(study: Study, pool: sweep.Pool, folder: Path = RUNS, **changes: object) -> Sweep:
    """A sweep that says nothing."""
    return Sweep(study, folder, pool, **{"program": PROGRAM, "console": Console(file=io.StringIO()), **changes})


def make(study: Study, pool: sweep.Pool, folder: Path = RUNS, **changes: object) -> Sweep:
    """A sweep that has run."""
    made = prepare(study, pool, folder, **changes)
    made.run()
    return made


def table(folder: Path = RUNS) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def a_try(**changes: object) -> Attempt:
    """As a sweep would make it, with a trial that takes long."""
    folder = Path("runs/s/sweep").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    words = ["a", "--seed", "0", "--steps", "100000", "--pause", "0.01"]
    command = [*PROGRAM, *words, "--runs-dir", str(folder.parent), "--name", "t"]
    fixed = {"cwd": str(Path.cwd()), "path": "", "lease_s": 1000.0, "beat_s": 0.05}
    return replace(Attempt("t", "me", str(folder), str(folder.parent / "t"), command, words, **fixed), **changes)


def start(attempt: Attempt) -> subprocess.Popen[str]:
    """A guard, as a worker starts it; returns when it trains."""
    command = [sys.executable, "-P", "-S", str(GUARD), json.dumps(asdict(attempt))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: sweep_guard.newest_checkpoint(Path(attempt.folder)) > 0)
    return process


def told(guard: subprocess.Popen[str]) -> Told:
    """What a guard tells at its end; its input is open until then, as a worker has it."""
    with guard:
        return json.loads(guard.stdout.read())


def until(condition: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError("nothing happened for ten minutes")
