"""One training of one run, in a child process that a worker watches. Light: it loads no torch."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from experiments.sweep.folder import STOP, SUMMARY, SWEEP, WORDS, is_done, write_whole

BAD, STOPPED = 2, 75  # exit codes of experiments.train

_CHILD = """
import ctypes, os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
# Ray's workers block SIGINT, which a child inherits. The kernel kills the child when its worker dies (PR_SET_PDEATHSIG
# is 1); Ray does so only where it ends the worker itself. Popen's preexec_fn is unsafe in a process with threads.


@dataclass(frozen=True)
class Job:
    """A run to train."""

    name: str
    """Name of the trial and of its folder."""
    folder: str
    """Folder of the study."""
    cwd: str
    """Working directory."""
    words: list[str]
    """Settings on the command line of `experiments.train`, without the folder."""
    command: list[str]
    """Command that trains; "python" in the first place is the worker's interpreter."""
    lease_s: float = 30.0
    """Seconds without renewal after which a lease is free."""

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return Path(self.folder, self.name)

    def file(self, kind: str) -> Path:
        """File in the sweep's folder: log or lease."""
        return Path(self.folder, SWEEP, f"{self.name}.{kind}")


class Lease:
    """Right of one machine to write in a run's folder: a file that its holder renews.

    Ray starts a trial again elsewhere when its node does not answer, while the node may still be training. The lock of
    the run prevents two trainings on one machine, but not across machines on every shared file system.

    Args:
        path: File of the lease.
        patience_s: Seconds without renewal after which the lease of another machine is free.
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        self.path, self.patience_s, self.token = path, patience_s, f"{_machine()} {uuid.uuid4().hex}"
        self._seen, self._since_s = ("", 0), 0.0

    def take(self) -> bool:
        """Take the lease if it is free, and return True then.

        Clocks of machines differ: the time counts during which this process has seen no change.
        """
        with contextlib.suppress(FileNotFoundError):
            seen = (self.path.read_text(), self.path.stat().st_mtime_ns)
            if seen != self._seen:
                self._seen, self._since_s = seen, time.monotonic()
            if seen[0].split()[:1] != [_machine()] and time.monotonic() - self._since_s < self.patience_s:
                return False
        write_whole(self.path, self.token)
        self._since_s = time.monotonic()
        return True

    def renew(self) -> bool:
        """Renew the lease; False if another worker has taken it, or may have taken it meanwhile."""
        try:
            if self.path.read_text() != self.token:
                return False
            os.utime(self.path)
        except FileNotFoundError:
            return False
        except OSError:  # a file system that fails for a while
            return time.monotonic() - self._since_s < self.patience_s / 2
        self._since_s = time.monotonic()
        return True

    def free(self) -> None:
        """Give the lease back."""
        with contextlib.suppress(OSError):  # it expires then
            if self.path.read_text() == self.token:
                self.path.unlink()


class Training:
    """Trains one run: waits for its lease, starts the child, renews the lease, and stops the child on request.

    Args:
        job: The run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lease = Lease(job.file("lease"), job.lease_s)

    def run(self) -> tuple[str, str]:
        """Train, unless the run is finished; return done, stopped or failed (bad settings), and the reason.

        Raises:
            RuntimeError: The training crashed, or another process trains the run; a later attempt may go on with it.
            OSError: It cannot be started or watched.
        """
        if is_done(self.job.run, self.job.words):
            return "done", ""
        try:
            while not self._stops:
                if self.lease.take():
                    return self._train()
                time.sleep(self.job.lease_s / 15)
            return "stopped", ""
        finally:
            self.lease.free()

    def _train(self) -> tuple[str, str]:
        job = self.job
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
                env=own,
                start_new_session=True,  # Ctrl-C in a terminal reaches the scheduler only
            )
        try:
            self._watch(child)
        finally:
            _kill(child)
        return self._judge(child.returncode, _last_line(job.file("log"), begin))

    def _watch(self, child: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of the child; on request, have the run saved, which may take minutes."""
        asked = False
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(self.job.lease_s / 15)
                return
            if not self.lease.renew():
                raise RuntimeError("another worker holds this run")
            if not asked and self._stops:
                child.terminate()  # not its session: processes of environments are needed until it has saved
                asked = True

    def _judge(self, code: int, said: str) -> tuple[str, str]:
        end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        reason = f"{end}: {said}" if said else end
        if code == 0 and (self.job.run / SUMMARY).exists():
            write_whole(self.job.run / WORDS, json.dumps(self.job.words))
            return "done", ""
        if code == BAD and "is in use" not in said:  # by a training outside the study, or one that is being killed
            return "failed", said
        if self._stops:
            return "stopped", "" if code == STOPPED else reason
        raise RuntimeError(reason)

    @property
    def _stops(self) -> bool:
        return Path(self.job.folder, SWEEP, STOP).exists()


def _machine() -> str:
    """Identifier of this machine since it started; where there is none, it never equals another one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return uuid.uuid4().hex


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill a training and all processes that it started, unless it ended by itself."""
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
