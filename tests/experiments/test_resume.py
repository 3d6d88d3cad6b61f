"""A run that was stopped and resumed equals one that was never stopped, to the last bit."""

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
from tests.loggers.wandb_reader import read_offline_runs
from tests.recording import stored

MAZE = ("--env", "Maze2D-Medium-v0")


def _small(planner: str) -> tuple[str, ...]:
    """Options that choose a planner, with few and short candidates."""
    name = planner.replace("_", "-")
    return ("--planner.kind", planner, f"--planner.{name}.n-samples", "10", f"--planner.{name}.horizon", "4")


AGENTS = {
    ("pets",): 4,
    # The reward is learned, too, and the noise that candidates share follows from the state of a generator.
    ("pets", *_small("mppi"), "--common-noise", "--env", "OwnDrift-v0"): 1,
    (
        *("pets", *_small("cem"), "--planner.cem.n-elites", "3"),
        *("--learning.fit.holdout", "0.2", "--learning.replay-size", "33", "--value", "--discount", "0.9"),
    ): 1,
    ("sac",): 1,
    ("mbpo", "--env", "Pendulum-v1", "--imagination.bound", "macura"): 1,
    ("loop", "--env", "Pendulum-v1"): 1,
    ("tdmpc2",): 4,
    ("sac", "--algorithm", "td3"): 1,
    ("goals", *MAZE): 4,
    ("splates", *MAZE): 4,
    ("random", "--env", "CartPole-v1"): 1,
    ("tests.experiments.own_agents:Hold",): 4,  # is stopped during an action
}
"""Agents of the quick tests, and their numbers of environments; slow tests have the other number."""
SLOW_AGENTS = [
    ("pets", *_small("random_shooting")),
    ("dads", *MAZE),
    ("dads", *MAZE, "--importance-clip", "10"),
    ("splates", *MAZE, "--encoder", "learned"),
    ("splates-goals", *MAZE),
    ("diayn", *MAZE),
]

STEPS = "--trainer.n-total-env-steps"
RANDOM = ("random", *QUICK, "--seed", 3, STEPS, 80)
ROOT = Path(__file__).parents[2]
FOLDER = Path("runs/r")


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
    """Train until a signal arrives during a step."""
    with signal_at(n_total_env_steps, number), pytest.raises(SystemExit) as stop:
        run_train(*arguments)
    assert stop.value.code == 75


# ------------------------------------------------------------------ the same, to the last bit


def _cases() -> list[Any]:
    cases = [pytest.param(agent, n, id=f"{' '.join(agent)}-{n}") for agent, n in AGENTS.items()]
    slow = [(agent, 5 - n) for agent, n in AGENTS.items()] + [(agent, n) for agent in SLOW_AGENTS for n in (1, 4)]
    return cases + [pytest.param(*case, id=f"{' '.join(case[0])}-{case[1]}", marks=pytest.mark.slow) for case in slow]


