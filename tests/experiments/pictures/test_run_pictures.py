import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from tianshou.data import Batch
from torch import Tensor

from experiments.pictures import video
from experiments.pictures.learning_curve import draw_learning_curve
from experiments.pictures.model import draw_model
from experiments.pictures.states import observation_names, state_names
from experiments.pictures.video import record_episode, write_gif
from experiments.run.building import build_agent, can_render
from experiments.run.config import from_json, parse
from experiments.run.finish import Training, finish
from experiments.run.held_out import collect_held_out
from layeredrl.loggers import LoggerList
from layeredrl.task import DynamicsFunction, TaskSpec
from layeredrl.world_model import Encoder, LearnedEncoder, Oracle, WorldModel
from tests.experiments.tasks import Blinking, Drift, Undrawable
from tests.recording import RecordingLogger

DRIFT = TaskSpec.from_env(Drift())


@pytest.mark.parametrize(
    ("fps", "skip", "duration"), [(50, 2, 40), (20, 1, 50), (25, 1, 40), (100, 4, 40), (5, 1, 200)]
)
def test_a_gif_shows_at_most_25_frames_a_second(fps: float, skip: int, duration: int) -> None:
    frames = [np.full((4, 6, 3), 10 * n, np.uint8) for n in range(9)]
    write_gif(Path("g.gif"), frames, fps)
    read = iio.imread("g.gif")
    np.testing.assert_array_equal(read[:, 0, 0, 0], [10 * n for n in range(0, 9, skip)])
    assert read.shape[1:] == (4, 6, 3)
    assert iio.immeta("g.gif", index=0)["duration"] == duration
    assert iio.immeta("g.gif", index=0)["loop"] == 0


def test_a_video_has_all_frames_and_is_cut_without_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES", 30)
    gym.register("Blinking-v0", Blinking)
    config = parse(["random", "--env", "Blinking-v0"])
    agent = build_agent(config)
    episode_return = record_episode(config, agent, Path("p.gif"), seed=3)
    np.testing.assert_array_equal(iio.imread("p.gif")[:, 0, 0, 0], np.arange(1, 32))  # the final state, too
    first, again, other = (record_episode(config, agent, Path("q.gif"), seed=seed) for seed in (3, 3, 4))
    assert episode_return == first == again != other
    assert episode_return < 0


def _drawn_as(frame: Any, **metadata: Any) -> type[Blinking]:
    """An environment with the frame, or a function of the number of the frame that returns it."""

    class Own(Blinking):
        def render(self) -> Any:
            self._n_frames += 1
            return frame(self._n_frames) if callable(frame) else frame

    Own.metadata = Blinking.metadata | metadata
    return Own


class NoViewer(Blinking):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        if render_mode is not None:
            raise ImportError("No module named 'viewer'")


