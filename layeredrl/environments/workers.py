"""Single environments, in this process or in one of their own, that may fail."""

import contextlib
import multiprocessing
import multiprocessing.util
import os
import pickle
import select
import signal
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    clear_mpi_env_vars,
)

from layeredrl.environments.answers import Failure, shown

Maker = Callable[[], gym.Env[Any, Any]]

CLOSE_S = 5.0
"""For a faulty environment to close before it is killed, while all others wait for it."""


class Patience:
    """Seconds left for a round of answers.

    Waiting is counted in slices: if all processes were stopped and go on an hour later, nobody is late.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds

    def wait(self, is_ready: Callable[[float], object]) -> None:
        while not is_ready(part := min(self._left, 1.0)):
            self._left -= part
            if self._left <= 0:
                raise Failure(f"did not answer within {self._seconds:g} s")


class Local:
    """An environment in this process. Its first answer describes it; the others are those to calls."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self._env: gym.Env[Any, Any] | None = None
        self._call: Callable[..., Any] = self._make
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self.pending = True

    def send(self, name: str, *args: Any, **kwargs: Any) -> None:
        # Without an environment, because it could not be made, all that comes is "close".
        self._call = _nothing if self._env is None else getattr(self._env, name)
        self._args, self._kwargs = args, kwargs
        self.pending = True

    def receive(self, patience: Patience | None = None) -> Any:
        try:
            answer = self._call(*self._args, **self._kwargs)
        except Exception as error:
            self.pending = False
            place = traceback.extract_tb(error.__traceback__)[-1]
            phrase = f"raised {type(error).__name__}: {shown(str(error))}"
            raise Failure(f"{phrase} ({os.path.basename(place.filename)}:{place.lineno})", error) from error
        self.pending = False
        return answer

    def end(self) -> None:
        if self.pending and self._env is not None:  # interrupted
            with contextlib.suppress(Exception):
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
        if hasattr(select, "poll"):  # Connection.poll sets up the same every time, for longer than a light step takes
            poller = select.poll()
            poller.register(self._connection.fileno(), select.POLLIN)
            self._is_ready = lambda seconds: poller.poll(1000 * seconds)
        self._process = context.Process(
            target=_serve, args=(CloudpickleWrapper(maker), theirs), name=f"EnvPool-{i}", daemon=True
        )
        self.pending = True
        with clear_mpi_env_vars():
            self._process.start()
        theirs.close()

    def send(self, name: str, *args: Any, **kwargs: Any) -> None:
        call = pickle.dumps((name, args, kwargs), pickle.HIGHEST_PROTOCOL)
        self.pending = True
        with contextlib.suppress(OSError):  # it is dead, as finish will find out
            self._connection.send_bytes(call)

    def receive(self, patience: Patience) -> Any:
        try:
            patience.wait(self._is_ready)
            data = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join(CLOSE_S)
            raise Failure(self._obituary()) from None
        except Failure:
            if self._process.exitcode is not None:  # while a stranger that was forked at the time keeps the pipe open
                raise Failure(self._obituary()) from None
            raise
        self.pending = False
        try:
            answer, phrase, cause = pickle.loads(data)
        except Exception as error:
            raise Failure(f"returned what cannot be unpickled, {shown(error)}", error) from error
        if phrase is not None:
            raise Failure(phrase, cause)
        return answer

    def end(self) -> None:
        if not self.pending:  # it is closed and about to exit
            self._process.join(CLOSE_S)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def _obituary(self) -> str:
        code = self._process.exitcode
        if code is None:
            return "closed its process's connection"
        if code >= 0:
            return f"ended its process with exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"lost its process to {names.get(-code, f'signal {-code}')}"


def _serve(maker: Maker, connection: "Connection[Any, Any]") -> None:
    """The process of a `Remote`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not SIG_IGN, which programs that the environment starts would inherit: it could not terminate them.
    signal.signal(signal.SIGTERM, lambda *_: None)
    for end in list(_our_ends):  # inherited by fork; a copy kept open would hide the parent's death from its process
        end.close()
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    env, name = Local(maker), ""
    try:
        while True:
            reply: tuple[Any, str | None, Exception | None]
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


def _follow(parent: int) -> None:
    """End this process some time after its parent, if it has not done so by itself."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(CLOSE_S)
    os._exit(1)


def _dumped(reply: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps((None, f"returned what cannot be pickled, {shown(str(error))}", None))


def _portable(failure: Failure) -> Exception | None:
    """The error behind a failure with its traceback as a note, as far as it can travel."""
    error = failure.error
    if error is None:
        return None
    note = "".join(traceback.format_exception(error))
    for candidate in (error, RuntimeError(str(failure))):
        candidate.add_note(note)
        with contextlib.suppress(Exception):
            copy: Exception = pickle.loads(pickle.dumps(candidate))
            return copy
    return None


def close_members(members: "Mapping[int, Local | Remote]", timeout_s: float) -> list[str]:
    """Close environments, kill those that are busy or do not answer in time; returns what went wrong."""
    complaints = []
    try:
        idle = {i: member for i, member in members.items() if not member.pending}
        for member in idle.values():
            member.send("close")
        patience = Patience(timeout_s)
        for i, member in idle.items():
            try:
                member.receive(patience)
            except Failure as failure:
                complaints.append(f"environment {i}, when it was closed, {failure}")
    finally:
        for member in members.values():
            member.end()
    return complaints


def close_all(members: "list[Local | Remote | None]", timeout_s: float) -> None:
    """Close what there is; problems are one warning."""
    present = {i: member for i, member in enumerate(members) if member is not None}
    members[:] = [None] * len(members)
    complaints = close_members(present, timeout_s)
    if complaints:
        warnings.warn("; ".join(complaints), RuntimeWarning, stacklevel=2)
