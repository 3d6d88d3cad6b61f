from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.sac import SAC
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLearningConfig, PolicyLevel
from layeredrl.off_policy import SACConfig, TD3Config
from layeredrl.off_policy.actor_critic import StackedSAC, StackedTD3
from layeredrl.task import TaskSpec
from tests.experiments.commands import QUICK, read_metrics, read_state, run_evaluate, run_train

CPU = torch.device("cpu")
TASK = TaskSpec(
    observation_space=spaces.Dict(
        desired_goal=spaces.Box(-1, 1, (2,), np.float64),
        observation=spaces.Box(-np.inf, np.inf, (3,), np.float64),
    ),
    action_space=spaces.Box(-1.0, 1.0, (2,), np.float32),
    n_envs=3,
)
SMALL = SAC(sac=SACConfig(hidden=(8,)), td3=TD3Config(hidden=(8,)))
KINDS = {"sac": StackedSAC, "td3": StackedTD3}


def _level(agent: Hierarchy) -> PolicyLevel:
    (level,) = agent.levels
    assert isinstance(level, PolicyLevel)
    return level


def _actions(agent: Hierarchy, seed: int = 0, *, explore: bool = False) -> np.ndarray:
    observations = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    return agent.act(observations, agent.initial_carry(3, seed), explore=explore)


@pytest.mark.parametrize("algorithm", KINDS)
def test_settings_reach_the_parts(algorithm: str) -> None:
    learning = PolicyLearningConfig(n_random_steps=11, replay_size=30)
    config = SAC(
        algorithm=algorithm,
        sac=SACConfig(hidden=(7,), discount=0.9),
        td3=TD3Config(hidden=(6,), discount=0.8),
        learning=learning,
    )
    level = _level(config.build(TASK, CPU, seed=0))
    assert type(level.algorithm) is KINDS[algorithm]
    assert level.learning is learning
    assert level.discount == level.algorithm.gamma == {"sac": 0.9, "td3": 0.8}[algorithm]
    assert level.action_space == TASK.action_space
    assert level.command_space is None
    assert [ring.maxsize for ring in level.replay.buffer.rings] == [10] * 3  # one for each environment
    first = next(level.algorithm.policy.actor.parameters())
    assert first.shape == (1, 5, {"sac": 7, "td3": 6}[algorithm])  # the goal is an input, too


def test_the_seed_reaches_the_replay() -> None:
    keys = [_level(SMALL.build(TASK, CPU, seed=seed)).replay.state_dict()["generators"]["keys"] for seed in (0, 0, 1)]
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[0], keys[2])


@pytest.mark.parametrize("algorithm", KINDS)
def test_actions_follow_the_seeds_and_keep_the_bounds(algorithm: str) -> None:
    config = replace(SMALL, algorithm=algorithm)
    torch.manual_seed(5)
    first = config.build(TASK, CPU, seed=0)
    torch.manual_seed(5)
    again = config.build(TASK, CPU, seed=0)
    other = config.build(TASK, CPU, seed=0)  # draws different networks
    for explore in (False, True):
        actions = _actions(first, explore=explore)
        assert actions.shape == (3, 2)
        assert (np.abs(actions) <= 1).all()
        np.testing.assert_array_equal(actions, _actions(again, explore=explore))
    np.testing.assert_array_equal(_actions(first), _actions(first, seed=1))  # deterministic
    assert not np.array_equal(_actions(first, explore=True), _actions(first, seed=1, explore=True))
    assert not np.array_equal(_actions(first), _actions(other))


@pytest.mark.parametrize("algorithm", KINDS)
@pytest.mark.parametrize("name", SAC.presets)
def test_every_preset_builds_and_acts(name: str, algorithm: str) -> None:
    preset = replace(SAC.preset(name), algorithm=algorithm)
    agent, other = preset.build(TASK, CPU, seed=0), preset.build(TASK, CPU, seed=1)
    assert not np.array_equal(_actions(agent), _actions(other))
    other.load_state_dict(agent.state_dict())
    np.testing.assert_array_equal(_actions(agent), _actions(other))


def test_the_paper_preset_has_the_published_settings() -> None:
    paper = SAC.preset("paper")
    assert (paper.sac.hidden, paper.sac.learning_rate, paper.sac.discount, paper.sac.tau) == (
        (256, 256),
        3e-4,
        0.99,
        0.005,
    )
    assert (paper.sac.alpha, paper.sac.target_entropy) == (None, None)
    assert (paper.learning.batch_size, paper.learning.replay_size) == (256, 1_000_000)
    assert (paper.learning.updates_per_transition, paper.learning.n_random_steps) == (1, 10_000)


@pytest.mark.parametrize("algorithm", KINDS)
@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4])])
def test_discrete_actions_are_refused(algorithm: str, space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"expected a flat Box .* `pets`, .* takes discrete actions") as refusal:
        replace(SMALL, algorithm=algorithm).build(replace(TASK, action_space=space), CPU, seed=0)
    assert str(space) in str(refusal.value)


@pytest.mark.parametrize("space", [spaces.Box(-2.0, 2.0, (2,)), spaces.Box(-1.0, 1.0, (2, 2))])
def test_actions_in_other_boxes_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"expected a flat Box of \[-1, 1\]$") as refusal:
        SMALL.build(replace(TASK, action_space=space), CPU, seed=0)
    assert str(space) in str(refusal.value)


@pytest.mark.parametrize("algorithm", KINDS)
def test_the_command_line_trains_and_evaluates(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    n_threads = torch.get_num_threads()
    run_train("sac", "--algorithm", algorithm, *QUICK, "--name", "r")
    reports = [row for row in read_metrics(Path("runs/r")) if row["policy/updates"]]
    assert [int(row["n_total_env_steps"]) for row in reports] == [30, 40, 50, 60]
    assert [float(row["policy/updates"]) for row in reports] == [11, 21, 31, 41]  # one per step from the twentieth on
    assert all(np.isfinite(float(row["policy/critic1_loss"])) for row in reports)
    level = read_state(Path("runs/r"))["agent"]["policy"]
    assert (level["n_updates"], level["n_total_env_steps"]) == (41, 60)
    run_evaluate("runs/r", "--episodes", 1)
    assert "60 environment steps" in capsys.readouterr().out
    torch.set_num_threads(n_threads)
