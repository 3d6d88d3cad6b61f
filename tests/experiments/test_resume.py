"""A run that was stopped and goes on is the run that was never stopped, to the last bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from layeredrl.collector import Collector
from layeredrl.storage import Replay
from tests.experiments import processes
from tests.experiments.commands import (
    QUICK,
    all_files,
    assert_same,
    assert_same_run,
    newest,
    read_metrics,
    read_state,
    run_evaluate,
    run_train,
    signal_at,
    without_time,
)
from tests.experiments.conftest import Refusal
from tests.experiments.tasks import Drift
from tests.loggers.wandb_reader import read_offline_run, read_offline_runs
from tests.recording import stored

AGENTS = [
    ("pets",),
    # The reward is learned, too; the noise that candidates meet follows from the state of a generator.
    ("pets", "--planner", "mppi", "--common-noise", "--env", "OwnDrift-v0"),
    ("sac",),
    ("sac", "--algorithm", "td3"),
    ("goals", "--env", "Maze2D-Medium-v0"),
    ("splates", "--env", "Maze2D-Medium-v0"),
    pytest.param(("dads", "--env", "Maze2D-Medium-v0"), marks=pytest.mark.slow),
    pytest.param(("dads", "--env", "Maze2D-Medium-v0", "--importance-clip", "10"), marks=pytest.mark.slow),
    pytest.param(("splates", "--env", "Maze2D-Medium-v0", "--encoder", "learned"), marks=pytest.mark.slow),
    pytest.param(("splates-goals", "--env", "Maze2D-Medium-v0"), marks=pytest.mark.slow),
    pytest.param(("diayn", "--env", "Maze2D-Medium-v0"), marks=pytest.mark.slow),
    ("random",),
    ("tests.experiments.own_agents:Hold",),  # is stopped in the midst of an action
]
"""Agents that come later join by one line."""

# One environment with the first test of these agents, four with the second; the other pairs are among the slow tests.
ONE = pytest.mark.parametrize("n_envs", [1, pytest.param(4, marks=pytest.mark.slow)])
FOUR = pytest.mark.parametrize("n_envs", [pytest.param(1, marks=pytest.mark.slow), 4])

ROOT = Path(__file__).parents[2]
STEPS = "--trainer.n-total-env-steps"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Gives the folder of a run that was never stopped, by its arguments; each is trained once."""
    runs = tmp_path_factory.mktemp("whole")

    @cache
    def train(*arguments: object) -> Path:
        name = str(len(list(runs.iterdir())))
        run_train(*arguments, "--runs-dir", runs, "--name", name)
        return runs / name

    return train


def stop_at(n_total_env_steps: int, *arguments: object, number: signal.Signals = signal.SIGTERM) -> None:
    """Train until a signal arrives in the midst of a step."""
    with signal_at(n_total_env_steps, number), pytest.raises(SystemExit) as stop:
        run_train(*arguments)
    assert stop.value.code == 75


# ------------------------------------------------------------------ the same, to the last bit


