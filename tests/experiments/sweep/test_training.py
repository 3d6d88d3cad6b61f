"""A worker trains a run: how it ends, how it is stopped, and that only one worker writes in a run's folder."""

import fcntl
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.run import folder as run_folder
from experiments.run import signals
from experiments.sweep import folder as sweep_folder
from experiments.sweep import training as sweep_training
from experiments.sweep.folder import STOP, SWEEP, newest_checkpoint, open_study, read_metrics
from experiments.sweep.training import Job, Lease, Training
from tests.experiments.commands import without_time
from tests.experiments.sweeps import RUNS, a_job, a_study, is_locked, n_begun, until

ROOT = Path(__file__).parents[3]
NAME = "a-E-v0-seed0"
RUN = RUNS / NAME
OTHER = "another-machine token"


def in_a_thread(job: Job) -> tuple[threading.Thread, list[object]]:
    """Start a training and return when it has saved; the list holds its result or its error then."""
    ends: list[object] = []

    def run() -> None:
        try:
            ends.append(Training(job).run())
        except RuntimeError as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: newest_checkpoint(job.run) > 0)
    return thread, ends


def test_file_names_and_exit_codes_are_those_of_runs() -> None:
    for name in ("CHECKPOINTS", "LOCK", "METRICS", "SUMMARY"):
        assert getattr(sweep_folder, name) == getattr(run_folder, name)
    assert sweep_training.STOPPED == signals.STOPPED
    assert "is in use" in inspect.getsource(run_folder._lock)


def test_a_finished_run_is_not_trained_again_but_goes_on_with_more_steps() -> None:
    (trial,) = a_study(seeds=(0,)).trials()
    assert [Training(a_job(trial)).run() for _ in range(2)] == [("done", "")] * 2
    assert n_begun(NAME) == 1
    (longer,) = a_study(seeds=(0,), common={"steps": 8}).trials()
    assert Training(a_job(longer)).run() == ("done", "")
    assert (n_begun(NAME), len(without_time(RUN))) == (2, 8)
    assert not list((RUNS / SWEEP).glob("*.lease"))


def test_ends_have_a_state_and_a_reason() -> None:
    def end(code: str) -> tuple[str, str]:
        try:
            return Training(a_job(command=["python", "-S", "-c", code])).run()
        except RuntimeError as error:
            return "crashed", str(error)

    assert end("print('error: so'); print('more'); raise SystemExit(2)") == ("failed", "so")
    assert end("print('a'); print('b'); raise SystemExit(3)") == ("crashed", "exit code 3: b")
    assert end("import os; os.abort()") == ("crashed", "killed by SIGABRT")
    assert end("") == ("crashed", "exit code 0")  # it left no summary.json
    assert end("raise SystemExit(75)") == ("crashed", "exit code 75")  # a request to stop, but not by the study


def test_a_run_is_saved_when_the_study_stops() -> None:
    thread, ends = in_a_thread(a_job())
    (RUNS / SWEEP / STOP).touch()
    thread.join()
    assert ends == [("stopped", "")]
    assert len(without_time(RUN)) == newest_checkpoint(RUN)
    assert not is_locked(RUN)
    assert Training(a_job()).run() == ("stopped", "")
    assert n_begun(NAME) == 1  # once the study stops, no training begins


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the lock of the run prevents two trainings")
def test_a_training_dies_with_its_worker_and_the_next_one_goes_on() -> None:
    code = "import json, sys; from experiments.sweep.training import Job, Training; "
    code += "Training(Job(**json.loads(sys.argv[1]))).run()"
    command = [sys.executable, "-S", "-c", code, json.dumps(asdict(a_job()))]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as worker:
        until(lambda: newest_checkpoint(RUN) > 0)
        worker.send_signal(signal.SIGKILL)
    until(lambda: not is_locked(RUN))
    n = newest_checkpoint(RUN)
    thread, _ = in_a_thread(a_job(lease_s=30.0))
    until(lambda: newest_checkpoint(RUN) > n)  # the lease of a lost worker of this machine is free at once
    (RUNS / SWEEP / STOP).touch()
    thread.join()
    assert len(without_time(RUN)) == newest_checkpoint(RUN)


# ------------------------------------------------------------------ one writer


def test_a_training_whose_lease_is_taken_is_killed() -> None:
    job = a_job(lease_s=0.5)
    thread, ends = in_a_thread(job)
    job.file("lease").write_text(OTHER)
    thread.join()
    assert str(ends[0]) == "another worker holds this run"
    assert not is_locked(RUN)
    assert job.file("lease").read_text() == OTHER


def test_a_run_that_is_trained_outside_the_study_is_left_alone() -> None:
    job = a_job()
    with subprocess.Popen([sys.executable, *job.command[1:]]) as other:
        until(lambda: newest_checkpoint(RUN) > 0)
        with pytest.raises(RuntimeError, match="is in use: another process trains this run"):
            Training(job).run()
        n = newest_checkpoint(RUN)
        until(lambda: newest_checkpoint(RUN) > n)
        other.terminate()
    assert len(without_time(RUN)) == newest_checkpoint(RUN)


def test_a_lease_of_another_machine_is_taken_only_when_it_is_not_renewed(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.write_text(OTHER)
    lease = Lease(path, patience_s=0.2)
    for i in range(10):
        os.utime(path, ns=(i, i))
        assert not lease.take()
        time.sleep(0.05)
    time.sleep(0.2)
    assert lease.take()
    assert lease.renew()
    path.write_text(OTHER)
    assert not lease.renew()
    lease.free()
    assert path.read_text() == OTHER


def test_a_lease_that_cannot_be_renewed_ends_before_it_may_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    lease = Lease(tmp_path / "lease", patience_s=100.0)
    assert lease.take()
    now = time.monotonic()
    monkeypatch.setattr(os, "utime", fail)
    monkeypatch.setattr(time, "monotonic", lambda: now + 40)
    assert lease.renew()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert not lease.renew()


def test_a_study_has_one_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    (RUNS / SWEEP).mkdir(parents=True)
    (RUNS / SWEEP / STOP).touch()
    with open_study(RUNS):
        assert not (RUNS / SWEEP / STOP).exists()  # a request of an earlier session

    def taken(*args: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "lockf", taken)
    with pytest.raises(ValueError, match="is in use: another process runs this study"), open_study(RUNS):
        pass


# ------------------------------------------------------------------ metrics


def test_metrics_are_read_while_they_are_written(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}
    path = tmp_path / "metrics.csv"
    path.write_text("n_total_env_steps,env/episode_return,eval/episode_return,time/seconds\n100,3.0,7.0,1.0\n30")
    assert read_metrics(tmp_path) == {"steps": 100, "seconds": 1, "steps_per_second": 100, "return": 3, "evaluation": 7}
    with path.open("a") as file:
        file.write("0,,,\n")
        file.writelines(f"{400 + i},{i}.0,,2.0\n" for i in range(40_000))  # only the end of a long file is read
    found = read_metrics(tmp_path)
    assert (found["steps"], found["seconds"], found["return"]) == (40_399, 2, 39_994.5)
    (tmp_path / "checkpoints" / f"{40_500:012d}").mkdir(parents=True)  # steps since the last logged row
    assert read_metrics(tmp_path)["steps"] == 40_500
    path.unlink()  # no episode has ended yet
    assert read_metrics(tmp_path) == {"steps": 40_500}
