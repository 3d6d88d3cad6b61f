import math
import multiprocessing
import re
from pathlib import Path

import imageio.v3 as iio
import pytest

import envs  # noqa: F401  registers cart-pole
from experiments.run.building import build_agent
from experiments.run.config import from_json, parse
from layeredrl.collector import Collector
from layeredrl.planners import ICEM
from layeredrl.storage import Checkpoints
from tests.experiments.commands import QUICK, episode_returns, read_metrics, run_train, without_time

PETS_FOLDER = Path("runs/pets-ContinuousCartPole-v0-0")


def test_a_run_leaves_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_train("pets", "--preset", "debug")
    files = {path.name for path in PETS_FOLDER.iterdir()}
    pictures = {"learning_curve.png", "model.png", "policy.gif"}
    others = {"code.json", "config.json", "lock", "run_id", "summary.json", "tensorboard"}
    assert files == {"metrics.csv", "checkpoints"} | others | pictures
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert list((PETS_FOLDER / "tensorboard").iterdir())
    for name in ("learning_curve.png", "model.png"):
        assert iio.imread(PETS_FOLDER / name).shape[2] in (3, 4)
    closing = capsys.readouterr().out.partition("Run finished")[2]
    for name in files - others:
        assert str(PETS_FOLDER / name) in closing
    # The video is of an episode of its own, whose return is its length; every second frame makes 25 a second of 50.
    length = float(closing.partition(f"{PETS_FOLDER / 'policy.gif'} (return ")[2].partition(")")[0])
    frames = iio.imread(PETS_FOLDER / "policy.gif")
    assert frames.shape == (math.ceil((length + 1) / 2), 300, 480, 3)
    assert iio.immeta(PETS_FOLDER / "policy.gif", index=0)["duration"] == 40


def test_settings_are_kept(trained: Path) -> None:
    config = parse(["pets", *QUICK, "--runs-dir", str(trained.parent), "--name", "trained"])
    assert from_json(trained / "config.json") == config
    state = Checkpoints(trained / "checkpoints").load()
    assert state["n_total_env_steps"] == config.trainer.n_total_env_steps == 60
    build_agent(config).load_state_dict(state["agent"])


def test_metrics_hold_every_finished_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    real_step = Collector.step

    def step(collector, *, explore):
        episodes = real_step(collector, explore=explore)
        ended.extend(episodes)
        return episodes

    monkeypatch.setattr(Collector, "step", step)
    run_train("random", *QUICK, "--n-envs", 3, "--trainer.n-total-env-steps", 150, "--name", "r")
    rows = read_metrics(Path("runs/r"))
    assert next(iter(rows[0])) == "n_total_env_steps"
    logged = [(row["n_total_env_steps"], row["env/episode_return"], row["env/episode_length"]) for row in rows]
    assert len(ended) >= 3
    assert logged == [(str(e.n_total_env_steps), str(e.episode_return), str(e.length)) for e in ended]
    seconds = [float(row["time/seconds"]) for row in rows]
    assert 0 < seconds[0] <= seconds[-1] < 60


def test_without_pictures_there_are_none(trained: Path) -> None:
    files = {"code.json", "config.json", "metrics.csv", "summary.json", "lock", "run_id", "checkpoints"}
    assert {path.name for path in trained.iterdir()} == files


@pytest.mark.usefixtures("without_video")
def test_an_agent_without_a_model_leaves_no_picture_of_it() -> None:
    run_train("random", "--preset", "debug", "--no-tensorboard", "--trainer.n-total-env-steps", 10, "--name", "r")
    left = {path.name for path in Path("runs/r").iterdir()}
    assert "learning_curve.png" in left  # also with no episode to draw
    assert not {"model.png", "policy.gif"} & left


def test_the_same_seed_gives_the_same_metrics_also_in_other_processes() -> None:
    arguments = ["pets", *QUICK, "--n-envs", 3, "--trainer.n-total-env-steps", 90, "--seed"]
    run_train(*arguments, 5, "--name", "a")
    run_train(*arguments, 5, "--name", "b", "--vectorization", "async")
    run_train(*arguments, 6, "--name", "other")
    a, b, other = (without_time(Path("runs") / name) for name in ("a", "b", "other"))
    assert len(a) >= 2
    assert a == b
    assert a != other


@pytest.mark.slow
def test_spawned_processes_know_the_environments() -> None:
    """Where processes are not forked, as on macOS, they have to import the environments."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        run_train("random", *QUICK, "--vectorization", "async", "--name", "spawned")
    finally:
        multiprocessing.set_start_method(before, force=True)
    run_train("random", *QUICK, "--name", "sync")
    assert without_time(Path("runs/spawned")) == without_time(Path("runs/sync"))


def test_evaluations_do_not_change_the_training(trained: Path) -> None:
    run_train("pets", *QUICK, "--trainer.eval-every", 20, "--trainer.eval-episodes", 1, "--name", "evaluated")
    rows = without_time(Path("runs/evaluated"))
    assert [row["n_total_env_steps"] for row in rows if row["eval/episode_return"]] == ["20", "40", "60"]
    own = [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in rows]
    assert [row for row in own if any(v for k, v in row.items() if k != "n_total_env_steps")] == without_time(trained)


def test_eight_environments_are_planned_for_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real_plan = ICEM.plan

    def plan(planner, score, n_envs, *args):
        calls.append(n_envs)
        return real_plan(planner, score, n_envs, *args)

    monkeypatch.setattr(ICEM, "plan", plan)
    run_train("pets", *QUICK, "--n-envs", 8, "--learning.n-random-steps", 16, "--trainer.n-total-env-steps", 48)
    assert calls == [8] * 4  # of six steps, two are random


def test_all_environment_steps_count(capsys: pytest.CaptureFixture[str]) -> None:
    run_train("random", *QUICK, "--n-envs", 8, "--name", "r")
    assert Checkpoints(Path("runs/r/checkpoints")).newest() == 64  # the settings say 60
    assert re.search(r"environment steps *│ 64 ", capsys.readouterr().out)


def test_random_actions_balance_for_some_twenty_steps() -> None:
    run_train("random", *QUICK, "--n-envs", 4, "--trainer.n-total-env-steps", 1200, "--name", "r")
    returns = episode_returns(Path("runs/r"))
    assert len(returns) > 30
    assert 20 < sum(returns) / len(returns) < 36  # 27.8 over 3588 episodes: milder than the full forces of CartPole-v1
    assert max(returns) < 150


def test_an_empty_folder_is_used() -> None:
    Path("runs/r").mkdir(parents=True)
    run_train("random", *QUICK, "--name", "r")
    assert Checkpoints(Path("runs/r/checkpoints")).newest() == 60
