"""A person's own environment and a person's own agent."""

import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from agents.pets import PETS
from experiments.run.building import build_agent
from experiments.run.config import from_json
from layeredrl.planners import RandomShooting
from layeredrl.storage import Checkpoints
from layeredrl.world_model import WorldModel
from tests.experiments.commands import QUICK, read_metrics, run_evaluate, run_train, without_time
from tests.experiments.own_agents import Hold, Shooting
from tests.experiments.tasks import Drift, make_goal_counter


def _world(folder: Path) -> WorldModel:
    """Return the world model of a run of PETS."""
    agent = build_agent(from_json(folder / "config.json"))
    agent.load_state_dict(Checkpoints(folder / "checkpoints").load()["agent"])
    return agent.levels[0].world


def test_an_id_is_all_that_an_environment_needs(capsys: pytest.CaptureFixture[str]) -> None:
    gym.register("Mine/Drift-v0", Drift, max_episode_steps=15)
    arguments = ["--n-envs", 2, "--learning.reward-learning-rate", 0.03, "--learning.fit.epochs", 20]
    run_train("pets", "--preset", "debug", "--no-tensorboard", "--env", "Mine/Drift-v0", *arguments)
    folder = Path("runs/pets-Mine-Drift-v0-0")
    rows = read_metrics(folder)
    assert sum(bool(row["env/episode_return"]) for row in rows) >= 3
    assert sum(bool(row["model/reward_loss"]) for row in rows) >= 3
    # Neither reward nor termination is known, so both are learned, and scores of plans come from them.
    world = _world(folder)
    assert world.task.reward is None
    assert world.task.termination is None
    obs = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
    near, far = world.score(obs, torch.zeros(2, 1, 3, 2)).squeeze(1).tolist()
    assert near > far + 1  # the true rewards are 0 and up to -32 a step
    assert (folder / "model.png").exists()
    assert not (folder / "policy.gif").exists()  # it cannot be drawn
    run_evaluate(folder, "--episodes", 2)
    assert "Evaluation" in capsys.readouterr().out


def test_known_functions_are_used(trained: Path) -> None:
    world = _world(trained)
    assert world.reward_net is None
    assert world.task.termination is not None
    assert "model/reward_loss" not in read_metrics(trained)[0]


def test_a_package_is_imported_for_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tests.experiments.tasks")
    del gym.registry["OwnDrift-v0"]
    run_train("random", *QUICK, "--env", "tests.experiments.tasks:OwnDrift-v0")
    rows = read_metrics(Path("runs/random-tests.experiments.tasks-OwnDrift-v0-0"))
    assert len(rows) >= 4  # of sixty steps, an episode has fifteen at the most


@pytest.mark.parametrize("agent", ["pets", "random"])
def test_observations_may_be_a_dict_with_a_goal(agent: str) -> None:
    gym.register("GoalCounter-v0", make_goal_counter)
    run_train(agent, *QUICK, "--env", "GoalCounter-v0", "--name", "r")
    lengths = [row["env/episode_length"] for row in read_metrics(Path("runs/r"))]
    assert [length for length in lengths if length] == ["6"] * 10
    if agent == "pets":
        encoder = _world(Path("runs/r")).encoder
        assert encoder.state_space.shape == (3,)  # observation and achieved_goal
        assert encoder.context_space.shape == (1,)


def test_discrete_actions_are_for_agents_that_support_them() -> None:
    run_train("random", *QUICK, "--env", "CartPole-v1", "--name", "r")
    assert read_metrics(Path("runs/r"))


def test_an_own_agent() -> None:
    run_train("--seed", 3, "--agent", "tests.experiments.own_agents:Hold", *QUICK)
    folder = Path("runs/hold-ContinuousCartPole-v0-3")
    config = from_json(folder / "config.json")
    assert config.agent == "tests.experiments.own_agents:Hold"
    assert config.settings == Hold(duration=5)  # its own debug preset
    run_evaluate(folder, "--episodes", 1)


def test_settings_of_an_own_agent_are_on_the_command_line() -> None:
    for name, duration in [("one", 1), ("long", 30)]:
        arguments = ["--agent", "tests.experiments.own_agents:Hold", *QUICK, "--trainer.n-total-env-steps", 200]
        run_train(*arguments, "--duration", duration, "--name", name)
        assert from_json(Path("runs") / name / "config.json").settings == Hold(duration)
    assert without_time(Path("runs/one")) != without_time(Path("runs/long"))


def test_a_subclass_of_a_recipe_has_its_presets() -> None:
    run_train("tests.experiments.own_agents:Shooting", *QUICK)
    config = from_json(Path("runs/shooting-ContinuousCartPole-v0-0/config.json"))
    assert type(config.settings) is Shooting
    assert vars(config.settings) == vars(PETS.preset("debug")) | {"discount": 0.9}
    planner = build_agent(config).levels[0].planner
    assert isinstance(planner, RandomShooting)
    assert planner.horizon == 3


def test_without_presets_of_its_own_an_agent_has_its_defaults() -> None:
    run_train("tests.experiments.own_agents:Hold", *QUICK[2:], "--preset", "paper", "--trainer.n-total-env-steps", 5)
    assert from_json(Path("runs/hold-ContinuousCartPole-v0-0/config.json")).settings == Hold(2)
