"""Flags in messages, hints for options that do not exist, and arguments of the environment."""

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from experiments import diagnose, plot_plan
from experiments.run.config import from_json, parse, to_json
from experiments.run.flags import as_typed, hint
from experiments.sweep.study import Study
from layeredrl.environments import EnvConfig
from tests.experiments.commands import QUICK, call, run_evaluate, run_train
from tests.experiments.tasks import Drift

PETS = parse(["pets"])
SAC = parse(["sac"])


@pytest.mark.parametrize(
    ("option", "settings", "flags"),
    [
        ("--lr", PETS, "--model.learning-rate or --value-learning.learning-rate or --guidance.sac.learning-rate"),
        ("--lr=0.1", SAC, "--sac.learning-rate or --td3.learning-rate"),
        ("--total-timesteps", SAC, "--trainer.n-total-env-steps"),
        ("--total_timesteps", PETS, "--trainer.n-total-env-steps"),
        ("--timesteps", PETS, "--trainer.n-total-env-steps"),
        ("--num-envs", PETS, "--n-envs"),
        ("--gpu", PETS, "--device"),
        ("--buffer-size", SAC, "--learning.replay-size"),
        ("--frame-skip", PETS, "--action-repeat"),
        ("--model.hiden", PETS, "--model.hidden"),
        (
            "--batch-size",
            PETS,
            "--learning.fit.batch-size or --value-learning.batch-size or --guidance.learning.batch-size",
        ),
        ("--agent", PETS, None),  # of a positional argument, where its value is missing
        ("--qqqq", PETS, None),
    ],
)
def test_unknown_options_have_hints(option: str, settings: Any, flags: str | None) -> None:
    assert hint(option, settings) == flags


@pytest.mark.parametrize(
    ("message", "args", "expected"),
    [
        ("n_envs is 0, expected at least 1", [], "--n-envs is 0, expected at least 1"),
        ("settings.model: hidden is (0,)", [], "--model.hidden is (0,)"),
        ("planner.icem: n_elites is 9, expected n_samples", [], "--planner.icem.n-elites is 9, expected n_samples"),
        ("n_elites is 9, expected less", [], "n_elites is 9, expected less"),  # of several planners
        ("n_elites is 9, expected less", ["--planner.cem.n-elites", "9"], "--planner.cem.n-elites is 9, expected less"),
        ("wrappers has 'x', expected", [], "--wrappers has 'x', expected"),
        ("the observation has the parts x", [], "the observation has the parts x"),
        ("unknown environment 'n_envs is 0'", [], "unknown environment 'n_envs is 0'"),
    ],
)
def test_messages_name_the_flag(message: str, args: list[str], expected: str) -> None:
    assert as_typed(message, PETS, args) == expected


def test_the_parts_of_a_state_are_typed_as_state() -> None:
    assert as_typed("parts is ['x'], expected some of y", parse(["splates"])) == "--state is ['x'], expected some of y"


@pytest.mark.parametrize(
    "words",
    [
        ["g=9", "name=a=b", "sizes=[1, Infinity]", "on=true", "off=False", "none=null", 'text="7"'],
        ['{"g": 9, "name": "a=b", "sizes": [1, Infinity], "on": true, "off": false, "none": null, "text": "7"}'],
    ],
)
def test_arguments_of_the_environment(words: list[str], tmp_path: Path) -> None:
    config = parse(
        ["random", "--env-kwargs", *words, "--seed", "1", "--wrappers", "a:B", "c:D", "--action-repeat", "2"]
    )
    expected = {
        "g": 9,
        "name": "a=b",
        "sizes": [1, math.inf],
        "on": True,
        "off": False,
        "none": None,
        "text": "7",
    }
    assert config.env_kwargs == expected
    assert config.environment == EnvConfig("ContinuousCartPole-v0", expected, 2, ("a:B", "c:D"))
    (tmp_path / "config.json").write_text(to_json(config))
    assert from_json(tmp_path / "config.json") == config
    assert parse(["random", "--env-kwargs"]).env_kwargs == {}


def test_a_study_passes_arguments_of_the_environment_on() -> None:
    study = Study(
        name="s", agents={"random": {}}, environments=("E-v0",), seeds=(0,), common={"env_kwargs": {"g": [1]}}
    )
    (trial,) = study.trials()
    assert parse([*trial.words]).env_kwargs == {"g": [1]}


class Marked(Drift):
    """Notes how each instance was made."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    made: list[tuple[float, bool]]

    def __init__(self, size: float = 0.0, render_mode: str | None = None) -> None:
        super().__init__()
        self.size, self.render_mode = size, render_mode
        self.n_wrapped = 0

    def reset(self, **kwargs: Any) -> Any:
        type(self).made.append((self.size, self.n_wrapped > 0))
        return super().reset(**kwargs)

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


class Noting(gym.Wrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        env.unwrapped.n_wrapped += 1


@pytest.mark.slow
def test_all_instances_of_a_run_are_made_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, evaluation, video, diagnosis, and the picture of a plan."""
    Marked.made = []
    gym.register("Marked-v0", Marked, max_episode_steps=20)
    arguments = ("--env-kwargs", "size=2.5", "--wrappers", f"{__name__}:Noting", "--action-repeat", 2)
    run_train("pets", "--preset", "debug", "--no-tensorboard", "--env", "Marked-v0", "--name", "r", *arguments)
    run_evaluate("runs/r", "--episodes", 2, "--video", "a.gif")
    call(diagnose.main, "runs/r", "--steps", 20, "--horizon", 2)
    call(plot_plan.main, "runs/r")
    assert len(Marked.made) > 8
    assert set(Marked.made) == {(2.5, True)}
    assert Path("runs/r/policy.gif").exists()


def test_an_agent_that_needs_goals_names_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    for agent in ("goals", "splates", "dads"):
        with pytest.raises(SystemExit):
            run_train(agent, *QUICK, "--env", "ContinuousCartPole-v0")
        assert f"{agent} works on goal environments, such as --env Maze2D-Medium-v0" in capsys.readouterr().err