@pytest.mark.parametrize("agent", AGENTS, ids=" ".join)
@ONE
def test_half_and_half_is_the_whole(agent: tuple[str, ...], n_envs: int, whole: Any, capsys: Any) -> None:
    n = 80 if n_envs == 1 else 128
    arguments = (*agent, *QUICK, "--n-envs", n_envs, "--seed", 3)
    expected = whole(*arguments, STEPS, n)
    run_train(*arguments, "--name", "r", STEPS, n // 2)
    capsys.readouterr()
    run_train(*arguments, "--name", "r", STEPS, n)
    assert f"runs/r goes on at {n // 2} of {n} environment steps" in capsys.readouterr().out
    assert_same_run(Path("runs/r"), expected)


@pytest.mark.parametrize("agent", AGENTS, ids=" ".join)
@FOUR
def test_signals_in_the_midst_of_episodes_change_nothing(
    agent: tuple[str, ...], n_envs: int, whole: Any, capsys: Any
) -> None:
    n = 80 if n_envs == 1 else 128
    arguments = (*agent, *QUICK, "--n-envs", n_envs, "--seed", 3, STEPS, n)
    expected = whole(*arguments)
    for at, number in [(7 * n_envs, signal.SIGTERM), (23 * n_envs, signal.SIGINT)]:  # before and after the first fit
        capsys.readouterr()
        stop_at(at, *arguments, "--name", "r", number=number)
        told = f"stopped by {number.name} at {at + n_envs} of {n} environment steps; the same command goes on"
        assert told in capsys.readouterr().out
        assert int(newest(Path("runs/r")).name) == at + n_envs
    run_train(*arguments, "--name", "r")
    assert_same_run(Path("runs/r"), expected)


@FOUR
def test_half_cheetah(n_envs: int) -> None:
    pytest.importorskip("mujoco")
    arguments = ("pets", *QUICK, "--env", "HalfCheetah-v5", "--n-envs", n_envs, STEPS, 60)
    run_train(*arguments, "--name", "whole")
    stop_at(32, *arguments, "--name", "r")
    run_train(*arguments, "--name", "r")
    assert_same_run(Path("runs/r"), Path("runs/whole"))


@pytest.mark.parametrize("planner", ["cem", "random_shooting"])
def test_other_planners(planner: str) -> None:
    arguments = ("pets", *QUICK, "--planner", planner, f"--{planner.replace('_', '-')}.n-samples", 50, STEPS, 40)
    run_train(*arguments, "--name", "whole")
    stop_at(30, *arguments, "--name", "r")
    run_train(*arguments, "--name", "r")
    assert_same_run(Path("runs/r"), Path("runs/whole"))


def test_discrete_actions_and_a_holdout() -> None:
    arguments = ("random", *QUICK, "--env", "CartPole-v1", "--n-envs", 2, STEPS, 160)
    run_train(*arguments, "--name", "whole")
    stop_at(30, *arguments, "--name", "r")
    run_train(*arguments, "--name", "r")
    assert_same_run(Path("runs/r"), Path("runs/whole"))
    arguments = ("pets", *QUICK, "--learning.fit.holdout", 0.2, "--learning.replay-size", 33)
    run_train(*arguments, "--name", "whole2")
    stop_at(45, *arguments, "--name", "r2")
    run_train(*arguments, "--name", "r2")
    assert_same_run(Path("runs/r2"), Path("runs/whole2"))


def test_environments_in_processes_of_their_own_go_on_alike() -> None:
    arguments = ("random", *QUICK, "--n-envs", 2, STEPS, 160)
    run_train(*arguments, "--name", "sync")
    stop_at(30, *arguments, "--vectorization", "async", "--name", "r")
    run_train(*arguments, "--vectorization", "async", "--name", "r")
    assert_same_run(Path("runs/r"), Path("runs/sync"))


def test_evaluations_in_between_change_nothing() -> None:
    looks = ("--trainer.eval-every", 20, "--trainer.eval-episodes", 2, STEPS, 80)
    arguments = ("pets", *QUICK, *looks)
    run_train(*arguments, "--name", "whole")
    for at in (19, 30, 55):  # the first one in a step that is followed by a fit and an evaluation
        stop_at(at, *arguments, "--name", "r")
    run_train(*arguments, "--name", "r")
    assert_same_run(Path("runs/r"), Path("runs/whole"))
    assert sum(bool(row["eval/episode_return"]) for row in read_metrics(Path("runs/r"))) == 4


def test_what_is_not_saved_would_be_missed(whole: Any) -> None:
    """The comparison sees a single number that is another one, in every part of the state."""
    state = read_state(whole("pets", *QUICK, "--n-envs", 1, "--seed", 3, STEPS, 80))
    other = read_state(whole("pets", *QUICK, "--n-envs", 1, "--seed", 3, STEPS, 80))
    assert_same(state, other)
    level = state["agent"]["0"]
    for tensor in (
        level["world"]["objective.state_std"] if "objective.state_std" in level["world"] else level["generator"],
        level["model_optimizer"]["state"][0]["exp_avg"],
        level["generator"],
        state["experience"]["0"]["rows"]["rows"]["obs"],
        state["collector"]["carry"]["levels"][0]["memory"]["until_report"],
        state["collector"]["running"]["actions"][0],
        state["globals"]["torch"],
    ):
        before = tensor.view(-1)[0].clone()
        tensor.view(-1)[0] += 1
        with pytest.raises(AssertionError):
            assert_same(state, other)
        tensor.view(-1)[0] = before
    assert_same(state, other)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["pets", "random"])