FRAME = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (Undrawable, "pip install crayons"),
        (NoViewer, "No module named 'viewer'"),
        (_drawn_as(None), "expected uint8 and (height, width, 3)"),
        (_drawn_as("frame"), "expected uint8 and (height, width, 3)"),
        (_drawn_as(FRAME.astype(np.float32)), "dtype float32 and shape (8, 8, 3), expected uint8"),
        (_drawn_as(FRAME[..., 0]), "shape (8, 8), expected uint8 and (height, width, 3)"),
        (_drawn_as(lambda n: np.zeros((8 + n, 8, 3), np.uint8)), "the frames have the shapes (9, 8, 3), (10, 8, 3)"),
        (_drawn_as(lambda n: 1 / 0), "ZeroDivisionError"),
        (_drawn_as(FRAME, render_fps=None), "policy.gif (return"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium warns of such frames, too
def test_a_failed_video_does_not_stop_the_run(
    env: type[Blinking],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES", 3)
    gym.register("Picture-v0", env)
    config = parse(["random", "--env", "Picture-v0"])
    logger, training = LoggerList([RecordingLogger()]), Training([], 5, 1.0, 1.0)
    saved: list[int] = []
    finish(config, build_agent(config), tmp_path, logger=logger, training=training, save=lambda: saved.append(1))
    assert saved == [1]
    assert reason in json.loads((tmp_path / "summary.json").read_text())["video"]
    assert capsys.readouterr().out.count("│ video") == 1
    assert (tmp_path / "policy.gif").exists() == ("policy.gif" in reason)


def test_environments_without_modes_of_rendering_have_no_video() -> None:
    gym.register("Picture-v0", _drawn_as(FRAME, render_modes=None))
    with pytest.warns(UserWarning, match="render_modes"):  # gymnasium's own
        assert not can_render("Picture-v0")


@pytest.mark.parametrize("n", [0, 1, 51])
def test_learning_curves_of_any_length(n: int) -> None:
    draw_learning_curve(Path("c.png"), [(10 * i, float(i)) for i in range(n)], "title")
    assert iio.imread("c.png").shape[:2] == (432, 720)


def test_half_of_the_held_out_data_is_random(trained: Path) -> None:
    config = from_json(trained / "config.json")
    agent = build_agent(config)
    data, again, other = (collect_held_out(config, agent, seed, n_steps=60) for seed in (1, 1, 2))
    assert data.obs.shape == data.obs_next.shape == (60, 4)
    assert data.act.shape == (60, 1)
    np.testing.assert_array_equal(data.obs, again.obs)
    assert not np.array_equal(data.obs, other.obs)
    assert not len(agent.levels[0].replay)  # the model may never learn from it


def _world(task: TaskSpec, dynamics: DynamicsFunction) -> WorldModel:
    encoder = Encoder(task)
    oracle = Oracle.from_step(encoder.state_space, encoder.context_space, task.action_space, dynamics)
    return WorldModel(encoder, oracle, task)


def _data() -> Batch:
    generator = torch.Generator().manual_seed(0)
    obs, act = torch.randn(50, 2, generator=generator), torch.rand(50, 2, generator=generator)
    return Batch(obs=obs.numpy(), act=act.numpy(), obs_next=(obs + 0.6 * act).numpy())


def test_a_model_is_judged_by_the_change_it_predicts() -> None:
    def half_right(state: Tensor, context: Tensor, action: Tensor) -> Tensor:
        return state + 0.6 * action * torch.tensor([1.0, 0.0])

    scores = draw_model(Path("m.png"), _world(DRIFT, half_right), _data(), ["x", "y"], "title")
    assert list(scores) == ["x", "y"]
    assert scores["x"] == pytest.approx(1.0, abs=1e-5)
    assert scores["y"] < -1  # worse than the mean, although it is close to the next state
    assert iio.imread("m.png").ndim == 3


def test_a_state_dimension_that_never_changes_has_no_score() -> None:
    task = TaskSpec(gym.spaces.Box(-1, 1, (5,)), DRIFT.action_space)
    world = _world(task, lambda state, context, action: state)
    obs = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    obs_next = obs + np.linspace(0, 1, 5, dtype=np.float32)[:, None] * (np.arange(5) > 0)  # the first never changes
    data = Batch(obs=obs, act=np.zeros((5, 2), np.float32), obs_next=obs_next.astype(np.float32))
    scores = draw_model(Path("m.png"), world, data, "abcde", "title")
    assert list(scores) == list("bcde")
    assert np.isfinite(list(scores.values())).all()


def test_states_are_named_after_the_parts_of_observations() -> None:
    part = gym.spaces.Box(-1, 1, (2,))
    task = TaskSpec(gym.spaces.Dict(angle=gym.spaces.Box(-1, 1, (1,)), hand=part, desired_goal=part), part)
    assert observation_names(task) == ["angle", "hand 0", "hand 1", "desired_goal 0", "desired_goal 1"]
    assert state_names(Encoder(task), task) == ["angle", "hand 0", "hand 1"]
    assert state_names(LearnedEncoder(task, 2, 1), task) == ["state 0", "state 1"]
    assert observation_names(DRIFT) == ["observation 0", "observation 1"]
    named = replace(DRIFT, names=("east", "north"))
    assert state_names(Encoder(named), named) == observation_names(named) == ["east", "north"]
    with pytest.raises(ValueError, match="names has 1 names, expected 2 or none"):
        replace(DRIFT, names=("east",))
