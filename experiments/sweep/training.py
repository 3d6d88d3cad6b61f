"""One training of one run, in a child process that a thread of the worker watches. Light: it loads no torch."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from experiments.sweep.folder import LOCK, STOP, SUMMARY, SWEEP, WORDS, is_done, is_locked, write_whole

BAD, STOPPED = 2, 75  # exit codes of experiments.train

_BEAT_S = 2.0  # between renewals of a lease; Ray's own heartbeats take longer
_SAVE_S = 900.0  # for saving after a request to stop; the fit of a large model may have to end first

_CHILD = """
import ctypes, os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
# Ray's workers block SIGINT, which a child inherits. The kernel kills the child with its worker (PR_SET_PDEATHSIG = 1):
# Ray does so only where it ends the worker itself. Python's preexec_fn is not safe in a process with threads.


@dataclass(frozen=True)
class Job:
    """A run to train, as a worker needs it."""

    name: str
    """Name of the trial and of its folder."""
    folder: str
    """Folder of the study."""
    words: list[str]
    """Settings on the command line of `experiments.train`, without the folder."""
    command: list[str]
    """Command that trains; "python" in the first place is the worker's interpreter."""
    cwd: str
    """Working directory."""
    path: str
    """PYTHONPATH."""
    lease_s: float = 30.0
    """Seconds without renewal after which a lease is free."""

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return Path(self.folder, self.name)

    def file(self, kind: str) -> Path:
        """File of the scheduler for this run: log or lease."""
        return Path(self.folder, SWEEP, f"{self.name}.{kind}")


