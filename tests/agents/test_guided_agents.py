"""Agents whose plans end in a critic: their parts, and runs from the command line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.guidance import GuidanceConfig
from agents.loop import LOOP
from agents.pets import PETS
from agents.recipe import with_choices
from agents.tdmpc2 import TDMPC2
from layeredrl.environments import TaskFacts
from layeredrl.levels import GuidedLevel, PlannerLevel, PolicyLearningConfig
from layeredrl.planners import CEM, ICEM, MPPI, RandomShooting
from layeredrl.task import TaskSpec
from layeredrl.world_model import ModelLearningConfig, ValueConfig
from tests.experiments.commands import QUICK, read_metrics, run_evaluate, run_train

CPU = torch.device("cpu")
TASK = TaskSpec(spaces.Box(-1, 1, (3,)), spaces.Box(-1.0, 1.0, (2,)), n_envs=2)
FACTS = TaskFacts(state_dim=3, action_dim=1, discrete=False, reward_known=False, termination_known=False)


@pytest.mark.parametrize("agent", ["loop", "tdmpc2"])
@pytest.mark.parametrize("env", ["ContinuousCartPole-v0", "Pendulum-v1"])
def test_a_run_learns_and_is_evaluated(agent, env, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_train(agent, *QUICK, "--env", env, "--trainer.n-total-env-steps", 70, "--name", "r", "--n-envs", 2)
    columns = {key for row in read_metrics(Path("runs/r")) for key, value in row.items() if value}
    learned = {"policy/critic1_loss", "imagination/length"} if agent == "loop" else {"model/consistency_loss"}
    assert columns >= learned | {"plan/predicted_return"}
    run_evaluate("runs/r", "--episodes", 1)
    assert "return" in capsys.readouterr().out


def test_there_is_one_replay():
    config = LOOP.preset("debug", learning=ModelLearningConfig(replay_size=500))
    (level,) = config.build(TASK, CPU, seed=0).levels
    assert level.replay.buffer.maxsize == 500
    with pytest.raises(ValueError, match=r"guidance\.learning\.replay_size is 500, expected the default"):
        GuidanceConfig(learning=PolicyLearningConfig(replay_size=500))


@pytest.mark.parametrize(("state_dim", "ends_after", "known"), [(11, 20.0, False), (11, 20.0, True), (17, None, False)])
def test_a_large_task_that_ends_early_is_explored_more(state_dim, ends_after, known):
    facts = TaskFacts(state_dim, 2, False, False, termination_known=known, ends_after=ends_after)
    config = with_choices(LOOP(), [c for c in LOOP.suited(facts) if not c.name.startswith("trainer.")])
    assert config.guidance.sac.target_entropy == (-1.0 if ends_after is None else 0.0)
    assert config.learning.termination == ("next_state" if ends_after and not known else "dynamics")
    assert not any(c.value == "next_state" for c in LOOP.suited(replace(facts, mean_reward=-1.0)))  # ends would attract


def test_guided_plans_are_short_unless_random_actions_find_nothing():
    horizons = [
        {c.name: c.value for c in LOOP.suited(replace(FACTS, silent=silent))}["planner.icem.horizon"]
        for silent in (False, True)
    ]
    assert horizons == [8, 40]
    assert LOOP.preset("demo").planner.icem.horizon == 8  # as without a preset


@pytest.mark.parametrize("given", [{"value": True}, {"discount": 0.9}, {"value_learning": ValueConfig(n_steps=3)}])
def test_settings_that_guidance_replaces_are_refused(given):
    with pytest.raises(
        ValueError, match=rf"{next(iter(given))} is .*, expected .*: loop does not use it, but guidance"
    ):
        LOOP(**given)


def test_one_flag_guides_pets():
    config = PETS.preset("debug", guided=True, guidance=LOOP.preset("debug").guidance)
    (level,) = config.build(TASK, CPU, seed=0).levels
    assert isinstance(level, GuidedLevel)
    assert level.n_proposals == 2
    assert level.world.objective.discount == config.guidance.sac.discount
    (plain,) = PETS.preset("debug").build(TASK, CPU, seed=0).levels
    assert type(plain) is PlannerLevel
    assert plain.world.objective.value is None


def test_tdmpc2_plans_with_mppi_or_another_planner():
    config = TDMPC2.preset("debug")
    (level,) = config.build(TASK, CPU, seed=0).levels
    assert isinstance(level.planner, MPPI)
    for kind, expected in (("icem", ICEM), ("cem", CEM), ("random_shooting", RandomShooting)):
        (level,) = replace(config, planner=replace(config.planner, kind=kind)).build(TASK, CPU, seed=0).levels
        assert isinstance(level.planner, expected)
        assert level.planner.horizon == 3
        assert level.planner.config.n_samples <= 24


@pytest.mark.parametrize(("steps", "discount"), [(None, 0.995), (1000, 0.995), (500, 0.99), (100, 0.95), (10, 0.95)])
def test_the_discount_follows_from_the_length_of_episodes(steps, discount):
    choices = {c.name: c.value for c in TDMPC2.suited(replace(FACTS, episode_steps=steps))}
    assert np.isclose(choices["latent.discount"], discount)
    assert not choices["latent.terminations"]
    assert "learning.persistence" not in choices
    silent = {c.name: c.value for c in TDMPC2.suited(replace(FACTS, episode_steps=steps, silent=True))}
    assert silent["learning.persistence"] == 0.9
    assert silent["learning.n_random_steps"] >= choices["learning.n_random_steps"]
    assert {c.name: c.value for c in TDMPC2.suited(replace(FACTS, ends_after=20.0))}["latent.terminations"]
