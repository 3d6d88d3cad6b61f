"""One try of one trial, between Ray's worker and the training: `python -P -S guard.py ATTEMPT`, a JSON object.

The guard starts the training as a process of its own, and sees to it that of several tries only one writes in the run's
folder, on whatever machine they are: it keeps a lease, a file beside the runs that it renews all the while. Another
try waits until the lease is given back or has not been renewed for `lease_s`; whoever finds another's name in it, or
cannot renew it, kills its training. The training's own lock (experiments/run.py) does the same on one machine, but not
on every shared file system.

The standard library is all that it loads: there is one for every trial.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# What experiments/run.py and experiments/signals.py call these; importing them would load torch.
CHECKPOINTS, LOCK, METRICS, SUMMARY = "checkpoints", "lock", "metrics.csv", "summary.json"
BAD, STOPPED = 2, 75

CONTROL = "control"
"""File of a sweep that holds `STOP` when all trials are to save and end."""
STOP = "stop"

Told = dict[str, str]
"""How a try ended: "outcome", which is done, bad (input), crashed, stopped, busy or displaced; and a "message"."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Attempt:
    """A try of a trial."""

    trial: str
    token: str
    """Tells this try from all others."""
    sweep: str
    """Folder of leases and logs."""
    folder: str
    """Of the run."""
    command: list[str]
    """That trains; "python" in the first place is the interpreter of this machine's workers."""
    words: list[str]
    """Settings of the trial; remembered when it is done, lest it be taken for done with other ones."""
    cwd: str
    """Where it trains."""
    path: str
    """PYTHONPATH."""
    lease_s: float = 30.0
    """Seconds without renewal after which another try takes the lease."""
    beat_s: float = 2.0
    """Seconds between renewals."""
    stop_s: float = 900.0
    """Seconds that a training has to save and end when it is asked to stop; a fit may have to end first."""

    def file(self, kind: str) -> Path:
        """A file of this trial: lease, log or done."""
        return Path(self.sweep) / f"{self.trial}.{kind}"


class Lease:
    """The right to train a trial.

    Args:
        path: Of the file that stands for it.
        token: Name of the holder.
        patience_s: Seconds without renewal after which a lease is free.
    """

    def __init__(self, path: Path, token: str, patience_s: float) -> None:
        self.path, self.token, self.patience_s = path, token, patience_s
        self._kept = time.monotonic()

    def take(self, give_up: Callable[[], bool], pause: Callable[[float], object] = time.sleep) -> bool:
        """Wait until the lease is free, and take it; False where `give_up` ended the waiting.

        Clocks of several machines differ: what counts is how long this one has seen no change.
        """
        seen, since = None, time.monotonic()
        while (found := self._look()) is not None and not _is_gone(found[0]):
            if found != seen:
                seen, since = found, time.monotonic()
            elif time.monotonic() - since > self.patience_s:
                break
            if give_up():
                return False
            pause(min(1.0, self.patience_s / 10))
        if give_up():
            return False
        write_whole(self.path, json.dumps({"token": self.token, **_here()}), self.token)
        self._kept = time.monotonic()
        return True

    def keep(self) -> bool:
        """Renew the lease; False where it is another's now, or could not be renewed for so long that it may be."""
        try:
            if json.loads(self.path.read_text())["token"] != self.token:
                return False
            os.utime(self.path)
        except (FileNotFoundError, ValueError):
            return False
        except OSError:  # a file system that fails; meanwhile another try counts the seconds, too
            return time.monotonic() - self._kept < self.patience_s / 2
        self._kept = time.monotonic()
        return True

    def give_back(self) -> None:
        """Free the lease at once."""
        with contextlib.suppress(OSError, ValueError):  # then it ends by itself
            if json.loads(self.path.read_text())["token"] == self.token:
                self.path.unlink()

    def _look(self) -> tuple[str, int] | None:
        try:
            with self.path.open() as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None