@pytest.mark.parametrize("n_envs", [1, 4])
def test_command_lines_that_are_interrupted(agent: str, n_envs: int) -> None:
    """As a person does it: `python -m experiments.train`, Ctrl-C, and again."""
    arguments = (agent, *QUICK, "--n-envs", n_envs, STEPS, 2000, "--runs-dir", Path("runs").absolute())
    assert _command(*arguments, "--name", "whole").wait(120) == 0
    for number in (signal.SIGTERM, signal.SIGINT):
        begun = time.time()
        process = _command(*arguments, "--name", "r")
        _wait_for(Path("runs/r/metrics.csv"))
        _wait_for(Path("runs/r/config.json"), written_after=begun)
        process.send_signal(number)
        assert process.wait(60) == 75
    assert _command(*arguments, "--name", "r").wait(120) == 0
    assert_same_run(Path("runs/r"), Path("runs/whole"))


@pytest.mark.parametrize(("agent", "n_envs"), [pytest.param("pets", 1, marks=pytest.mark.slow), ("random", 4)])
def test_processes_that_are_interrupted(agent: str, n_envs: int) -> None:
    arguments = (agent, *QUICK, "--n-envs", n_envs, STEPS, 400, "--trainer.checkpoint-every", 50)
    assert processes.run(*arguments, "--name", "whole") == 0
    stopped = []
    for number in (signal.SIGTERM, signal.SIGINT):
        begun = time.time()
        process = processes.start(*arguments, "--name", "r")
        _wait_for(Path("runs/r/metrics.csv"))  # which the second finds
        _wait_for(Path("runs/r/config.json"), written_after=begun)
        os.kill(process.pid, number)
        stopped.append(processes.finish(process))
    assert stopped[0] == 75, Path(processes.LOG).read_text()
    assert set(stopped) <= {75, 0}  # the second may come too late
    assert processes.run(*arguments, "--name", "r") == 0
    assert_same_run(Path("runs/r"), Path("runs/whole"))


