"""Runs survive a full disk, a read-only folder, a logger that fails, and losses and plans that are NaN."""

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.run import finish, folder
from layeredrl.loggers import CsvLogger, TensorBoardLogger
from layeredrl.storage import files
from tests.experiments.commands import (
    QUICK,
    assert_same,
    assert_same_run,
    newest,
    read_metrics,
    read_state,
    run_train,
    signal_at,
    without_time,
)
from tests.experiments.faults import nan_losses, nan_scores

FOLDER = Path("runs/r")
CHECKPOINTS = FOLDER / "checkpoints"
FULL = OSError(28, "No space left on device")
READ_ONLY = OSError(30, "Read-only file system")

ARGUMENTS = ("pets", *QUICK, "--trainer.checkpoint-every", 10, "--trainer.n-total-env-steps", 40)
LONGER = (*ARGUMENTS, "--trainer.n-total-env-steps", 60)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without trouble, not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    run_train(*ARGUMENTS, "--runs-dir", runs, "--name", "whole")
    return runs / "whole"


def _train_warned(*arguments: object) -> list[str]:
    """Train; return the warnings."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run_train(*arguments)
    return [str(warning.message) for warning in warned if warning.category is RuntimeWarning]


def _fails(target: Any, name: str, error: OSError, when: Callable[[Any], bool], patch: pytest.MonkeyPatch) -> None:
    """Let a function of the saver fail for some paths."""
    real = getattr(target, name)

    def function(path: Any, *args: Any, **kwargs: Any) -> Any:
        if when(path):
            raise error
        return real(path, *args, **kwargs)

    patch.setattr(target, name, function)


def _after(n: int) -> Callable[[Any], bool]:
    """True for paths of checkpoints of more than n steps."""
    return lambda path: any(part[:12].isdigit() and int(part[:12]) > n for part in Path(path).parts)


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        pytest.param(os, "rename", FULL, id="rename"),
        pytest.param(files, "write_bytes", FULL, id="write", marks=pytest.mark.slow),
        pytest.param(Path, "mkdir", READ_ONLY, id="mkdir"),
    ],
)
def test_a_run_whose_last_save_fails_is_not_finished_and_goes_on(
    error: OSError, target: Any, name: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", RuntimeWarning)
        _fails(target, name, error, _after(20), patch)
        with pytest.raises(SystemExit) as stop:
            run_train(*ARGUMENTS, "--name", "r")
    assert stop.value.code == 3
    output = capsys.readouterr()
    assert f"error: the last checkpoint could not be written: [Errno {error.errno}] {error.strerror}" in output.err
    assert "the same command goes on at 20 of 40" in output.err
    assert "Run finished" not in output.out
    assert not (FOLDER / "summary.json").exists()
    (message,) = [str(warning.message) for warning in warned]
    assert f"no checkpoint could be written, training goes on: [Errno {error.errno}] {error.strerror}" in message
    assert without_time(FOLDER) == without_time(whole)
    assert read_state(FOLDER)["n_total_env_steps"] == 20  # the last good one is unchanged
    assert not list(CHECKPOINTS.glob("*.tmp"))
    segments = {path.name[:12] for path in (CHECKPOINTS / "segments").iterdir()}
    assert segments == {"000000000010", "000000000020"}
    run_train(*ARGUMENTS, "--name", "r")
    assert_same_run(FOLDER, whole)


def test_a_run_without_a_summary_is_not_finished() -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fails(finish, "write_whole", FULL, lambda path: Path(path).name == "summary.json", patch)
        with pytest.raises(SystemExit) as stop:
            run_train("random", *QUICK, "--name", "r")
    assert stop.value.code == 3
    run_train("random", *QUICK, "--name", "r")
    assert (FOLDER / "summary.json").exists()


@pytest.mark.parametrize("error", [FULL, READ_ONLY])
def test_a_run_that_cannot_go_on_for_now_is_no_bad_input(
    error: OSError, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study tries it again."""
    shutil.copytree(whole, FOLDER)
    with pytest.MonkeyPatch.context() as patch:
        _fails(folder, "write_whole", error, lambda path: True, patch)
        with pytest.raises(SystemExit) as stop:
            run_train(*LONGER, "--name", "r")
    assert stop.value.code == 3
    assert f"error: runs/r cannot be written: {error.strerror}" in capsys.readouterr().err


