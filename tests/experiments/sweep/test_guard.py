"""Of several tries of a trial only one writes in its folder, whatever is lost, and what is written is told."""

import fcntl
import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from experiments.run import folder as run
from experiments.run import signals
from experiments.sweep import guard as sweep_guard
from experiments.sweep.guard import Lease, newest_checkpoint
from experiments.sweep.table import Metrics, Progress, StudyView
from tests.experiments.commands import without_time
from tests.experiments.sweeps import RUNS, Script, Threads, a_study, a_try, make, prepare, start, told, until

TRIAL = RUNS / "t"


def test_guards_know_the_files_of_runs() -> None:
    names = ("CHECKPOINTS", "LOCK", "METRICS", "SUMMARY")
    assert [getattr(sweep_guard, name) for name in names] == [getattr(run, name) for name in names]
    assert sweep_guard.STOPPED == signals.STOPPED


# ------------------------------------------------------------------ leases


def lease_of(token: str, path: Path, **changes: object) -> None:
    path.write_text(json.dumps({"token": token, "place": "another machine", "pid": 1, "begun": "1", **changes}))


def test_a_lease_that_is_renewed_is_not_taken(tmp_path: Path) -> None:
    path, looks = tmp_path / "lease", []
    lease_of("other", path)

    def renew(seconds: float) -> None:
        looks.append(seconds)
        os.utime(path, ns=(len(looks), len(looks)))

    assert not Lease(path, "me", patience_s=0.0).take(lambda: len(looks) > 20, renew)
    assert json.loads(path.read_text())["token"] == "other"