class Guard:
    """Makes one try.

    Args:
        attempt: What to try.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.asked: str | None = None
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks SIGINT, and processes inherit that
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # a signal with a handler ends a pause
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def run(self) -> Told:
        """Wait for the lease, train, and tell how it ended."""
        attempt = self.attempt
        lease = Lease(attempt.file("lease"), attempt.token, attempt.lease_s)
        if not lease.take(self._is_to_stop, self._pause):
            return {"outcome": "stopped", "message": ""}
        try:
            return self._train(lease)
        finally:
            lease.give_back()

    def _train(self, lease: Lease) -> Told:
        attempt = self.attempt
        command = [sys.executable if attempt.command[0] == "python" else attempt.command[0], *attempt.command[1:]]
        # A W&B run that this process is part of is not that of the trial: all would write over each other.
        own = {key: value for key, value in os.environ.items() if key not in ("WANDB_RUN_ID", "WANDB_SWEEP_ID")}
        environment = {**own, "PYTHONPATH": attempt.path}
        with attempt.file("log").open("ab") as log:
            begin = log.tell()
            if not self._wait_for_lock(lease):
                told = f"{attempt.folder} is in use: another process trains this run"
                return {"outcome": "busy" if self.asked is None else "stopped", "message": told}
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=attempt.cwd,
                env=environment,
                start_new_session=True,  # what it starts, environments say, can be ended with it
                preexec_fn=_die_with_parent,  # this process has one thread
            )
            ours = self._watch(child, lease)
        if not ours:
            return {"outcome": "displaced", "message": "another try holds this trial"}
        return self._judge(child.returncode, _last_line(attempt.file("log"), begin))

    def _watch(self, child: "subprocess.Popen[bytes]", lease: Lease) -> bool:
        """Wait for the end of the training; False where it was killed because it is another's turn."""
        deadline = float("inf")
        while child.poll() is None:
            self._pause(self.attempt.beat_s)
            if not lease.keep():
                _kill(child)
                return False
            if deadline == float("inf") and self._is_to_stop():
                child.terminate()  # it alone: environments in processes of their own are still needed
                deadline = time.monotonic() + self.attempt.stop_s
            if time.monotonic() > deadline:
                _kill(child)
        if child.returncode < 0:
            _kill(child)  # what is left of it
        return True

    def _judge(self, code: int, said: str) -> Told:
        attempt = self.attempt
        if code == 0 and (Path(attempt.folder) / SUMMARY).exists():
            write_whole(attempt.file("done"), json.dumps(attempt.words), attempt.token)
            return {"outcome": "done", "message": ""}
        if code == BAD:
            busy = is_locked(Path(attempt.folder))  # somebody was faster, which is no fault of the settings
            return {"outcome": "busy" if busy else "bad", "message": said}
        if self.asked is not None:
            return {"outcome": "stopped", "message": "" if code == STOPPED else f"{_ending(code)}, asked to stop"}
        if code == 0:
            return {"outcome": "crashed", "message": f"it left no {SUMMARY}: {said}"}
        return {"outcome": "crashed", "message": f"{_ending(code)}{f': {said}' if said else ''}"}

    def _wait_for_lock(self, lease: Lease) -> bool:
        """Give a training that is not this sweep's, or was just killed, some time to leave the folder."""
        deadline = time.monotonic() + self.attempt.lease_s
        while is_locked(Path(self.attempt.folder)):
            if time.monotonic() > deadline or self._is_to_stop() or not lease.keep():
                return False
            self._pause(min(1.0, self.attempt.beat_s))
        return True

    def _is_to_stop(self) -> bool:
        if self.asked is None:
            try:
                if (Path(self.attempt.sweep) / CONTROL).read_text() == STOP:
                    self.asked = "the study stops"
            except OSError:  # asked again soon
                return False
        return self.asked is not None

    def _pause(self, seconds: float) -> None:
        """Sleep until a signal arrives, the worker is gone, or the time is over."""
        watched = [self._woken] if self.asked else [self._woken, 0]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._woken in ready:
            os.read(self._woken, 1024)
        if 0 in ready and not os.read(0, 1024):
            self.asked = "the worker is gone"  # its end of the pipe is closed

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number).name


def is_locked(folder: Path) -> bool:
    """Whether a process, of this machine at least, trains in a run's folder."""
    try:
        file = (folder / LOCK).open("r+")
    except OSError:
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def newest_checkpoint(folder: Path) -> int:
    """Environment steps of a run's newest checkpoint; -1 without one."""
    try:
        names = os.listdir(folder / CHECKPOINTS)
    except OSError:
        return -1
    return max((int(name) for name in names if re.fullmatch(r"\d{12,}", name)), default=-1)


def write_whole(path: Path, text: str, token: str) -> None:
    """Write a file such that others see the old one or the new one; the token tells apart who writes at once."""
    temporary = path.with_name(f"{path.name}.{token}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _here() -> dict[str, str | int]:
    """This process, such that others of the same machine can tell whether it is still there."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        place = f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        place = ""  # other systems: it counts only whether the lease is renewed
    return {"place": place, "pid": os.getpid(), "begun": _begun(os.getpid())}


def _begun(pid: int) -> str:
    """When a process began, in the kernel's own time; numbers of processes are used again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_gone(lease: str) -> bool:
    """Whether the holder of a lease was a process of this machine and is no more."""
    try:
        held = json.loads(lease)
        place, pid, begun = held["place"], int(held["pid"]), held["begun"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(place) and place == _here()["place"] and _begun(pid) != begun


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill a training and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _last_line(log: Path, begin: int) -> str:
    """What a process said last; its error if there is one."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - 8192))  # an error is one line
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def main() -> None:
    """Make the try, and print how it ended as a line of JSON."""
    attempt = Attempt(**json.loads(sys.argv[1]))
    try:
        told = Guard(attempt).run()
    except OSError as error:  # the disk, for instance
        told = {"outcome": "crashed", "message": f"the trial could not be begun or watched: {error}"}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
