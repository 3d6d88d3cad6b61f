from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.pets import PETS
from agents.random import Random
from agents.recipe import Choice
from experiments.run.command_line import command_line
from experiments.run.config import AGENTS, TRAINER_PRESETS, RunConfig, agent_class, from_json, parse, to_json
from layeredrl.action_spaces import width
from layeredrl.environments import make_task
from layeredrl.trainer import TrainerConfig
from tests.experiments.own_agents import Hold


def test_settings_are_chosen_for_the_task_by_default_and_flags_win() -> None:
    config = parse([])
    assert (config.agent, config.preset, config.env, config.seed) == ("pets", "auto", "ContinuousCartPole-v0", 0)
    told: list[Sequence[Choice]] = []
    pendulum = parse(["--env", "Pendulum-v1"], lambda config, facts, choices: told.append(choices))
    choices = {name: value for name, value, _ in told[0]}
    assert pendulum.settings.planner.icem.horizon == choices["planner.icem.horizon"]
    assert pendulum.settings.learning.n_random_steps == choices["learning.n_random_steps"]
    assert pendulum.trainer.n_total_env_steps == choices["trainer.n_total_env_steps"]
    assert all(reason for _, _, reason in told[0])
    other = parse(["--env", "Pendulum-v1", "--planner.icem.horizon", "7", "--trainer.n-total-env-steps", "99"])
    assert (other.settings.planner.icem.horizon, other.trainer.n_total_env_steps) == (7, 99)
    assert replace(other.settings, planner=pendulum.settings.planner) == pendulum.settings


def test_a_task_without_reward_in_sight_is_explored() -> None:
    assert parse(["--env", "MountainCar-v0"]).settings.uncertainty_weight < 0
    assert parse(["--env", "CartPole-v1"]).settings.uncertainty_weight == 0


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_can_be_built_in_its_own_environment(name: str) -> None:
    config = parse([name, "--preset", "debug"] if name in ("splates", "dads", "splates-goals") else [name])
    task = make_task(config.env)
    agent = config.settings.build(task, torch.device("cpu"), seed=0)
    action = agent.act(np.zeros((1, task.observation_dim), np.float32), agent.initial_carry(1, seed=0), explore=True)
    assert action.shape == (1, width(task.action_space))


def test_a_preset_brings_its_environment() -> None:
    assert parse(["pets", "--preset", "reacher-fast"]).env == "PETSReacher-v0"
    assert parse(["pets", "--preset", "halfcheetah-paper", "--env", "Pendulum-v1"]).env == "Pendulum-v1"
    assert parse(["splates", "--preset", "ant"]).env == "AntGoal-v0"
    with pytest.raises(ValueError, match=r"unknown preset 'auto', expected one of demo, debug"):
        parse(["splates", "--preset", "auto"])


def test_an_agent_may_have_presets_of_its_own() -> None:
    config = parse(["pets", "--preset", "cartpole-fast", "--trainer.eval-every", "7"])
    assert config.settings == PETS.preset("cartpole-fast")
    assert config.trainer == replace(PETS.trainers["cartpole-fast"], eval_every=7)
    with pytest.raises(ValueError, match=r"unknown preset 'cartpole-fast', expected one of auto, demo, debug, paper$"):
        parse(["sac", "--preset", "cartpole-fast"])


@pytest.mark.parametrize("preset", ["demo", "paper"])
@pytest.mark.parametrize("spelling", [["--preset", "{}"], ["--preset={}"]])
def test_presets_are_defaults_that_flags_change(preset: str, spelling: list[str]) -> None:
    config = parse(
        ["pets", "--discount", "0.9", *(part.format(preset) for part in spelling), "--trainer.eval-every", "7"]
    )
    assert config.preset == preset
    assert config.settings == replace(PETS.preset(preset), discount=0.9)
    assert config.trainer == replace(PETS.trainers.get(preset, TRAINER_PRESETS[preset]), eval_every=7)


@pytest.mark.parametrize(
    "args", [["random", "--seed", "4"], ["--agent", "random", "--seed", "4"], ["--seed", "4", "--agent=random"]]
)
def test_an_agent_in_every_spelling(args: list[str]) -> None:
    config = parse(args)
    assert (config.agent, config.seed, config.settings) == ("random", 4, Random())


@pytest.mark.parametrize(
    "args",
    [
        ["random"],
        ["pets", "--preset", "paper", "--name", "ü 1", "--wandb-tags", "a", "b", "--runs-dir", "some/where"],
        [
            "pets",
            "--planner.kind",
            "cem",
            "--model.hidden",
            "7",
            "8",
            "--learning.fit.holdout",
            "0.1",
            "--vectorization",
            "async",
        ],
        ["tests.experiments.own_agents:Hold", "--duration", "9"],
    ],
)
def test_settings_survive_json(args: list[str], tmp_path: Path) -> None:
    config = parse(args)
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    again = from_json(path)
    assert again == config
    assert type(again.settings) is type(config.settings)
    assert to_json(again) == to_json(config)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_is_found_by_its_name(name: str) -> None:
    assert agent_class(name) is agent_class(AGENTS[name])
    assert agent_class(name)()


@pytest.mark.parametrize(
    ("changes", "folder"),
    [
        ({}, "runs/pets-Cart-v0-0"),
        ({"env": "mine/Cart-v0"}, "runs/pets-mine-Cart-v0-0"),
        ({"env": "a.b:mine/Cart-v0", "seed": 3}, "runs/pets-a.b-mine-Cart-v0-3"),
        ({"agent": "a.b:Hold"}, "runs/hold-Cart-v0-0"),
        ({"name": "x y", "runs_dir": Path("/tmp")}, "/tmp/x y"),
    ],
)
def test_folders_of_runs(changes: dict[str, object], folder: str) -> None:
    assert str(replace(RunConfig(env="Cart-v0", settings=Hold()), **changes).folder) == folder


@dataclass
class _Command:
    """A command."""

    path: Path = Path()
    """Where."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """How."""

    def __post_init__(self) -> None:
        if self.path.name == "bad":
            raise ValueError(f"path is {self.path}, expected something else")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--path", "very/long/" * 12 + "bad"], f"--path is {'very/long/' * 12}bad, expected something else"),
        (["--trainer.eval-episodes", "0"], "--trainer.eval-episodes is 0, expected at least 1"),
        (["--trainer.eval-episodes", "0.5"], "--trainer.eval-episodes: invalid literal for int() with base 10: '0.5'"),
        (["--path"], "Missing value for argument '--path'. Expected 1 values."),
        (["--pat", "x"], "Unrecognized options: --pat, x; for --pat use --path"),
    ],
)
@pytest.mark.parametrize("environment", [{"COLUMNS": "400"}, {"COLUMNS": "400", "FORCE_COLOR": "1"}])
def test_messages_of_tyro_become_one_line(
    args: list[str], message: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        command_line(_Command, args, prog="command")
    assert str(error.value) == message


def test_a_narrow_terminal_keeps_the_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(ValueError, match=r"^--trainer.eval-episodes is 0, expected at least 1$"):
        command_line(_Command, ["--trainer.eval-episodes", "0"], prog="command")
