"""Single environments that may fail, in this process or in one of their own."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    clear_mpi_env_vars,
)

from layeredrl.environments.answers import Failure, shown

Maker = Callable[[], gym.Env[Any, Any]]

DEATH_SIGNAL = signal.SIGUSR1 if sys.platform != "win32" else 10
"""Signal of the parent's death; its number, 10, is the number of seconds until the kernel ends a process."""
CLOSE_S = 5.0
"""Seconds in which a faulty environment has to close before it is killed; all others wait for it."""


class Timeout:
    """Seconds left for a round of answers.

    Waiting is counted in slices of 1 s: if all processes are stopped and continue an hour later, none is late.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds

    def wait(self, is_ready: Callable[[float], object]) -> None:
        """Wait for an answer; `is_ready` waits for some seconds and returns something true if it has come.

        Raises:
            Failure: No seconds are left.
        """
        while not is_ready(part := min(self._left, 1.0)):
            self._left -= part
            if self._left <= 0:
                raise Failure(f"did not answer within {self._seconds:g} s")


class Local:
    """An environment in this process. Its first answer describes it; the others are results of calls."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._env: gym.Env[Any, Any] | None = None
        self._call: Callable[..., Any] = self._make
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self.pending = True
        """True while an answer is due."""

    def send(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Begin a call of a method."""
        # An environment that could not be made is only sent "close".
        self._call = _nothing if self._env is None else getattr(self._env, name)
        self._args, self._kwargs = args, kwargs
        self.pending = True

    def receive(self, timeout: Timeout | None = None) -> Any:
        """Return the answer to the last call; raise a `Failure` if it failed."""
        try:
            answer = self._call(*self._args, **self._kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and panics of code in Rust are no `Exception`
            self.pending = False
            place = traceback.extract_tb(error.__traceback__)[-1]
            phrase = f"raised {type(error).__name__}: {shown(str(error))}"
            raise Failure(f"{phrase} ({os.path.basename(place.filename)}:{place.lineno})", error) from error
        self.pending = False
        return answer

    def end(self) -> None:
        """Close the environment if a call was interrupted."""
        if self.pending and self._env is not None:
            with contextlib.suppress(Exception, SystemExit):
                self._env.close()

    def _make(self) -> tuple[Any, ...]:
        self._env = env = self._maker()
        return env.observation_space, env.action_space, env.metadata, env.render_mode


def _nothing() -> None:
    pass


_our_ends: "weakref.WeakSet[Connection[Any, Any]]" = weakref.WeakSet()


class Remote:
    """An environment in a process of its own, otherwise like `Local`."""

    def __init__(self, maker: Maker, i: int) -> None:
        context = multiprocessing.get_context()
        self._connection, theirs = context.Pipe()
        _our_ends.add(self._connection)
        self._is_ready: Callable[[float], object] = self._connection.poll
        if hasattr(select, "poll"):  # Connection.poll sets this up at each call, which takes longer than a light step
            poller = select.poll()
            poller.register(self._connection.fileno(), select.POLLIN)
            self._is_ready = lambda seconds: poller.poll(1000 * seconds)
        self._process = context.Process(
            target=_serve,
            args=(CloudpickleWrapper(maker), theirs, threading.current_thread() is threading.main_thread()),
            name=f"EnvPool-{i}",
            daemon=True,
        )
        self.pending = True
        with clear_mpi_env_vars():
            self._process.start()
        theirs.close()

    def send(self, name: str, *args: Any, **kwargs: Any) -> None:
        call = pickle.dumps((name, args, kwargs), pickle.HIGHEST_PROTOCOL)
        self.pending = True
        with contextlib.suppress(OSError):  # it is dead, which `receive` reports
            self._connection.send_bytes(call)

    def receive(self, timeout: Timeout) -> Any:
        try:
            timeout.wait(self._is_ready)
            data = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join(CLOSE_S)
            raise Failure(self._death()) from None
        except Failure:
            if self._process.exitcode is not None:  # dead, but a process forked meanwhile keeps the pipe open
                raise Failure(self._death()) from None
            raise
        self.pending = False
        try:
            answer, phrase, cause = pickle.loads(data)
        except Exception as error:
            raise Failure(f"returned what cannot be unpickled, {shown(error)}", error) from error
        if phrase is not None:
            raise Failure(phrase, cause)
        if type(answer) is tuple and answer and isinstance(answer[-1], _Info):
            return *answer[:-1], _unpickled(answer[-1])
        return answer

    def end(self) -> None:
        """Kill the process, after it had time to exit by itself if it is closed."""
        if not self.pending:
            self._process.join(CLOSE_S)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def _death(self) -> str:
        code = self._process.exitcode
        if code is None:
            return "closed its process's connection"
        if code >= 0:
            return f"ended its process with exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"lost its process to {names.get(-code, f'signal {-code}')}"


def _serve(maker: Maker, connection: "Connection[Any, Any]", in_main_thread: bool) -> None:
    """Run the process of a `Remote`, which was started by the main thread of its parent or by another one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not SIG_IGN: programs started by the environment would inherit it, and could not be terminated.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: None)  # of a closed terminal, which sends it to all of its processes
    for end in list(_our_ends):  # inherited by fork; an open copy would hide the parent's death from its process
        end.close()
    threading.Thread(target=_exit_after_parent, args=(os.getppid(),), daemon=True).start()
    if in_main_thread:  # the kernel takes the end of the thread that started a process for the end of its parent
        _end_after_parent()
    env, name = Local(maker), ""
    try:
        while True:
            reply: tuple[Any, str | None, BaseException | None]
            try:
                reply = env.receive(), None, None
            except Failure as failure:
                reply = None, str(failure), _portable(failure)
            connection.send_bytes(_dumped(reply))
            if name == "close":
                return
            name, args, kwargs = pickle.loads(connection.recv_bytes())
            env.send(name, *args, **kwargs)
    except (EOFError, OSError):  # the parent is gone
        env.end()


