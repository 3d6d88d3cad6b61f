"""Runs that are killed at any moment and resumed with the same command."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from layeredrl.storage import Checkpoints
from tests.experiments import processes
from tests.experiments.commands import QUICK, assert_same_run, read_metrics, run_train

FOLDER = Path("runs/r")


def kill_and_go_on(arguments: tuple[object, ...], moments: list[float]) -> int:
    """Kill a run some seconds after it has opened its folder, again and again, then let it end.

    Returns:
        Number of processes that were killed during training.
    """
    arguments = (*arguments, "--name", "r")
    n_saved = n_killed = 0
    for seconds in moments:
        begun = time.time()
        process = processes.start(*arguments)
        config = FOLDER / "config.json"
        while process.is_alive() and not (config.exists() and config.stat().st_mtime > begun):
            time.sleep(0.002)
        process.join(seconds)
        if process.is_alive():
            process.kill()
            n_killed += 1
        assert processes.finish(process) in (0, -signal.SIGKILL), Path(processes.LOG).read_text()
        checkpoints = Checkpoints(FOLDER / "checkpoints")
        newest = checkpoints.newest() or 0
        assert newest >= n_saved
        n_saved = newest
        if newest:
            assert checkpoints.load()["n_total_env_steps"] == newest
    assert processes.run(*arguments) == 0, Path(processes.LOG).read_text()
    left = {path.name for path in (FOLDER / "checkpoints").iterdir()}
    assert not {name for name in left if name.endswith((".tmp", ".old"))}
    named = [json.loads(path.read_text())["segments"] for path in FOLDER.glob("checkpoints/0*/manifest.json")]
    segments = {path.name for path in (FOLDER / "checkpoints" / "segments").iterdir()}
    assert segments == {name for names in named for name in names}
    return n_killed


def check_log(folder: Path, n_total_env_steps: int, fit_every: int) -> None:
    """Assert that no step is missing from the metrics, and that none is there twice."""
    rows = read_metrics(folder)
    fits = [int(row["n_total_env_steps"]) for row in rows if row["model/loss"]]
    assert fits == list(range(fit_every, n_total_env_steps + 1, fit_every))
    lengths = [int(row["env/episode_length"]) for row in rows if row["env/episode_length"]]
    ends = [int(row["n_total_env_steps"]) for row in rows if row["env/episode_length"]]
    assert ends == [sum(lengths[: i + 1]) for i in range(len(lengths))]  # of one environment


@pytest.mark.slow
def test_three_kills_change_nothing() -> None:
    arguments = ("pets", *QUICK, "--trainer.n-total-env-steps", 60, "--trainer.checkpoint-every", 3)
    run_train(*arguments, "--name", "whole")
    rng = random.Random(0)
    kill_and_go_on(arguments, [rng.uniform(0.0, 0.3) for _ in range(3)])
    assert_same_run(FOLDER, Path("runs/whole"))
    check_log(FOLDER, 60, fit_every=20)


@pytest.mark.slow
@pytest.mark.parametrize("n_envs", [1, 4])
def test_twenty_kills_change_nothing(n_envs: int) -> None:
    n = 1000 * n_envs
    settings = ("--trainer.n-total-env-steps", n, "--trainer.checkpoint-every", 5 * n_envs, "--n-envs", n_envs)
    arguments = ("pets", *QUICK, *settings)
    assert processes.run(*arguments, "--name", "whole") == 0
    rng = random.Random(n_envs)
    assert kill_and_go_on(arguments, [rng.uniform(0.0, 1.0) for _ in range(20)]) >= 15
    assert_same_run(FOLDER, Path("runs/whole"))
    if n_envs == 1:
        check_log(FOLDER, n, fit_every=20)


@pytest.mark.slow
def test_twenty_kills_and_one_run_for_wandb() -> None:
    settings = ("--trainer.n-total-env-steps", 600, "--trainer.checkpoint-every", 5, "--wandb", "offline")
    arguments = ("pets", *QUICK, *settings, "--name", "r")
    first = processes.start(*arguments)
    while first.is_alive() and not Checkpoints(FOLDER / "checkpoints").newest():
        time.sleep(0.01)
    run_id = Checkpoints(FOLDER / "checkpoints").load()["loggers"]["WandbLogger"]["run_id"]
    first.kill()
    processes.finish(first)
    rng = random.Random(0)
    kill_and_go_on(arguments[:-2], [rng.uniform(0.0, 3.0) for _ in range(20)])
    assert Checkpoints(FOLDER / "checkpoints").load()["loggers"]["WandbLogger"]["run_id"] == run_id
    for path in FOLDER.glob("wandb/offline-run-*"):
        assert path.name.endswith(run_id)


CALLS = 35
"""Number of calls that change files, from the start of a run to its second checkpoint."""
RUN = ("random", *QUICK, "--trainer.n-total-env-steps", 80, "--trainer.checkpoint-every", 20)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with four checkpoints that nobody killed."""
    runs = tmp_path_factory.mktemp("runs")
    run_train(*RUN, "--runs-dir", runs, "--name", "whole")
    return runs / "whole"


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, marks=[] if call in (5, 21) else pytest.mark.slow) for call in (2, *range(1, CALLS, 4))],
)
def test_a_kill_in_place_of_any_change_of_a_file(call: int, saved: Path) -> None:
    """Above all during a save: writing, moving into place, deleting old files."""
    assert processes.run(*RUN, "--name", "r", die_at_call=call) == -signal.SIGKILL
    checkpoints = Checkpoints(FOLDER / "checkpoints")
    if checkpoints.newest() is not None:
        checkpoints.load()
    assert processes.run(*RUN, "--name", "r") == 0, Path(processes.LOG).read_text()
    assert_same_run(FOLDER, saved)


