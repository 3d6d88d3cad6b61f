"""Studies on Ray Tune itself: machines, schedulers and trainings that are killed, and studies that are stopped."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sweep.folder import SWEEP, newest_checkpoint
from experiments.sweep.search import Draws, optuna_suggest
from experiments.sweep.study import Choice, Range, Resources, Search, Study, load
from tests.experiments.commands import all_files, assert_same_run, run_train, without_time
from tests.experiments.sweeps import PROGRAM, RUNS, a_study, is_locked, n_begun, table, until

ROOT = Path(__file__).parents[3]
WHOLE = Path("runs/whole")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
STORE = 80 * 2**20  # bytes


@pytest.fixture(autouse=True)
def not_nice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers get their share of a busy machine; Ray's default is a niceness of 15."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def two_cores() -> Iterator[int]:
    """Ray on this machine, for two trials at a time."""
    import ray

    from experiments.sweep.ray_tune import connect

    try:
        yield connect(None, 2, Resources())
    finally:
        ray.shutdown()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Two nodes of one core each; gives a function that kills the second one as a power failure does."""
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "600")  # on a busy machine
    import ray
    from ray.cluster_utils import Cluster

    from experiments.sweep.ray_tune import connect

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE})
    second = made.add_node(num_cpus=1, object_store_memory=STORE)
    try:
        connect(made.address, None, Resources())
        yield lambda: made.remove_node(second, allow_graceful=False)
    finally:
        ray.shutdown()
        made.shutdown()


def run(study: Study, stop: Callable[[], bool] = lambda: False, **changes: object) -> dict[str, str]:
    """Run a study on the connected Ray; return the states of its trials."""
    from experiments.sweep.ray_tune import run_study

    (RUNS / SWEEP).mkdir(parents=True, exist_ok=True)
    (RUNS / SWEEP / "stop").unlink(missing_ok=True)
    settings = {"room": 2, "program": PROGRAM, **changes}
    return run_study(study, RUNS, Draws(study, RUNS) if study.learns else None, stop=stop, **settings).states


# ------------------------------------------------------------------ trials


def test_each_end_of_a_training_has_its_consequence(two_cores: int, capsys: pytest.CaptureFixture[str]) -> None:
    agents = {"good": ("a",), "bad": ("a", "--fault", "bad"), "crash": ("a", "--fault", "crash")}
    often = {"often": ("a", "--fault", "often", "--steps", "11")}
    study = a_study(agents={**agents, **often}, seeds=(0,), retries=2)
    names = {agent: f"{agent}-E-v0-seed0" for agent in study.agents}
    states = run(study)
    assert states == {
        names["good"]: "done",
        names["bad"]: "failed",
        names["crash"]: "failed",
        names["often"]: "done",
    }
    assert {agent: n_begun(name) for agent, name in names.items()} == {"good": 1, "bad": 1, "crash": 3, "often": 6}
    messages = {row["agent"]: row["message"] for row in table()}
    assert messages == {"good": "", "bad": "there is no such setting", "crash": "killed by SIGKILL: begun", "often": ""}
    assert "4 trials: 2 done, 2 failed" in capsys.readouterr().out
    assert len(without_time(RUNS / names["often"])) == 11

    # Run again: finished trials stay as they are, whatever Tune's own files say or if they are lost.
    before = all_files(RUNS / names["good"])
    for path in (RUNS / SWEEP).glob("experiment_state*.json"):
        path.write_text(path.read_text().replace("TERMINATED", "RUNNING"))
    more = replace(study, agents=agents, seeds=(0, 1))
    assert run(more)["good-E-v0-seed1"] == "done"
    assert {agent: n_begun(names[agent]) for agent in agents} == {"good": 1, "bad": 2, "crash": 6}
    assert all_files(RUNS / names["good"]) == before


def test_a_trial_that_does_not_fit_is_refused(two_cores: int) -> None:
    import ray

    from experiments.sweep.ray_tune import connect

    ray.shutdown()
    with pytest.raises(ValueError, match=r"a trial takes 2 CPU, 0 GPU; this machine has 1 CPU, 0 GPU"):
        connect(None, 1, Resources(cpus=2))


# ------------------------------------------------------------------ what is killed