def test_the_next_save_works_again(whole: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fails(os, "rename", FULL, lambda path: Path(path).name in ("000000000020.tmp", "000000000030.tmp"), patch)
        messages = _train_warned(*ARGUMENTS, "--name", "r")
    assert len(messages) == 1
    assert_same_run(FOLDER, whole)


def test_old_checkpoints_that_cannot_be_deleted_do_not_prevent_new_ones() -> None:
    with pytest.MonkeyPatch.context() as patch:
        _fails(files, "discard", READ_ONLY, lambda path: True, patch)
        messages = _train_warned(*ARGUMENTS, "--name", "r")
    assert all("could not be removed" in message for message in messages)
    assert read_state(FOLDER)["n_total_env_steps"] == 40
    run_train(*ARGUMENTS, "--name", "r", "--trainer.n-total-env-steps", 50)
    assert len(list(CHECKPOINTS.glob("0*"))) <= 4


def test_a_full_disk_when_asked_to_stop(whole: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, signal_at(35), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        _fails(files, "write_bytes", FULL, _after(30), patch)
        with pytest.raises(SystemExit) as stop:
            run_train(*ARGUMENTS, "--name", "r")
    assert stop.value.code == 75
    assert newest(FOLDER).name == "000000000030"
    run_train(*ARGUMENTS, "--name", "r")
    assert_same_run(FOLDER, whole)


@pytest.mark.parametrize(
    ("method", "logger"),
    [
        ("log", TensorBoardLogger),
        ("state_dict", CsvLogger),
        pytest.param("log", CsvLogger, marks=pytest.mark.slow),
        pytest.param("state_dict", TensorBoardLogger, marks=pytest.mark.slow),
    ],
)
def test_a_logger_that_fails_causes_one_warning(logger: type, method: str, whole: Path) -> None:
    arguments = [a for a in ARGUMENTS if a != "--no-tensorboard"]
    with pytest.MonkeyPatch.context() as patch:
        n_calls, real = iter(range(1000)), getattr(logger, method)

        def fail(self: Any, *args: Any) -> Any:
            if next(n_calls) >= 1:
                raise FULL
            return real(self, *args)

        patch.setattr(logger, method, fail)
        messages = _train_warned(*arguments, "--name", "r")
    (message,) = messages
    assert f"{logger.__name__} failed and is switched off, training goes on" in message
    state, expected = read_state(FOLDER), read_state(whole)
    for part in ("agent", "experience", "collector", "globals", "episodes"):
        assert_same(state[part], expected[part])
    if logger is not CsvLogger:
        assert without_time(FOLDER) == without_time(whole)
    run_train(*arguments, "--name", "r", "--trainer.n-total-env-steps", 50)  # the log goes on from what it could save
    assert read_state(FOLDER)["n_total_env_steps"] == 50


# ------------------------------------------------------------------ NaN


def test_steps_with_losses_of_nan_are_left_out_and_counted() -> None:
    settings = ("--learning.first-epochs", 4, "--learning.fit.epochs", 4, "--learning.fit.max-skipped", 2)
    with nan_losses(lambda call: call % 2 == 0):  # a batch per epoch: two of four
        run_train(*LONGER, *settings, "--name", "r")
    fits = [row for row in read_metrics(FOLDER) if row["model/loss"]]
    assert [row["model/skipped_steps"] for row in fits] == ["2", "2", "2"]
    world = read_state(FOLDER)["agent"]["planner"]["learner"]["world"]
    assert all(tensor.isfinite().all() for tensor in world.values() if tensor.is_floating_point())
    run_train(*LONGER, *settings, "--name", "clean")
    assert "model/skipped_steps" not in read_metrics(Path("runs/clean"))[0]


def _stopped_by_a_fault(*arguments: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(SystemExit) as stop:
            run_train(*arguments)
    assert stop.value.code == 3


def test_too_many_losses_of_nan_stop_the_run_which_can_be_resumed(capfd: pytest.CaptureFixture[str]) -> None:
    settings = ("--learning.first-epochs", 4, "--learning.fit.epochs", 4, "--learning.fit.max-skipped", 2)
    with nan_losses(lambda call: call >= 6, member=0):  # from the second epoch of the second fit
        _stopped_by_a_fault(*LONGER, *settings, "--name", "r")
        line = capfd.readouterr().err
        assert "the loss of member 0 is not finite; the largest number is" in line
        assert "in batch 0 of epoch 4" in line
        assert read_state(FOLDER)["n_total_env_steps"] == 40
    run_train(*LONGER, *settings, "--name", "r")
    assert read_state(FOLDER)["n_total_env_steps"] == 60
    fits = [row["n_total_env_steps"] for row in read_metrics(FOLDER) if row["model/loss"]]
    assert fits == ["20", "60"]


def test_some_plans_without_a_finite_score_are_random_actions() -> None:
    with nan_scores(lambda decision: decision in (5, 25)):  # one between two fits, as many as are allowed
        messages = _train_warned(*LONGER, "--learning.max-failed-plans", 1, "--name", "r")
    assert len(messages) == 2
    assert all("no candidate had a finite score in the environments 0" in message for message in messages)
    assert (read_state(FOLDER)["experience"]["planner"]["rows"]["rows"]["act"].abs() <= 1).all()


def test_too_many_plans_without_a_finite_score_stop_the_run_which_can_be_resumed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = ("--learning.max-failed-plans", 3)
    with nan_scores(lambda decision: decision >= 15):
        _stopped_by_a_fault(*LONGER, *settings, "--name", "r")
        n = read_state(FOLDER)["n_total_env_steps"]
        assert n == 20 + 14 + 3  # random, planned, and random again
        _stopped_by_a_fault(*LONGER, *settings, "--name", "r")  # the cause is there at once...
    line = capfd.readouterr().err.splitlines()[-1]
    assert "no candidate had a finite score in the environments 0" in line
    run_train(*LONGER, *settings, "--name", "r")  # ...and now it is gone
    assert read_state(FOLDER)["n_total_env_steps"] == 60