def _command(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.train", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for(path: Path, written_after: float = 0.0, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and path.stat().st_mtime > written_after) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > written_after


# ------------------------------------------------------------------ the logs


def in_the_next_second() -> None:
    """TensorBoard and wandb name what they write by the second: of two parts, one would take the other's place."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_tensorboard_shows_one_run() -> None:
    arguments = ("pets", *(a for a in QUICK if a != "--no-tensorboard"), "--trainer.eval-every", 20, STEPS, 80)
    run_train(*arguments, "--name", "whole")
    stop_at(30, *arguments, "--name", "r")
    in_the_next_second()
    run_train(*arguments, "--name", "r")
    assert _scalars(Path("runs/r")) == _scalars(Path("runs/whole"))
    assert len(_scalars(Path("runs/r"))["eval/episode_return"]) == 4


@pytest.fixture
def lonely_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No key, no settings of this machine's user, nothing left of the test before."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


def _merged(folder: Path) -> dict[int, dict[str, Any]]:
    """What `wandb sync` of all parts makes: a record by its number, the first that has come."""
    rows: dict[int, dict[str, Any]] = {}
    for run in read_offline_runs(folder):
        for row in run.rows:
            kept = {key: value for key, value in row.items() if not key.startswith(("_", "time/"))}
            rows.setdefault(row["_step"], kept)
    return rows


@pytest.mark.usefixtures("lonely_wandb")
def test_wandb_gets_one_run() -> None:
    arguments = ("pets", *QUICK, "--wandb", "offline", STEPS, 80)
    run_train(*arguments, "--name", "whole")
    stop_at(47, *arguments, "--name", "r")
    in_the_next_second()
    run_train(*arguments, "--name", "r")
    parts = read_offline_runs(Path("runs/r"))
    assert len(parts) == 2
    assert len({part.run_id for part in parts}) == 1
    assert _merged(Path("runs/r")) == _merged(Path("runs/whole"))
    assert read_offline_run(Path("runs/whole")).run_id != parts[0].run_id
    run_ids = [read_state(Path("runs/r"))["loggers"]["WandbLogger"]["run_id"]]
    assert run_ids == [parts[0].run_id]


@pytest.mark.usefixtures("lonely_wandb")
def test_a_longer_run_logs_beyond_the_pictures_of_the_shorter_one() -> None:
    arguments = ("random", "--preset", "debug", "--no-tensorboard", "--wandb", "offline", "--name", "r")
    run_train(*arguments, STEPS, 60)
    in_the_next_second()
    run_train(*arguments, STEPS, 120)
    rows = _merged(Path("runs/r"))
    metrics = [row for row in rows.values() if "env/episode_return" in row]
    assert [row["n_total_env_steps"] for row in metrics] == [
        int(row["n_total_env_steps"]) for row in read_metrics(Path("runs/r"))
    ]
    assert sum("env/learning_curve" in "".join(row) for row in rows.values()) == 2


# ------------------------------------------------------------------ environments that do not repeat themselves


class Restless(Drift):
    """Begins each episode somewhere else, whatever the seed."""

    n_resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        Restless.n_resets += 1
        self._point = np.array([Restless.n_resets / 100, 0.0])
        return self._observe(), {}


@pytest.mark.parametrize("agent", ["pets", "tests.experiments.own_agents:Hold"])
def test_an_environment_that_does_not_repeat_itself_begins_another_episode(agent: str) -> None:
    gym.register("Restless-v0", Restless, max_episode_steps=15)
    arguments = (agent, *QUICK, "--env", "Restless-v0", "--n-envs", 2, STEPS, 100, "--name", "r")
    stop_at(50, *arguments)
    before = read_state(Path("runs/r"))
    assert before["collector"]["lengths"].min() > 0  # both are in the midst of an episode
    with pytest.warns(RuntimeWarning, match="environment . ended in another observation") as warned:
        run_train(*arguments)
    told = {str(warning.message)[:100] for warning in warned}
    assert len(told) == 2
    state = read_state(Path("runs/r"))
    assert state["n_total_env_steps"] == 100
    assert state["collector"]["n_abandoned"] == 2
    if agent != "pets":
        return
    replay = Replay(1000 * 1000, 2)
    replay.load_state_dict(state["experience"]["0"])
    for i in range(2):
        rows = stored(replay, i)
        assert len(rows) == 50
        obs, obs_next = rows.obs, rows.obs_next
        over = rows.terminated | rows.truncated
        assert rows.truncated[25]  # the last one before the stop
        joined = (obs_next[:-1] == obs[1:]).all(1)
        np.testing.assert_array_equal(joined, ~over[:-1])  # nothing is stored across, nothing is missing
    logged = {int(row["n_total_env_steps"]) for row in read_metrics(Path("runs/r")) if row["env/episode_length"]}
    assert max(logged) > 52


# ------------------------------------------------------------------ what the same command does


def test_a_finished_run_says_so_and_changes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("random", "--preset", "debug", "--name", "r")
    run_train(*arguments)
    before = all_files(tmp_path)
    capsys.readouterr()
    run_train(*arguments)
    told = capsys.readouterr().out
    assert "runs/r is finished, with 60 environment steps" in told
    assert "--fresh starts over" in told
    assert all_files(tmp_path) == before


def test_a_finished_run_goes_on_to_more_steps_and_new_pictures() -> None:
    arguments = ("random", "--preset", "debug", "--no-tensorboard", "--name", "r")
    run_train(*arguments, STEPS, 30)
    curve = Path("runs/r/learning_curve.png").read_bytes()
    run_train(*arguments, STEPS, 200)
    assert Path("runs/r/learning_curve.png").read_bytes() != curve
    assert json.loads(Path("runs/r/summary.json").read_text())["environment steps"] == "200"


def test_pictures_in_between_do_not_change_what_is_learned(whole: Any) -> None:
    arguments = ("pets", "--preset", "debug", "--no-tensorboard", "--seed", 3, "--n-envs", 1)
    expected = whole("pets", *QUICK, "--n-envs", 1, "--seed", 3, STEPS, 80)
    run_train(*arguments, STEPS, 40, "--name", "r")
    run_train(*arguments, STEPS, 80, "--name", "r", "--no-pictures")
    assert_same_run(Path("runs/r"), expected)


def test_a_run_that_was_killed_before_its_pictures_still_gets_them() -> None:
    run_train("random", *QUICK, "--name", "r")
    Path("runs/r/summary.json").unlink()
    run_train("random", "--preset", "debug", "--no-tensorboard", "--name", "r")
    assert Path("runs/r/learning_curve.png").exists()
    assert Path("runs/r/summary.json").exists()


def test_what_is_free_may_change(whole: Any) -> None:
    expected = whole("random", *QUICK, "--n-envs", 1, "--seed", 3, STEPS, 80)
    run_train("random", *QUICK, "--seed", 3, STEPS, 40, "--name", "r")
    shutil.move("runs/r", "elsewhere")
    changed = ("--trainer.checkpoint-every", 7, "--runs-dir", ".", "--name", "elsewhere")
    run_train("random", *QUICK, "--seed", 3, STEPS, 80, *changed)
    assert without_time(Path("elsewhere")) == without_time(expected)
    run_evaluate("elsewhere", "--episodes", 1)


def test_other_settings_are_refused_each_by_name(refusal: Refusal) -> None:
    run_train("pets", *QUICK, "--name", "r", STEPS, 20)
    for changes, told in [
        (["--seed", 1], ["seed was 0 and is 1"]),
        (["--n-envs", 4], ["n_envs was 1 and is 4"]),
        (["--discount", 0.5, "--planner", "cem"], ["discount was 1.0 and is 0.5", "planner was 'icem' and is 'cem'"]),
        (["--model.hidden", 8, 8], ["settings.model.hidden was [16] and is [8, 8]"]),
        (["--trainer.eval-every", 5], ["trainer.eval_every was 0 and is 5"]),
        (["--env", "OwnDrift-v0"], ["env was 'ContinuousCartPole-v0' and is 'OwnDrift-v0'"]),
    ]:
        line = refusal(run_train, "pets", *QUICK, "--name", "r", STEPS, 20, *changes)
        assert "runs/r holds a run with other settings" in line
        assert "--fresh replaces it, --name chooses another folder" in line
        for part in told:
            assert part in line
    assert "agent was 'pets' and is 'random'" in refusal(run_train, "random", *QUICK, "--name", "r", STEPS, 20)


@pytest.mark.parametrize("arguments", [(), ("--fresh",), (STEPS, 5)])
def test_a_folder_in_use_is_refused(arguments: tuple[object, ...], refusal: Refusal) -> None:
    """Also for --fresh, which would delete what the other process writes."""
    run_train("random", *QUICK, "--name", "r", STEPS, 20)
    holder = (
        "import fcntl, sys; f = open('runs/r/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-S", "-c", holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        line = refusal(run_train, "random", *QUICK, "--name", "r", STEPS, 20, *arguments)
    assert line == "error: runs/r is in use: another process trains this run\n"
    run_train("random", *QUICK, "--name", "r", STEPS, 20, *arguments)


def test_fresh_starts_over(whole: Any) -> None:
    expected = whole("random", *QUICK, "--n-envs", 1, "--seed", 3, STEPS, 80)
    stop_at(50, "random", *QUICK, "--seed", 3, STEPS, 80, "--name", "r")
    run_train("random", *QUICK, "--seed", 3, STEPS, 80, "--name", "r", "--fresh")
    assert_same_run(Path("runs/r"), expected)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew() -> None:
    quick = [a for a in QUICK if a != "--no-tensorboard"]
    arguments = ("random", *quick, STEPS, 80, "--trainer.checkpoint-every", 1000)
    run_train(*arguments, "--name", "whole")
    real_step = Collector.step

    def step(collector: Collector, *, explore: bool) -> Any:
        if collector.n_total_env_steps == 60:
            os._exit(9)
        return real_step(collector, explore=explore)

    pid = os.fork() if not torch.cuda.is_available() else None
    if pid is None:
        pytest.skip("a process that has used a GPU cannot be forked")
    if pid == 0:
        Collector.step = step
        try:
            run_train(*arguments, "--name", "r")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(read_metrics(Path("runs/r"))) > 0  # that is what has to go
    assert not list(Path("runs/r").glob("checkpoints/0*"))
    in_the_next_second()
    run_train(*arguments, "--name", "r")
    assert_same_run(Path("runs/r"), Path("runs/whole"))
    assert _scalars(Path("runs/r")) == _scalars(Path("runs/whole"))


def test_a_process_that_was_killed_at_once_leaves_a_folder_to_begin_in() -> None:
    Path("runs/r").mkdir(parents=True)
    Path("runs/r/lock").touch()
    Path("runs/r/config.json.tmp").write_text('{"agent": "ra')
    run_train("random", *QUICK, "--name", "r")
    assert re.fullmatch(r"0{10}60", newest(Path("runs/r")).name)
