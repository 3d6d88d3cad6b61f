"""Pictures of skills and plans during training: their content, their times, and that they change nothing."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tianshou.data import Batch

import envs  # noqa: F401  registers the mazes
from envs.maze2d_layouts import SIMPLE
from experiments import plot_skills
from experiments.pictures import while_training
from experiments.pictures.coverage import draw_coverage
from experiments.pictures.fans import Fan, FanSettings, draw_fan, make_fan
from experiments.pictures.mazes import draw_plans, make_plans
from experiments.pictures.states import states_of
from experiments.pictures.while_training import SkillPictures
from experiments.run import building
from experiments.run.building import build_agent, make_collector
from experiments.run.config import RunConfig, parse
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import Logger
from tests.experiments.commands import assert_same, call, read_state, run_train, without_time
from tests.experiments.conftest import Refusal
from tests.experiments.tasks import Drift

MAZE = ("--env", "Maze2D-Simple-v0", "--preset", "debug", "--n-envs", 2, "--vectorization", "native")
STEPS, EVERY = "--trainer.n-total-env-steps", "--trainer.pictures-every"
NAMES = ("skill-fan", "skill-coverage", "plan-maze")
FOLDER = Path("runs/r")


class Figures(Logger):
    """Keeps the names and times of logged figures."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, int]] = []

    def log(self, metrics: Any, n_total_env_steps: int) -> None:
        pass

    def log_figure(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self.logged.append((name, n_total_env_steps))


@pytest.fixture(autouse=True)
def small_fans(monkeypatch: pytest.MonkeyPatch, without_video: None) -> None:
    monkeypatch.setattr(while_training, "FAN", FanSettings(starts=2, skills=3, walk=1))


@cache
def trained(agent: str) -> tuple[RunConfig[Any], Hierarchy]:
    """An agent after some steps, not to be changed."""
    config = parse([agent, *map(str, MAZE)])
    built = build_agent(config)
    collector = make_collector(config, built)
    for _ in range(24):
        collector.step(explore=True)
        built.learn(collector.n_total_env_steps)
    collector.env.close()
    return config, built


def pictures_of(folder: Path) -> set[str]:
    return {path.name for path in (folder / "pictures").iterdir()}


# ------------------------------------------------------------------ their content


@pytest.mark.parametrize("agent", ["splates", "diayn", pytest.param("splates-goals", marks=pytest.mark.slow)])
def test_a_fan_holds_the_paths_of_skills_from_common_starts(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, built = trained(agent)

    def rollout(obs: torch.Tensor, skills: torch.Tensor) -> Batch:
        """Two particles that end on both sides of a place that depends on the skill."""
        start = obs[:, None, None, None, :2].expand(-1, 1, 2, -1, -1)
        sides = torch.tensor([-1.0, 1.0])[:, None, None]
        return Batch(state=torch.cat([start, start + sides + 0.1 * skills[:, None, None]], -2))

    if agent != "diayn":
        monkeypatch.setattr(built.levels[0].world, "rollout", rollout)
    fan = make_fan(config, built, FanSettings(starts=3, skills=5, walk=4))
    n, duration = (3, 5) if agent == "diayn" else (5, 4)
    width = built.task.observation_dim if agent == "diayn" else 2
    assert fan.in_place
    assert fan.paths.shape == (3, n, duration + 1, width)
    assert len(fan.names) == width
    assert (fan.paths[:, :, 0] == fan.paths[:, :1, 0]).all()
    assert len(np.unique(fan.paths[:, 0, 0, :2], axis=0)) == 3
    steps = np.diff(fan.paths[..., :2], axis=2)
    assert 0 < np.abs(steps).max() < 0.11  # metres
    assert (fan.predicted is None) == (agent == "diayn")
    if fan.predicted is not None:
        np.testing.assert_allclose(fan.predicted, fan.paths[:, :, 0] + 0.1 * fan.skills.numpy(), rtol=1e-5)


def test_a_fan_draws_a_line_for_each_skill_and_start() -> None:
    ways = np.zeros((2, 3, 5, 2), np.float32)
    ways[:] = np.arange(30).reshape(2, 3, 5, 1)
    skills = torch.zeros(3, 2)
    (axis,) = draw_fan(Fan(skills, ways, ways[:, :, -1] + 1, "xy", in_place=True), "title", SIMPLE).axes
    lines = axis.lines
    crosses = [line for line in lines if line.get_marker() == "x"]
    starts = [line for line in lines if line.get_marker() == "o"]
    assert (len(lines), len(crosses), len(starts), len(axis.images)) == (2 * 3 * 2 + 2, 6, 2, 1)
    np.testing.assert_array_equal(
        np.concatenate([line.get_xydata() for line in crosses]), ways[:, :, -1].reshape(-1, 2) + 1
    )
    assert [line.get_xydata()[0, 0] for line in starts] == [0, 15]
    assert len({line.get_color() for line in crosses}) == 3

    (axis,) = draw_fan(Fan(skills, ways, None, "xy", in_place=False), "title", SIMPLE).axes
    assert (len(axis.lines), len(axis.images)) == (2 * 3 + 2, 0)  # no walls where states are no places
    (axis,) = draw_fan(Fan(skills, ways[..., :1], ways[:, :, -1, :1], "x", in_place=False), "title").axes
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), np.stack([np.arange(5), ways[0, 0, :, 0]], 1))
    assert axis.lines[1].get_xydata().tolist() == [[4.0, 4.0]]