class Lease:
    """Right to write in a run's folder: a file that its holder renews, whichever machine it is on.

    Ray considers a node lost that does not answer, and starts its trials elsewhere while the node may still be training.
    The lock of the run itself holds on one machine, but not on every shared file system.

    Args:
        path: File of the lease.
        patience_s: Seconds without renewal after which the lease is free.
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        self.path, self.patience_s, self.token = path, patience_s, f"{_machine()} {uuid.uuid4().hex}"
        self._file: IO[str] | None = None
        self._renewed_s = 0.0
        self._seen, self._since_s = (-1, ""), time.monotonic()

    def take(self) -> bool:
        """Take the lease if it is free, and return True then.

        Clocks of machines differ, so the time counts during which this process has seen no change.
        """
        try:
            seen = (self.path.stat().st_mtime_ns, self.path.read_text())
        except FileNotFoundError:
            seen = None
        if seen is not None and seen != self._seen:
            self._seen, self._since_s = seen, time.monotonic()
        if seen is not None and time.monotonic() - self._since_s < self.patience_s and not self._is_abandoned(seen[1]):
            return False
        self._file = self.path.open("a+")
        with contextlib.suppress(OSError):  # no locks here; others wait for `patience_s` then
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file.truncate(0)
        self._file.write(self.token)
        self._file.flush()
        self._renewed_s = time.monotonic()
        return True

    def renew(self) -> bool:
        """Renew the lease; False if another process took it, or may have taken it meanwhile."""
        try:
            if self.path.read_text() != self.token:
                return False
            os.utime(self.path)
        except FileNotFoundError:
            return False
        except OSError:  # a file system that fails for a while
            return time.monotonic() - self._renewed_s < self.patience_s / 2
        self._renewed_s = time.monotonic()
        return True

    def free(self) -> None:
        """Give the lease back."""
        with contextlib.suppress(OSError):  # it expires then
            if self.path.read_text() == self.token:
                self.path.unlink()
        if self._file is not None:
            self._file.close()

    def _is_abandoned(self, text: str) -> bool:
        """True if the holder was a process of this machine that has ended: the kernel has freed its lock."""
        if text.partition(" ")[0] != _machine():
            return False
        try:
            with self.path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class Training(threading.Thread):
    """Trains one run: waits for its lease, starts the child, renews the lease, and stops the child on request.

    A thread, as Tune's calls end when the scheduler is lost, and the lease must be renewed as long as the child writes.

    Args:
        job: The run.

    Attributes:
        outcome: How it ended; `crashed` is worth another attempt, `failed` is not.
        message: Reason, where there is one.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.outcome: Literal["done", "failed", "crashed", "stopped"] = "crashed"
        self.message = ""
        self._asked = threading.Event()
        self.start()

    def stop(self) -> None:
        """Have the run saved and ended."""
        self._asked.set()

    def run(self) -> None:
        """Train, unless the run is finished."""
        if is_done(self.job.run, self.job.words):
            self.outcome = "done"
            return
        lease = Lease(self.job.file("lease"), self.job.lease_s)
        try:
            while not lease.take():
                if self._is_asked(self.job.lease_s / 10):
                    self.outcome = "stopped"
                    return
            self._train(lease)
        except OSError as error:  # the disk, for instance
            self.message = f"the run cannot be started or watched: {error}"
        finally:
            lease.free()

    def _train(self, lease: Lease) -> None:
        job = self.job
        since_s = time.monotonic()  # a training outside the study, or one that was just killed, may hold the folder
        while is_locked(job.run / LOCK):
            if self._is_asked(1.0) or not lease.renew() or time.monotonic() - since_s > job.lease_s:
                self.message = f"{job.run} is in use: another process trains this run"
                return
        command = [sys.executable if job.command[0] == "python" else job.command[0], *job.command[1:]]
        # With the ids of a W&B run or sweep around the study, all trials would write to one W&B run.
        own = {key: value for key, value in os.environ.items() if key not in ("WANDB_RUN_ID", "WANDB_SWEEP_ID")}
        with job.file("log").open("ab") as log:
            begin = log.tell()
            child = subprocess.Popen(
                [sys.executable, "-S", "-c", _CHILD, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=job.cwd,
                env={**own, "PYTHONPATH": job.path},
                start_new_session=True,  # Ctrl-C in a terminal reaches the scheduler only
            )
            try:
                ours = self._watch(child, lease)
            finally:
                _kill(child)
        if not ours:
            self.message = "another worker holds this run"
            return
        self._judge(child.returncode, _last_line(job.file("log"), begin))

    def _watch(self, child: "subprocess.Popen[bytes]", lease: Lease) -> bool:
        """Wait for the end of the child; False if the lease was lost."""
        deadline_s: float | None = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(min(_BEAT_S, self.job.lease_s / 10))
                return True
            if not lease.renew():
                return False
            if deadline_s is None and self._is_asked(0):
                child.terminate()  # not its session: processes of environments are needed until it has saved
                deadline_s = time.monotonic() + _SAVE_S
            if deadline_s is not None and time.monotonic() > deadline_s:
                _kill(child)

    def _judge(self, code: int, said: str) -> None:
        job = self.job
        self.message = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.message += f": {said}" if said else ""
        if code == 0 and (job.run / SUMMARY).exists():
            write_whole(job.run / WORDS, json.dumps(job.words))
            self.outcome, self.message = "done", ""
        elif code == BAD and not is_locked(job.run / LOCK):  # if locked, another process was faster
            self.outcome, self.message = "failed", said
        elif self._is_asked(0):
            self.outcome = "stopped"
            self.message = "" if code == STOPPED else self.message
        elif code == 0:
            self.message = f"it left no {SUMMARY}: {said}"

    def _is_asked(self, pause_s: float) -> bool:
        if not self._asked.wait(pause_s) and Path(self.job.folder, SWEEP, STOP).exists():
            self._asked.set()
        return self._asked.is_set()


def _machine() -> str:
    """Identifier of this machine since it was started; unknown machines are all different."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill a training and all processes that it started, unless it ended well."""
    if child.returncode is None or child.returncode < 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last_line(log: Path, begin: int) -> str:
    """Last error that a process printed after `begin` bytes of its log, or else its last line."""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