def _exit_after_parent(parent: int) -> None:
    """End this process `CLOSE_S` seconds after its parent, unless it has ended by itself."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(CLOSE_S)
    os._exit(1)


def _end_after_parent() -> None:
    """Let the kernel end this process some seconds after its parent, also while code in C keeps Python waiting."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    # The handler of the signal is the C function alarm, which is called with the signal's number: after as many seconds
    # SIGALRM ends the process. A signal that kills at once would leave no time to close the environment.
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(DEATH_SIGNAL, ctypes.cast(libc.alarm, ctypes.c_void_p))
    libc.prctl(_PR_SET_PDEATHSIG, int(DEATH_SIGNAL))


_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def _dumped(reply: tuple[Any, ...]) -> bytes:
    """Pickle a reply, each entry of an info by itself."""
    answer, *rest = reply
    try:
        if type(answer) is tuple and answer and isinstance(answer[-1], dict) and answer[-1]:
            answer = (*answer[:-1], _Info([(str(key), _pickled((key, value))) for key, value in answer[-1].items()]))
        return pickle.dumps((answer, *rest), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps((None, f"returned what cannot be pickled, {shown(str(error))}", None))


@dataclass(frozen=True)
class _Info:
    """Name and pickled form of each entry of an info, so that an unreadable one leaves the others readable."""

    entries: list[tuple[str, bytes | None]]


def _pickled(entry: tuple[Any, Any]) -> bytes | None:
    try:
        return pickle.dumps(entry, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return None


def _unpickled(info: _Info) -> dict[str, Any]:
    """Return the entries that can be read, with a warning for each of the others."""
    result = {}
    for name, data in info.entries:
        try:
            key, value = pickle.loads(data or b"")
        except Exception:  # a lock, or an object of a class that exists in the environment's process alone
            text = f"entry {name!r} of an environment's info cannot pass between processes and is left out"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        else:
            result[key] = value
    return result


def _portable(failure: Failure) -> BaseException | None:
    """Return the error behind a failure with its traceback as a note; None if it cannot be pickled."""
    error = failure.error
    if error is None:
        return None
    note = "".join(traceback.format_exception(error))
    for candidate in (error, RuntimeError(str(failure))):
        candidate.add_note(note)
        with contextlib.suppress(Exception):
            copy: BaseException = pickle.loads(pickle.dumps(candidate))
            return copy
    return None


def close_members(members: "Mapping[int, Local | Remote]", timeout_s: float) -> list[str]:
    """Close environments; kill those that are busy or do not answer in time. Returns the problems."""
    problems = []
    try:
        idle = {i: member for i, member in members.items() if not member.pending}
        for member in idle.values():
            member.send("close")
        timeout = Timeout(timeout_s)
        for i, member in idle.items():
            try:
                member.receive(timeout)
            except Failure as failure:
                problems.append(f"environment {i}, when it was closed, {failure}")
    finally:
        for member in members.values():
            member.end()
    return problems


def close_all(members: "list[Local | Remote | None]", timeout_s: float) -> None:
    """Close all environments that exist; problems are one warning."""
    present = {i: member for i, member in enumerate(members) if member is not None}
    members[:] = [None] * len(members)
    problems = close_members(present, timeout_s)
    if problems:
        warnings.warn("; ".join(problems), RuntimeWarning, stacklevel=2)