def test_coverage_counts_what_was_visited() -> None:
    visited = np.array([[1.0, 2.0, 9.0]] * 3 + [[8.0, 8.0, 9.0]], np.float32)
    axis, _ = draw_coverage(visited, "xyz", "title", SIMPLE).axes
    (cells,) = [c for c in axis.collections if isinstance(c, QuadMesh)]
    assert sorted(np.ma.compressed(np.ma.masked_invalid(cells.get_array()))) == [1.0, 3.0]
    assert len(axis.images) == 1
    (axis,) = draw_coverage(visited[:, :1], "x", "title", None).axes
    assert sorted(bar.get_height() for bar in axis.patches if bar.get_height()) == [1.0, 3.0]


@pytest.mark.parametrize("agent", ["splates", "goals", "pets"])
def test_plans_begin_where_episodes_do(agent: str) -> None:
    config, built = trained(agent)
    states, goals = make_plans(config, built, n=4, seed=0)
    level: Any = built.levels[0]
    assert states.shape[0] == 4
    assert states.shape[2] == level.planner.horizon * level.world.repeat + 1
    np.testing.assert_array_equal(states[..., 0, :2], 1.5)  # where the room begins
    np.testing.assert_array_equal(goals, 8.5)
    figure = draw_plans(states, goals, "title", SIMPLE)
    assert len(figure.axes) == 4
    assert [len(axis.lines) for axis in figure.axes] == [states.shape[1] + 3] * 4
    mean = figure.axes[0].lines[-3].get_xydata()
    np.testing.assert_allclose(mean, states[0].mean(0)[:, :2], rtol=1e-5)


def test_states_are_positions_only_where_they_begin_with_them() -> None:
    def in_place(*arguments: object) -> bool:
        return states_of(build_agent(parse([*map(str, arguments)]))).in_place

    assert in_place("splates", *MAZE)
    assert in_place("splates", *MAZE, "--state", "achieved_goal", "observation")
    assert in_place("diayn", *MAZE)
    assert not in_place("splates", *MAZE, "--encoder", "learned")
    assert not in_place("diayn", "--env", "Pendulum-v1", "--preset", "debug")


class Short(Drift):
    """States of one dimension."""

    def __init__(self) -> None:
        super().__init__(gym.spaces.Box(-np.inf, np.inf, (1,), np.float32))

    def _observe(self) -> Any:
        return self._point[:1].astype(np.float32)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_episodes_may_end_on_the_way(n_envs: int) -> None:
    gym.register("Short-v0", lambda: TimeLimit(Short(), 23))
    config = parse(["diayn", "--env", "Short-v0", "--preset", "debug", "--n-envs", str(n_envs)])
    agent = build_agent(config)
    n_walk = np.random.default_rng(0).integers(0, 9, 9)
    fan = make_fan(config, agent, FanSettings(starts=9, skills=3, walk=8, seed=0))
    assert len(fan.paths) == (n_walk <= 4).sum() < 9  # skills of five steps
    cut = fan.paths[n_walk[n_walk <= 4] == 4]
    assert (cut[:, :, 4:] == cut[:, :, 3:4]).all()  # the episode ends with the 23rd step
    assert (cut[:, :, 3] != cut[:, :, 2]).any()
    assert np.isfinite(list(fan.numbers().values())).all()
    gym.register("Shorter-v0", lambda: TimeLimit(Short(), 1))
    with pytest.raises(ValueError, match=r"all episodes ended within 8 skills, .*expected shorter walks"):
        make_fan(replace(config, env="Shorter-v0"), agent, FanSettings(starts=3, skills=3, walk=8, seed=1))


def test_an_agent_without_skills_has_no_fan() -> None:
    config = parse(["random", *map(str, MAZE)])
    with pytest.raises(ValueError, match="levels are RandomLevel, expected a SkillLevel among them"):
        make_fan(config, build_agent(config), FanSettings())


# ------------------------------------------------------------------ their times, and their effects