def test_a_run_killed_in_its_last_save_is_tidied_all_the_same(saved: Path) -> None:
    shutil.copytree(saved, FOLDER)
    (FOLDER / "summary.json").unlink()
    (FOLDER / "checkpoints" / "000000000020.tmp").mkdir()  # which was being deleted
    run_train(*RUN, "--name", "r")
    assert not list(FOLDER.glob("checkpoints/*.tmp"))
    assert_same_run(FOLDER, saved)


@pytest.mark.slow
def test_a_kill_in_place_of_every_change_of_a_file() -> None:
    arguments = ("pets", *QUICK, "--trainer.n-total-env-steps", 60, "--trainer.checkpoint-every", 10)
    run_train(*arguments, "--name", "whole")
    for call in range(1, 500):
        code = processes.run(*arguments, "--name", "r", "--fresh", die_at_call=call)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert processes.run(*arguments, "--name", "r") == 0, Path(processes.LOG).read_text()
        assert_same_run(FOLDER, Path("runs/whole"))
    assert call > 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once(number: signal.Signals) -> None:
    """Also during a save; the checkpoint before is whole."""
    often = ("--trainer.n-total-env-steps", 10**9, "--trainer.checkpoint-every", 50)
    process = processes.start("random", *QUICK, *often, "--name", "r", slow_saving=True)
    while process.is_alive() and not (FOLDER / processes.SAVING).exists():
        time.sleep(0.005)
    before = Checkpoints(FOLDER / "checkpoints").newest()
    os.kill(process.pid, number)
    time.sleep(0.1)
    assert process.is_alive()  # it wants to save first
    for _ in range(100):  # on a busy machine the system may make one signal of two
        if process.is_alive():
            os.kill(process.pid, number)
            process.join(0.3)
    assert processes.finish(process, timeout_s=1.0) == 128 + number  # the save would take a minute
    checkpoints = Checkpoints(FOLDER / "checkpoints")
    assert checkpoints.newest() == before
    assert checkpoints.load()["n_total_env_steps"] == before
