"""Training in processes of its own, which can be killed; they begin with everything imported."""

import multiprocessing
import os
import sys
import time
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_ROOT = Path(__file__).parents[2]

LOG = "log.txt"
"""Output of the processes, in the folder that they work in."""


SAVING = "saving.txt"
"""File that `slow_saving` makes in a run's folder while the third checkpoint is written, which takes a minute."""


def start(*arguments: object, die_at_call: int | None = None, slow_saving: bool = False) -> ForkServerProcess:
    """Train in another process, in this one's folder.

    Args:
        arguments: Words of the command line.
        die_at_call: Number, from 1, of the call that changes a file in place of which the process is killed.
        slow_saving: If True, writing the third checkpoint takes a minute.
    """
    _start_server()
    process = _CONTEXT.Process(target=_train, args=(list(map(str, arguments)), Path.cwd(), die_at_call, slow_saving))
    process.start()
    return process


def finish(process: ForkServerProcess, timeout_s: float = 240.0) -> int:
    """Wait for the end of a process; returns its exit code."""
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a process hangs; its output: {Path(LOG).read_text()}")
    return process.exitcode


def run(*arguments: object, die_at_call: int | None = None) -> int:
    """Train in another process to its end; returns the exit code."""
    return finish(start(*arguments, die_at_call=die_at_call))


@cache
def _start_server() -> None:
    """Start the process that all others are forked from; up to Python 3.12 it does not inherit `sys.path`."""
    modules = ["tests.experiments.tasks", "experiments.train", "experiments.run.finish"]
    _CONTEXT.set_forkserver_preload([*modules, "torch._dynamo"])  # which torch's optimizers import, and which is large
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(_ROOT))
        forkserver.ensure_running()


def _train(arguments: list[str], folder: Path, die_at_call: int | None, slow_saving: bool) -> None:
    os.chdir(folder)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    from experiments import train

    os.fsync = lambda descriptor: None  # killing a process loses nothing that it wrote; the disk takes seconds
    if die_at_call is not None:
        _die_at(die_at_call)
    if slow_saving:
        _save_slowly()
    sys.argv = ["experiments.train", *arguments]
    try:
        train.main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _die_at(n: int) -> None:
    """Have this process killed in place of the n-th call, from 1, that changes a file in a run's folder."""
    calls = 0

    def counted(call):
        def wrapper(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:
                os.kill(os.getpid(), 9)
            return call(*args, **kwargs)

        return wrapper

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def _save_slowly() -> None:
    real_rename, n_checkpoints = os.rename, 0

    def rename(source, target):
        nonlocal n_checkpoints
        n_checkpoints += str(source).endswith(".tmp")
        if n_checkpoints == 3:
            (Path(source).parents[1] / SAVING).touch()
            time.sleep(60)
        real_rename(source, target)

    os.rename = rename