@pytest.mark.parametrize(
    ("agent", "kept"), [("splates", NAMES), pytest.param("diayn", NAMES[:2], marks=pytest.mark.slow)]
)
def test_pictures_are_drawn_during_training_and_at_its_end_and_change_nothing(
    agent: str, kept: tuple[str, ...]
) -> None:
    run_train(agent, *MAZE, STEPS, 60, "--no-tensorboard", "--no-pictures", "--name", "plain")
    assert not Path("runs/plain/pictures").exists()
    run_train(agent, *MAZE, STEPS, 30, EVERY, 0, "--name", "r")
    assert not (FOLDER / "pictures").exists()
    run_train(agent, *MAZE, STEPS, 60, EVERY, 40, "--name", "r")  # how often may change
    assert pictures_of(FOLDER) == {f"{name}-{n:09d}.png" for name in kept for n in (40, 60)}
    assert all(iio.imread(path).std() > 10 for path in (FOLDER / "pictures").iterdir())
    assert json.loads((FOLDER / "summary.json").read_text())["skills"] == str(FOLDER / "pictures")
    events = EventAccumulator(str(FOLDER / "tensorboard"), size_guidance={"images": 0}).Reload()
    for name in kept:
        logged = events.Images(name.replace("-", "/"))
        assert [image.step for image in logged] == [40, 60]
        assert logged[-1].encoded_image_string == (FOLDER / "pictures" / f"{name}-000000060.png").read_bytes()
    assert len(without_time(FOLDER)) > 1
    assert without_time(FOLDER) == without_time(Path("runs/plain"))
    drawn, plain = read_state(FOLDER), read_state(Path("runs/plain"))
    for part in ("agent", "experience", "collector", "globals", "episodes"):
        assert_same(drawn[part], plain[part])


@pytest.mark.usefixtures("blank_figures")
def test_other_agents_leave_plans_in_mazes_or_none() -> None:
    for agent, arguments in {"goals": MAZE, "sac": MAZE, "random": ("--preset", "debug")}.items():
        run_train(agent, *arguments, STEPS, 20, EVERY, 20, "--no-tensorboard", "--name", agent)
    assert pictures_of(Path("runs/goals")) == {"plan-maze-000000020.png"}
    assert not Path("runs/sac/pictures").exists()
    assert not Path("runs/random/pictures").exists()


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("where", ["make", "write"])
def test_pictures_that_fail_cause_one_warning_each(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Figures()
    pictures = SkillPictures(*trained("splates"), tmp_path, logger)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((while_training, "make_fan") if where == "make" else (Figure, "savefig")), fail)
    with pytest.warns(RuntimeWarning, match="could not be drawn, training goes on: OSError") as warned:
        pictures(10)
    pictures(20)
    n_broken = 1 if where == "make" else 3
    assert len([w for w in warned if "could not be drawn" in str(w.message)]) == n_broken
    names = ("skill/coverage", "plan/maze")[: 3 - n_broken]
    assert logger.logged == [(name, n) for n in (10, 20) for name in names]


@pytest.mark.usefixtures("blank_figures")
def test_a_run_whose_pictures_fail_is_trained_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no maze today")

    monkeypatch.setattr(while_training, "make_plans", fail)
    with pytest.warns(RuntimeWarning, match="plan/maze could not be drawn, training goes on: RuntimeError: no maze"):
        run_train("goals", *MAZE, STEPS, 20, EVERY, 20, "--no-tensorboard", "--name", "r")
    assert json.loads((FOLDER / "summary.json").read_text())["environment steps"] == "20"


def test_processes_are_not_started_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make_envs(config: Any, n_envs: int) -> Any:
        made.append((config.vectorization, n_envs))
        return SimpleNamespace()

    monkeypatch.setattr(building, "make_envs", make_envs)
    arguments = ("splates", *map(str, MAZE[:-2]))
    for kind in ("sync", "async", "native"):
        building.make_envs_here(parse([*arguments, "--vectorization", kind]), 3)
    assert made == [("sync", 3), ("sync", 3), ("native", 3)]


def test_skills_of_a_finished_run(random_run: Path, capsys: pytest.CaptureFixture[str], refusal: Refusal) -> None:
    run_train("splates", *MAZE, STEPS, 20, "--no-tensorboard", "--no-pictures", "--name", "r")
    call(plot_skills.main, "runs/r", "--starts", 2, "--skills", 3, "--walk", 1)
    output = capsys.readouterr().out
    assert "error of the model" in output
    assert "runs/r/skills.png" in output
    assert iio.imread("runs/r/skills.png").shape[:2] == (648, 648)
    assert "expected a SkillLevel among them" in refusal(call, plot_skills.main, random_run)