@pytest.mark.parametrize(("agent", "n_envs"), _cases())
def test_signals_and_a_finished_part_change_nothing(
    agent: tuple[str, ...], n_envs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal before the first fit, an end in the middle, and a signal after it."""
    half = 26 if n_envs == 1 else 36
    arguments = (*agent, *QUICK, "--n-envs", n_envs, "--seed", 3)
    run_train(*arguments, "--name", "whole", STEPS, 2 * half)
    for number, at, n in [(signal.SIGTERM, 8, half), (None, half, half), (signal.SIGINT, half + 8, 2 * half)]:
        capsys.readouterr()
        if number is None:
            run_train(*arguments, "--name", "r", STEPS, n)
        else:
            stop_at(at, *arguments, "--name", "r", STEPS, n, number=number)
            line = f"stopped by {number.name} at {at + n_envs} of {n} environment steps; the same command goes on"
            assert line in capsys.readouterr().out
            at += n_envs
        assert int(newest(FOLDER).name) == at
    run_train(*arguments, "--name", "r", STEPS, 2 * half)
    assert f"runs/r goes on at {half + 8 + n_envs} of {2 * half} environment steps" in capsys.readouterr().out
    assert_same_run(FOLDER, Path("runs/whole"))


@pytest.mark.parametrize("n_envs", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_half_cheetah(n_envs: int) -> None:
    pytest.importorskip("mujoco")
    arguments = ("pets", *QUICK, "--env", "HalfCheetah-v5", "--n-envs", n_envs, STEPS, 60)
    run_train(*arguments, "--name", "whole")
    stop_at(32, *arguments, "--name", "r")
    run_train(*arguments, "--name", "r")
    assert_same_run(FOLDER, Path("runs/whole"))


def test_environments_in_processes_of_their_own_are_resumed_alike() -> None:
    arguments = ("random", *QUICK, "--n-envs", 2, STEPS, 100)
    run_train(*arguments, "--name", "sync")
    stop_at(30, *arguments, "--vectorization", "async", "--name", "r")
    run_train(*arguments, "--vectorization", "async", "--name", "r")
    assert_same_run(FOLDER, Path("runs/sync"))


@pytest.mark.usefixtures("blank_figures")
def test_evaluations_and_pictures_between_parts_change_nothing() -> None:
    evaluations = ("--trainer.eval-every", 20, "--trainer.eval-episodes", 1, "--no-tensorboard")
    arguments = ("pets", "--preset", "debug", *evaluations, "--name")
    run_train(*arguments, "whole", "--no-pictures", STEPS, 60)
    stop_at(19, *arguments, "r", STEPS, 40)  # in a step that is followed by a fit and an evaluation
    run_train(*arguments, "r", STEPS, 40)  # with pictures
    stop_at(50, *arguments, "r", STEPS, 60)
    run_train(*arguments, "r", "--no-pictures", STEPS, 60)
    assert_same_run(FOLDER, Path("runs/whole"))
    assert sum(bool(row["eval/episode_return"]) for row in read_metrics(FOLDER)) == 3


def test_the_comparison_of_states_sees_every_number(trained: Path) -> None:
    state, other = read_state(trained), read_state(trained)
    assert_same(state, other)
    learner = state["agent"]["planner"]["learner"]
    for tensor in (
        next(iter(learner["world"].values())),
        learner["optimizer"]["state"][0]["exp_avg"],
        learner["generator"],
        state["experience"]["planner"]["rows"]["rows"]["obs"],
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
    """`python -m experiments.train`, Ctrl-C, and again."""
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
    assert_same_run(FOLDER, Path("runs/whole"))


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
    assert_same_run(FOLDER, Path("runs/whole"))


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


@pytest.mark.usefixtures("lonely_wandb")
def test_tensorboard_and_wandb_show_one_run() -> None:
    quick = [a for a in QUICK if a != "--no-tensorboard"]
    arguments = ("pets", *quick, "--wandb", "offline", "--trainer.eval-every", 20, "--trainer.eval-episodes", 1)
    run_train(*arguments, STEPS, 60, "--name", "whole")
    stop_at(27, *arguments, STEPS, 60, "--name", "r")
    in_the_next_second()
    run_train(*arguments, STEPS, 60, "--name", "r")
    assert _scalars(FOLDER) == _scalars(Path("runs/whole"))
    assert len(_scalars(FOLDER)["eval/episode_return"]) == 3
    (whole,), parts = read_offline_runs(Path("runs/whole")), read_offline_runs(FOLDER)
    assert len(parts) == 2
    assert {part.run_id for part in parts} == {read_state(FOLDER)["loggers"]["WandbLogger"]["run_id"]}
    assert whole.run_id != parts[0].run_id
    assert _merged(FOLDER) == _merged(Path("runs/whole"))


def _merged(folder: Path) -> dict[int, dict[str, Any]]:
    """Rows by number as `wandb sync` of all parts merges them: the first of each number is kept."""
    rows: dict[int, dict[str, Any]] = {}
    for run in read_offline_runs(folder):
        for row in run.rows:
            kept = {key: value for key, value in row.items() if not key.startswith(("_", "time/"))}
            rows.setdefault(row["_step"], kept)
    return rows


@pytest.mark.usefixtures("lonely_wandb", "without_video", "blank_figures")
def test_a_longer_run_logs_beyond_the_pictures_of_the_shorter_one() -> None:
    arguments = ("random", "--preset", "debug", "--no-tensorboard", "--wandb", "offline", "--name", "r")
    run_train(*arguments, STEPS, 60)
    in_the_next_second()
    run_train(*arguments, STEPS, 120)
    rows = _merged(FOLDER)
    metrics = [row for row in rows.values() if "env/episode_return" in row]
    assert [row["n_total_env_steps"] for row in metrics] == [
        int(row["n_total_env_steps"]) for row in read_metrics(FOLDER)
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
    arguments = (agent, *QUICK, "--env", "Restless-v0", "--n-envs", 2, STEPS, 84, "--name", "r")
    stop_at(50, *arguments)
    assert read_state(FOLDER)["collector"]["lengths"].min() > 0  # both are in the middle of an episode
    with pytest.warns(RuntimeWarning, match="environment . ended in another observation") as warned:
        run_train(*arguments)
    assert len({str(warning.message)[:100] for warning in warned}) == 2
    state = read_state(FOLDER)
    assert state["n_total_env_steps"] == 84
    assert state["collector"]["n_abandoned"] == 2
    if agent != "pets":
        return
    replay = Replay(10_000, 2)
    replay.load_state_dict(state["experience"]["planner"])
    for i in range(2):
        rows = stored(replay, i)
        assert len(rows) == 42
        over = rows.terminated | rows.truncated
        assert rows.truncated[25]  # the last one before the stop
        joined = (rows.obs_next[:-1] == rows.obs[1:]).all(1)
        np.testing.assert_array_equal(joined, ~over[:-1])  # nothing is stored across episodes, nothing is missing
    logged = {int(row["n_total_env_steps"]) for row in read_metrics(FOLDER) if row["env/episode_length"]}
    assert max(logged) > 52


# ------------------------------------------------------------------ effects of the same command


@pytest.mark.usefixtures("without_video")
def test_a_finished_run_gets_missing_pictures_and_more_steps_and_is_else_unchanged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("random", "--preset", "debug", "--name", "r", STEPS)
    run_train(*arguments, 30, "--no-pictures")
    (FOLDER / "summary.json").unlink()  # as if it was killed before its pictures
    run_train(*arguments, 30)
    curve = (FOLDER / "learning_curve.png").read_bytes()
    assert (FOLDER / "summary.json").exists()
    run_train(*arguments, 100)
    assert (FOLDER / "learning_curve.png").read_bytes() != curve
    assert json.loads((FOLDER / "summary.json").read_text())["environment steps"] == "100"
    before = all_files(tmp_path)
    capsys.readouterr()
    run_train(*arguments, 100)
    output = capsys.readouterr().out
    assert "runs/r is finished, with 100 environment steps" in output
    assert "--fresh starts over" in output
    assert all_files(tmp_path) == before


def test_free_settings_may_change(whole: Any) -> None:
    run_train(*RANDOM[:-1], 40, "--name", "r")
    shutil.move("runs/r", "elsewhere")
    run_train(*RANDOM, "--trainer.checkpoint-every", 7, "--runs-dir", ".", "--name", "elsewhere")
    assert without_time(Path("elsewhere")) == without_time(whole(*RANDOM))
    run_evaluate("elsewhere", "--episodes", 1)


def test_other_settings_are_refused_each_by_name(trained: Path, refusal: Refusal) -> None:
    arguments = (*QUICK, "--runs-dir", trained.parent, "--name", trained.name)
    for changes, parts in [
        (["--seed", 1], ["seed was 0 and is 1"]),
        (["--n-envs", 4], ["n_envs was 1 and is 4"]),
        (["--discount", 0.5, "--planner.kind", "cem"], ["discount was 1.0 and is 0.5", "kind was 'icem' and is 'cem'"]),
        (["--model.hidden", 8, 8], ["settings.model.hidden was [16] and is [8, 8]"]),
        (["--trainer.eval-every", 5], ["trainer.eval_every was 0 and is 5"]),
        (["--env", "OwnDrift-v0"], ["env was 'ContinuousCartPole-v0' and is 'OwnDrift-v0'"]),
    ]:
        line = refusal(run_train, "pets", *arguments, *changes)
        assert f"{trained} holds a run with other settings" in line
        assert "--fresh replaces it, --name chooses another folder" in line
        for part in parts:
            assert part in line
    assert "agent was 'pets' and is 'random'" in refusal(run_train, "random", *arguments)


def test_a_folder_in_use_is_refused(refusal: Refusal) -> None:
    """Also for --fresh, which would delete files that the other process writes."""
    arguments = ("random", *QUICK, "--name", "r", STEPS, 20)
    run_train(*arguments)
    holder = (
        "import fcntl, sys; f = open('runs/r/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-S", "-c", holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        for more in ((), ("--fresh",), (STEPS, 5)):
            line = refusal(run_train, *arguments, *more)
            assert line == "error: runs/r is in use: another process trains this run\n"
    run_train(*arguments, "--fresh")


def test_fresh_starts_over(whole: Any) -> None:
    stop_at(50, *RANDOM, "--name", "r")
    (FOLDER / "left.txt").touch()
    run_train(*RANDOM, "--name", "r", "--fresh")
    assert_same_run(FOLDER, whole(*RANDOM))
    assert not (FOLDER / "left.txt").exists()


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
    assert len(read_metrics(FOLDER)) > 0  # that is what has to go
    assert not list(FOLDER.glob("checkpoints/0*"))
    in_the_next_second()
    run_train(*arguments, "--name", "r")
    assert_same_run(FOLDER, Path("runs/whole"))
    assert _scalars(FOLDER) == _scalars(Path("runs/whole"))


def test_a_process_that_was_killed_at_once_leaves_a_folder_to_begin_in() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "lock").touch()
    (FOLDER / "config.json.tmp").write_text('{"agent": "ra')
    run_train("random", *QUICK, "--name", "r")
    assert re.fullmatch(r"0{10}60", newest(FOLDER).name)