def test_runs_of_a_killed_node_are_the_same_as_undisturbed_ones(
    cluster: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"preset": "debug", "pictures": False, "tensorboard": False}
    common["trainer"] = {"n_total_env_steps": 6_000, "checkpoint_every": 200}
    study = Study("s", {"random": {}}, ("ContinuousCartPole-v0",), (0, 1, 2), common)
    killed: list[bool] = []

    def watch() -> bool:
        runs = [RUNS / trial.name for trial in study.trials()]
        if not killed and sum(newest_checkpoint(run) > 0 and is_locked(run) for run in runs) == 2:
            killed.append(True)
            cluster()
        return False

    states = run(study, watch, program=("python", "-m", "experiments.train"))
    assert killed
    assert set(states.values()) == {"done"}
    assert capsys.readouterr().out.count("attempted again") == 1
    for trial in study.trials():
        run_train(*trial.arguments(WHOLE))
        assert_same_run(RUNS / trial.name, WHOLE / trial.name)


LONG = """
name: s
agents: {random: {}}
environments: [ContinuousCartPole-v0]
common: {preset: debug, pictures: no, tensorboard: no, trainer: {n_total_env_steps: 20000, checkpoint_every: 200}}
"""
FIRST = RUNS / "random-ContinuousCartPole-v0-seed0"


def command(n_seeds: int = 1) -> subprocess.Popen[str]:
    """Start a study by its command."""
    Path("study.yaml").write_text(f"{LONG}seeds: {list(range(n_seeds))}\n")
    words = [sys.executable, "-m", "experiments.sweep", "study.yaml", "--cpus", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_study_whose_scheduler_is_killed_goes_on() -> None:
    second = RUNS / "random-ContinuousCartPole-v0-seed1"
    with command(n_seeds=2) as process:
        until(lambda: newest_checkpoint(second) > 0)
        process.kill()
    until(lambda: not is_locked(second))  # the training ends with its scheduler
    assert newest_checkpoint(second) < 20_000
    before = all_files(FIRST)
    with command(n_seeds=2) as process:
        printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert all_files(FIRST) == before
    run_train(*load(Path("study.yaml")).trials()[1].arguments(WHOLE))
    assert_same_run(second, WHOLE / second.name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_the_command_stops_and_goes_on(number: signal.Signals) -> None:
    with command() as process:
        until(lambda: newest_checkpoint(FIRST) > 0)
        process.send_signal(number)
        printed = process.communicate()[0]
    assert process.returncode == 75, printed
    assert "; the same command goes on" in printed
    assert (table()[0]["state"], table()[0]["message"]) == ("stopped", "")  # it has saved
    assert 0 < newest_checkpoint(FIRST) < 20_000
    assert not list(RUNS.glob("sweep/*.lease"))
    if number == signal.SIGINT:
        with command() as process:
            printed = process.communicate()[0]
        assert process.returncode == 0, printed
        assert table()[0]["state"] == "done"


# ------------------------------------------------------------------ searches

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is not installed")


@needs_optuna
def test_optuna_improves_and_depends_on_earlier_draws_only() -> None:
    kinds = {"a.b": Range(1e-5, 1.0, log=True), "n": Range(1, 64, log=True, integer=True), "c": Choice(("x", None, 2))}
    search = Search(40, kinds, method="optuna")
    known: list = []
    for i in range(search.n_trials):
        one = optuna_suggest(search, i, known)
        assert 1e-5 <= one["a.b"] == float(f"{one['a.b']:.4g}") <= 1
        assert one["n"] in range(1, 65)
        score = -abs(math.log10(one["a.b"]) + 2) - abs(math.log2(one["n"]) - 3) - (one["c"] is not None)
        known.append((one, None if i % 8 == 7 else score))  # some failed, or are unfinished
    scores = [score for _, score in known if score is not None]
    assert sum(scores[-10:]) / 10 > sum(scores[:10]) / 10 + 1
    assert optuna_suggest(search, 39, json.loads(json.dumps(known[:39]))) == known[39][0]


@needs_optuna
def test_a_search_that_was_stopped_goes_on(two_cores: int) -> None:
    search = Search(3, {"steps": Range(3, 30, integer=True)}, method="optuna")
    study = a_study(common={"pause": 0.05}, search=search)
    until_s = time.monotonic() + 600

    def stop() -> bool:
        assert time.monotonic() < until_s
        return any(RUNS.glob("*/summary.json"))

    assert "stopped" in run(study, stop).values()
    draws = json.loads((RUNS / "draws.json").read_text())["draws"]
    assert set(run(study).values()) == {"done"}
    after = json.loads((RUNS / "draws.json").read_text())["draws"]
    assert after[: len(draws)] == draws
    assert len(after) == 3
    assert [(float(row["steps"]), row["state"]) for row in table()] == [
        (draw["settings"]["steps"], "done") for draw in after for _ in range(2)
    ]
