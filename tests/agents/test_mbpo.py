"""The agent that learns its policy in a model: its parts, and runs from the command line."""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.mbpo import MBPO
from agents.recipe import with_choices
from layeredrl.environments.facts import TaskFacts
from layeredrl.levels import ImaginingLevel
from layeredrl.models.config import EnsembleConfig
from layeredrl.task import TaskSpec
from layeredrl.world_model import ImaginationConfig, ModelLearningConfig
from tests.experiments.commands import QUICK, read_metrics, run_evaluate, run_train

CPU = torch.device("cpu")
TASK = TaskSpec(spaces.Box(-1, 1, (3,)), spaces.Box(-1.0, 1.0, (2,)), n_envs=2)


class EndsAtOnceEnv(gym.Env):
    """Every episode ends at its first step."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, True, False, {}


class NoRewardEnv(EndsAtOnceEnv):
    """Rewards never vary, and nothing ends an episode but a limit of 20 steps."""

    def step(self, action):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 0.0, False, False, {}


gym.register("MBPOEndsAtOnce-v0", EndsAtOnceEnv)
gym.register("MBPONoReward-v0", NoRewardEnv, max_episode_steps=20)


def test_settings_reach_the_parts():
    config = MBPO.preset("debug")
    config = replace(config, model=EnsembleConfig(n_models=3, hidden=(7,), predicts="next"), real_share=0.5)
    (level,) = config.build(TASK, CPU, seed=0).levels
    assert isinstance(level, ImaginingLevel)
    assert level.n_real == 8
    assert level.imagination.config is config.imagination
    assert level.imagination.discount == config.sac.discount
    dynamics = level.learner.dynamics
    assert dynamics.n_models == 3
    assert not dynamics.is_delta.any()


@pytest.mark.parametrize(
    ("state_dim", "ends_after", "explored"), [(11, 20.0, True), (17, None, False), (4, 20.0, False)]
)
def test_a_large_task_that_ends_early_is_explored_more(state_dim, ends_after, explored):
    facts = TaskFacts(state_dim, 2, False, False, False, ends_after=ends_after)
    config = with_choices(MBPO(), [c for c in MBPO.suited(facts) if not c.name.startswith("trainer.")])
    assert config.sac.target_entropy == (0.0 if explored else -1.0)
    assert config.fitting.termination == ("next_state" if explored else "dynamics")


def test_penalties_of_the_paper_count_for_its_own_loss():
    """A mean over 12 targets without the factor 1/2, against half the sum; one pair of bounds for seven members."""
    model = MBPO.preset("paper").model
    assert model.weight_decay[0] == pytest.approx(6 * 2.5e-5)
    assert model.bound_penalty == pytest.approx(6 * 0.01 / 7)
    assert not model.normalize_targets


def test_a_run_learns_and_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_train("mbpo", *QUICK, "--env", "Pendulum-v1", "--trainer.n-total-env-steps", 60, "--name", "r")
    columns = {key for row in read_metrics(Path("runs/r")) for key, value in row.items() if value}
    assert columns >= {"imagination/length", "unseen/state_error", "policy/critic1_loss", "time/updates_cpu_seconds"}
    assert "updates" in capsys.readouterr().out.partition("CPU time")[2]
    run_evaluate("runs/r", "--episodes", 1)
    assert "return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bound", "env"),
    [
        ("schedule", "MBPOEndsAtOnce-v0"),
        ("macura", "MBPONoReward-v0"),
        ("infoprop", "MBPOEndsAtOnce-v0"),
        pytest.param("schedule", "MBPONoReward-v0", marks=pytest.mark.slow),
        pytest.param("macura", "MBPOEndsAtOnce-v0", marks=pytest.mark.slow),
        pytest.param("infoprop", "MBPONoReward-v0", marks=pytest.mark.slow),
    ],
)
def test_odd_tasks_run(env, bound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_train(
        "mbpo", *QUICK, "--env", env, "--trainer.n-total-env-steps", 60, "--imagination.bound", bound, "--name", "r"
    )
    last = {key: float(value) for row in read_metrics(Path("runs/r")) for key, value in row.items() if value}
    assert all(np.isfinite(value) for value in last.values())
    if env == "MBPOEndsAtOnce-v0":
        assert last["imagination/length"] < 1.9  # of at most 3, though little has been learned


def test_infoprop_needs_several_members():
    config = replace(
        MBPO.preset("debug"), model=EnsembleConfig(n_models=1), imagination=ImaginationConfig(bound="infoprop")
    )
    with pytest.raises(ValueError, match="n_models is 1"):
        config.build(TASK, CPU, seed=0)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (
            "model",
            EnsembleConfig(propagation="ts1"),
            "model.propagation is ts1, expected tsinf: .*, nothing is planned",
        ),
        ("fitting", ModelLearningConfig(replay_size=7), r"fitting.replay_size is 7, .* has learning.replay_size"),
    ],
)
def test_settings_that_it_does_not_use_are_refused(part, settings, message):
    with pytest.raises(ValueError, match=message):
        MBPO(**{part: settings})
