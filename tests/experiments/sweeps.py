"""Studies for tests, and a program that behaves as `experiments.train` without its imports."""

import csv
import fcntl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from experiments.sweep.folder import SWEEP
from experiments.sweep.study import Study, Trial
from experiments.sweep.training import Job

RUNS = Path("runs/s")

STUB = """
import fcntl, os, signal, sys, time
from pathlib import Path

options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
folder, seed = Path(options["--runs-dir"], options["--name"]), int(options["--seed"])
fault, pause_s = options.get("--fault"), float(options.get("--pause", 0))
print("begun", flush=True)
if fault == "bad":
    print("error: there is no such setting", file=sys.stderr)
    sys.exit(2)
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
lock = (folder / "lock").open("w")
try:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("error: the run is in use: another process trains this run", file=sys.stderr)
    sys.exit(2)
stop, metrics = [], folder / "metrics.csv"
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
n = max((int(path.name) for path in folder.glob("checkpoints/0*")), default=0)
rows = metrics.read_text().splitlines()[: n + 1] if n else ["n_total_env_steps,env/episode_return,time/seconds"]
metrics.write_text("\\n".join(rows) + "\\n")
n_first = n
while n < int(options["--steps"]) and not stop:
    if fault == "crash" or fault == "often" and n == n_first + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    n += 1
    with metrics.open("a") as file:
        print(n, (n * 7919 + seed) % 101 + 0.5, time.monotonic(), sep=",", file=file)
    (folder / "checkpoints" / f"{n:012d}").mkdir()
    time.sleep(pause_s)
if stop:
    sys.exit(75)
(folder / "summary.json").write_text("{}")
"""
"""Program: `--fault bad` has bad settings, `crash` always crashes, `often` crashes after every second checkpoint."""

PROGRAM = ("python", "-S", "-c", STUB)


def a_study(**changes: object) -> Study:
    return replace(Study("s", {"a": ()}, ("E-v0",), seeds=(0, 1), common={"steps": 5}), **changes)


def a_job(trial: Trial | None = None, folder: Path = RUNS, **changes: object) -> Job:
    """A job with the program above; one that takes long by default."""
    (folder / SWEEP).mkdir(parents=True, exist_ok=True)
    if trial is None:
        (trial,) = a_study(seeds=(0,), common={"steps": 100_000, "pause": 0.01}).trials()
    command = [*PROGRAM, *trial.arguments(folder)]
    job = Job(trial.name, str(folder.absolute()), str(Path.cwd()), list(trial.words), command, lease_s=3.0)
    return replace(job, **changes)


def table(folder: Path = RUNS) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def n_begun(trial: str, folder: Path = RUNS) -> int:
    """Number of times that the program was started for a trial."""
    return (folder / SWEEP / f"{trial}.log").read_text().splitlines().count("begun")


def is_locked(run: Path) -> bool:
    """True if a process trains the run."""
    try:
        with (run / "lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def until(condition: Callable[[], bool]) -> None:
    for _ in range(30_000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError("nothing happened for five minutes")
