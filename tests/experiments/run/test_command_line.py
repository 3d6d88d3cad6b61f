"""Output that is closed, and resources that are short."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
import torch

from experiments import compare, evaluate, train
from experiments.run.command_line import FAULT, command, fail
from layeredrl.collector import Collector
from tests.experiments.commands import QUICK, call, read_state, run_train


@contextlib.contextmanager
def closed_pipe() -> Iterator[TextIO]:
    """Have a pipe whose reader has closed it, as `head` does, as standard output."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writer, "w", buffering=1) as output:
        patch.setattr(sys, "stdout", output)
        yield output


def test_a_training_goes_on_without_a_reader(capsys: pytest.CaptureFixture[str]) -> None:
    with closed_pipe() as output:
        run_train("random", *QUICK, "--name", "r")
        assert sys.stdout is output
    assert read_state(Path("runs/r"))["n_total_env_steps"] == 60
    assert Path("runs/r/summary.json").exists()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["standard output is lost (Broken pipe); the program goes on without it"]


@pytest.mark.parametrize("main", [evaluate.main, compare.main])
def test_other_commands_end_quietly_without_a_reader(
    main: Callable[[], None], random_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--episodes", 1) if main is evaluate.main else (random_run,)
    with closed_pipe():
        call(main, random_run, *words)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
@pytest.mark.parametrize("main", [train.main, compare.main])
def test_output_to_a_full_disk(
    main: Callable[[], None], random_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        if main is train.main:
            run_train("random", *QUICK, "--name", "r")
            assert "standard output is lost (No space left on device)" in capsys.readouterr().err
            return
        with pytest.raises(SystemExit) as stop:
            call(main, random_run, random_run)
    assert stop.value.code == FAULT
    assert "error: standard output cannot be written: [Errno 28]" in capsys.readouterr().err


def test_an_error_keeps_its_exit_code_without_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(SystemExit) as stop:
        fail("a reason")
    assert stop.value.code == 2


SHORTAGES = [
    (MemoryError(), "out of memory: MemoryError"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory: CUDA out of memory."),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: [Errno 12] Cannot allocate memory"),
    (OSError(errno.EMFILE, "Too many open files"), "too few file descriptors: [Errno 24] Too many open files"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "too few processes or threads"),
    (RuntimeError("can't start new thread"), "too few processes or threads: can't start new thread"),
]


def _raises(error: Exception) -> Callable[..., None]:
    def function(*args: object, **kwargs: object) -> None:
        raise error

    return function


@pytest.mark.parametrize(("error", "message"), SHORTAGES)
def test_a_shortage_is_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command()(_raises(error))()
    assert stop.value.code == FAULT
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command()(_raises(ZeroDivisionError()))()


def test_torch_without_memory_is_a_shortage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command()(lambda: torch.empty(2**60, dtype=torch.uint8).zero_() and None)()
    assert stop.value.code == FAULT
    assert "out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "message"), SHORTAGES[:4:3])
def test_a_shortage_in_training_names_the_step_to_go_on_from(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Collector.step

    def step(collector: Collector, *, explore: bool) -> object:
        if collector.n_total_env_steps == 40:
            raise error
        return real(collector, explore=explore)

    monkeypatch.setattr(Collector, "step", step)
    with pytest.raises(SystemExit) as stop:
        call(train.main, "random", *QUICK, "--name", "r")
    assert stop.value.code == FAULT
    line = capsys.readouterr().err
    assert message in line
    assert "the same command goes on at 30 of 60" in line


def test_a_shortage_at_the_start_is_no_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "make_collector", _raises(OSError(errno.EMFILE, "Too many open files")))
    with pytest.raises(SystemExit) as stop:
        call(train.main, "random", *QUICK, "--name", "r")
    assert stop.value.code == FAULT
    assert "too few file descriptors" in capsys.readouterr().err