def test_a_lease_that_nobody_renews_is_taken_and_its_holder_finds_out(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    old, new = Lease(path, "old", patience_s=0.05), Lease(path, "new", patience_s=0.05)
    assert old.take(lambda: False)
    assert old.keep()
    lease_of("old", path)  # as if it were on another machine
    assert new.take(lambda: False)
    assert new.keep()
    assert not old.keep()
    old.give_back()
    assert new.keep()
    new.give_back()
    assert not path.exists()
    assert not new.keep()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when processes began")
def test_a_lease_of_a_process_that_is_gone_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    lease = Lease(path, "old", patience_s=1e9)
    assert lease.take(lambda: False)
    held = json.loads(path.read_text())
    assert not Lease(path, "new", patience_s=1e9).take(lambda: True)
    path.write_text(json.dumps({**held, "begun": "0"}))  # another process has its number now
    assert Lease(path, "new", patience_s=1e9).take(lambda: False)


def test_a_lease_that_cannot_be_renewed_ends_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    lease = Lease(tmp_path / "lease", "me", patience_s=100.0)
    assert lease.take(lambda: False)
    now = time.monotonic()
    monkeypatch.setattr(os, "utime", fail)
    monkeypatch.setattr(time, "monotonic", lambda: now + 40)
    assert lease.keep()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert not lease.keep()


# ------------------------------------------------------------------ guards


def test_a_training_whose_trial_is_taken_is_killed_and_its_successor_waits() -> None:
    study = a_study(seeds=(0,), common={"steps": 60, "pause": 0.02})
    lease = RUNS / "sweep" / "a-E-v0-seed0.lease"
    taken: list[bool] = []

    def take() -> bool:
        if newest_checkpoint(RUNS / "a-E-v0-seed0") > 5 and not taken:
            taken.append(True)
            lease_of("other", lease)
        return False

    made = prepare(study, pool := Threads(), lease_s=1.0)
    made.run(take)
    assert made.done
    assert taken
    assert len(pool.attempts) == 2
    assert make(study, Threads(), Path("runs/whole")).done
    assert without_time(RUNS / "a-E-v0-seed0") == without_time(Path("runs/whole/a-E-v0-seed0"))


def test_a_run_that_somebody_trains_is_left_alone() -> None:
    guard = start(a_try())
    guard.stdin.close()
    assert told(guard)["outcome"] == "stopped"
    before = (TRIAL / "metrics.csv").read_bytes()
    with (TRIAL / "lock").open("r+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert told(start(a_try(lease_s=0.2)))["outcome"] == "busy"
    assert (TRIAL / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("how", ["the worker is gone", "SIGTERM", "the study stops"])
def test_a_training_saves_when_it_is_to_stop(how: str) -> None:
    attempt = a_try()
    guard = start(attempt)
    if how == "SIGTERM":
        guard.terminate()
    elif how == "the study stops":
        (Path(attempt.sweep) / "control").write_text("stop")
    else:
        guard.stdin.close()
    assert told(guard) == {"outcome": "stopped", "message": ""}
    assert len(without_time(TRIAL)) == newest_checkpoint(TRIAL)
    assert not sweep_guard.is_locked(TRIAL)
    assert not attempt.file("lease").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the training's own lock has to do")
def test_a_training_dies_with_its_guard() -> None:
    attempt = a_try()
    guard = start(attempt)
    assert sweep_guard.is_locked(TRIAL)
    guard.send_signal(signal.SIGKILL)
    assert guard.communicate()[0] == ""
    until(lambda: not sweep_guard.is_locked(TRIAL))
    successor = start(attempt)
    n = newest_checkpoint(TRIAL)
    until(lambda: newest_checkpoint(TRIAL) > n)  # its lease was no obstacle
    assert json.loads(successor.communicate()[0])["outcome"] == "stopped"


def test_a_training_that_does_not_stop_is_killed() -> None:
    code = "import pathlib, signal, sys, time; signal.signal(15, signal.SIG_IGN); "
    code += "pathlib.Path(sys.argv[1]).mkdir(parents=True); time.sleep(600)"
    attempt = a_try(stop_s=0.2)
    folder = TRIAL / "checkpoints" / f"{1:012d}"
    guard = start(a_try(stop_s=0.2, command=["python", "-S", "-c", code, str(folder.absolute())]))
    assert json.loads(guard.communicate()[0])["message"] == "killed by SIGKILL, asked to stop"
    assert not attempt.file("lease").exists()


@pytest.mark.parametrize(
    ("code", "outcome", "message"),
    [
        ("print('error: so'); print('more'); raise SystemExit(2)", "bad", "so"),
        ("print('a'); print('b'); raise SystemExit(3)", "crashed", "exit code 3: b"),
        ("import os; os.abort()", "crashed", "killed by SIGABRT"),
        ("", "crashed", "it left no summary.json: "),
        ("raise SystemExit(75)", "crashed", "exit code 75"),  # it was asked to stop, but not by the study
    ],
)
def test_how_a_training_ends_is_told(code: str, outcome: str, message: str) -> None:
    attempt = a_try(command=["python", "-S", "-c", code])
    attempt.file("log").write_text("error: of an earlier try\n")
    TRIAL.joinpath("checkpoints", "000000000001").mkdir(parents=True)
    assert told(start(attempt)) == {"outcome": outcome, "message": message}


# ------------------------------------------------------------------ what is shown


def test_metrics_are_read_as_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    metrics.update()
    assert (metrics.steps, metrics.episode_return, metrics.steps_per_s) == (0, None, None)
    path.write_text("n_total_env_steps,env/episode_return,time/seconds\n100,3.0,1.0\n")
    metrics.update()
    assert (metrics.steps, metrics.episode_return, metrics.steps_per_s) == (100, 3.0, None)
    with path.open("a") as file:
        file.write("200,5.0,3.0\n30")
        file.flush()
        metrics.update()
        assert (metrics.steps, metrics.episode_return, metrics.steps_per_s) == (200, 4.0, 50.0)
        file.write("0,,\n")
    metrics.update()
    assert (metrics.steps, metrics.episode_return) == (300, 4.0)
    other = tmp_path / "new"
    other.write_text("n_total_env_steps,env/episode_return,eval/episode_return,time/seconds\n100,3.0,,1.0\n110,,7.0,\n")
    other.replace(path)  # the run goes on from an earlier checkpoint
    metrics.update()
    assert (metrics.steps, metrics.episode_return, metrics.evaluation, metrics.seconds) == (110, 3.0, 7.0, 1.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_shows_first_what_goes_on() -> None:
    study = a_study(seeds=tuple(range(50)))
    progress = [Progress(trial, Metrics(Path("none"))) for trial in study.trials()]
    progress[30].state, progress[31].state, progress[30].metrics.steps = "running", "done", 1234
    screen = Terminal()
    console = Console(file=screen, force_terminal=True, width=100, height=20)
    view = StudyView(study, console)
    view.update(progress)
    view.close()
    shown = screen.getvalue()
    assert "s, 50 trials: 1 running, 48 waiting, 1 done" in shown
    assert shown.index("seed30") < shown.index("seed0 ")
    assert "1,234" in shown
    assert "and 35 more" in shown

    plain = io.StringIO()
    view = StudyView(study, Console(file=plain, width=40), line_interval_s=0.0)
    view.say("a-E-v0-seed0: [done], " + 60 * "x")
    view.update(progress)
    view.close()
    assert plain.getvalue().splitlines() == [
        "a-E-v0-seed0: [done], " + 60 * "x",
        "s, 50 trials: 1 running, 48 waiting, 1 done",
    ]


def test_files_that_cannot_be_written_stop_nothing() -> None:
    (RUNS / "trials.csv").mkdir(parents=True)
    said = io.StringIO()
    pool = Script(lambda attempt: {"outcome": "done", "message": ""})
    assert make(a_study(), pool, console=Console(file=said, width=40)).done
    assert "study.json and trials.csv cannot be written" in said.getvalue()
