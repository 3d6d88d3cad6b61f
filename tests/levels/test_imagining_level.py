"""A level that learns from what it imagines: its batches, its schedule, its metrics, and resuming."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from layeredrl.levels import ImaginingLevel, PolicyLearningConfig
from layeredrl.models import FitConfig
from layeredrl.off_policy import SACConfig
from layeredrl.storage import Checkpoints
from layeredrl.world_model import (
    Imagination,
    ImaginationConfig,
    ModelLearningConfig,
    OnlineLearningConfig,
    WorldModelLearner,
)
from tests.recording import leaves, stored
from tests.world_model.points import ACTION, E, make_world, random_rows

CPU = torch.device("cpu")
FITTING = ModelLearningConfig(n_random_steps=12, fit_every=6, fit=FitConfig(epochs=2, batch_size=16), replay_size=300)
LEARNING = PolicyLearningConfig(n_random_steps=6, updates_per_transition=0.5, batch_size=20, report_every=6)
IMAGINATION = ImaginationConfig(n_branches=30, n_steps=(2, 2), kept_fits=2)


def make(*, real_share=0.25, reward_scale=1.0, learning=LEARNING, fitting=FITTING, reward=None):
    world = make_world(reward=reward)
    algorithm = SACConfig(hidden=(8,), discount=0.9).build(2, ACTION, CPU)
    return ImaginingLevel(
        algorithm,
        ACTION,
        WorldModelLearner(world, fitting),
        Imagination(world, IMAGINATION, 0.9),
        real_share=real_share,
        reward_scale=reward_scale,
        learning=learning,
    )


def train(level, n_steps, start=0):
    """Metrics of some steps of E environments each."""
    metrics = []
    for i, row in enumerate(random_rows(n_steps, seed=start)):
        level.observe(row, np.arange(E))
        metrics.append(level.learn(E * (start + i + 1)))
    return metrics


def test_a_copy_of_a_level_has_inputs_of_its_own():
    level = make()
    train(level, 8)
    other = copy.deepcopy(level)
    obs = torch.ones(1, 2)
    before = other.inputs(obs, None)
    level.standardizer.mean += 1
    assert torch.equal(other.inputs(obs, None), before)
    assert not torch.equal(level.inputs(obs, None), before)


def test_the_model_comes_first_and_updates_follow():
    level = make()
    metrics = train(level, 10)
    fitted = [E * (i + 1) for i, each in enumerate(metrics) if "model/loss" in each]
    assert fitted == [12, 18, 24, 30]
    assert metrics[-1]["imagination/transitions"] == len(level.imagination) <= 2 * 30 * 2
    assert level.n_updates == int(0.5 * (30 - 11))  # counted from the transition before the first update
    assert not [m for m in metrics[:3] if m]


def test_it_acts_at_random_until_the_first_fit():
    level = make()
    train(level, 3)
    assert level.acts_at_random  # though the policy itself would act after 6 steps
    train(level, 1, start=3)
    assert not level.acts_at_random


@pytest.mark.parametrize(("real_share", "n_real"), [(0.25, 5), (0.0, 0), (1.0, 20)])
def test_batches_have_a_share_of_real_transitions(real_share, n_real):
    level = make(real_share=real_share)
    train(level, 8)
    batch = level.sample(3)
    stored = {tuple(row) for row in level.replay.column("obs_next").tolist()}
    for part in batch.obs_next.split(20):
        assert [tuple(row) in stored for row in part.tolist()] == [True] * n_real + [False] * (20 - n_real)
    assert batch.rew.shape == batch.discount.shape == (60,)
    assert batch.act.shape == (60, 2)


def test_rewards_are_scaled_by_those_before_the_first_fit():
    level = make(reward_scale=None, real_share=1.0)
    for row in random_rows(8):
        row.rew = 50 * row.rew
        level.observe(row, np.arange(E))
    level.learn(24)
    rewards = level.replay.column("rew")
    assert level.reward_scale == pytest.approx(1 / np.sqrt(np.mean(rewards**2)))
    drawn = level.sample(3).rew / level.reward_scale
    nearest = (drawn.unsqueeze(-1) - torch.from_numpy(rewards)).abs().min(-1).values
    assert nearest.max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool])
def test_a_known_reward_may_have_another_type(dtype):
    level = make(reward=lambda s, c, a, n: (n[..., 0] > 0).to(dtype))
    train(level, 8)
    assert level.n_updates > 0


def test_policy_and_critics_see_standardised_observations():
    level = make()
    train(level, 8)
    obs = torch.from_numpy(level.replay.column("obs"))
    inputs = level.inputs(obs, None)
    torch.testing.assert_close(inputs.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-4)


def test_new_transitions_are_predicted_before_they_are_learned_from():
    metrics = [m for m in train(make(), 12) if "model/loss" in m]
    assert "unseen/state_error" not in metrics[0]
    assert all(0 < m["unseen/state_error"] < 3 and 0 < m["unseen/reward_error"] < 3 for m in metrics[1:])
    assert "unseen/reward_error" not in [m for m in train(make(reward=lambda s, c, a, n: n[..., 0]), 8) if m][-1]


def test_the_critics_bias_is_their_value_less_the_rewards_that_follow():
    level = make()
    train(level, 12)
    rows = stored(level.replay, 0)
    obs, obs_next = (torch.from_numpy(rows[name]) for name in ("obs", "obs_next"))
    torch.manual_seed(0)
    bias = level.critic_bias()
    torch.manual_seed(0)
    value, value_next = level._value(obs), level._value(obs_next)
    total, totals = float(value_next[-1]), []
    for reward in reversed(rows.rew.tolist()):
        total = reward + 0.9 * total
        totals.append(total)
    assert bias == pytest.approx(float(value.mean()) - np.mean(totals), rel=1e-4)


def test_the_critics_bias_is_that_of_the_first_environment_with_transitions():
    level = make()
    for i, row in enumerate(random_rows(12, seed=0)):
        level.observe(row[1:], np.arange(1, E))
        level.learn(E * (i + 1))
    other = copy.deepcopy(level)
    for row in random_rows(12, seed=0):
        other.observe(row[1:2], np.zeros(1, int))
    biases = []
    for one in (level, other):
        torch.manual_seed(0)
        biases.append(one.critic_bias())
    assert biases[0] == pytest.approx(biases[1])


def test_reports_do_not_change_what_is_learned():
    learned = []
    for report_every in (6, 1000):
        level = make(learning=replace(LEARNING, report_every=report_every))
        torch.manual_seed(2)
        assert any("policy/critic_bias" in m for m in train(level, 10)) == (report_every == 6)
        learned.append(level.state_dict()["algorithm"]["networks"])
    assert leaves(learned[0]) == leaves(learned[1])


def test_cpu_time_is_reported_by_part():
    reports = [m for m in train(make(), 12) if "policy/updates" in m]
    for part in ("fits", "imagination", "updates"):
        spent = [m[f"time/{part}_cpu_seconds"] for m in reports]
        assert spent == sorted(spent)
        assert spent[-1] > 0


def test_a_restored_level_goes_on_alike(tmp_path):
    first, second = make(), make()
    train(first, 9)
    Checkpoints(tmp_path).save({"level": first.state_dict(), "replay": first.replay.state_dict()}, 27)
    state = Checkpoints(tmp_path).load()
    second.load_state_dict(state["level"])
    second.replay.load_state_dict(state["replay"])
    results = []
    for level in (first, second):
        torch.manual_seed(4)
        metrics = train(level, 8, start=9)
        results.append([{k: v for k, v in m.items() if not k.startswith("time/")} for m in metrics])
    assert results[0] == results[1]
    states = []
    for name, level in (("first", first), ("second", second)):
        fresh = Checkpoints(tmp_path / name)
        fresh.save(level.state_dict() | {"cpu_seconds": 0}, 0)
        states.append(fresh.load())
    assert leaves(states[0]) == leaves(states[1])
    assert second.cpu_seconds["fits"] > first.cpu_seconds["fits"] / 2


def test_bad_input():
    world = make_world()
    algorithm = SACConfig(hidden=(8,), discount=0.9).build(2, ACTION, CPU)
    learner, imagination = WorldModelLearner(world, FITTING), Imagination(world, IMAGINATION, 0.9)
    with pytest.raises(ValueError, match="the imagination's world model is another one"):
        ImaginingLevel(copy.deepcopy(algorithm), ACTION, learner, Imagination(make_world(), IMAGINATION, 0.9))
    with pytest.raises(ValueError, match=r"discount is 0\.5, expected 0\.9"):
        ImaginingLevel(copy.deepcopy(algorithm), ACTION, learner, Imagination(world, IMAGINATION, 0.5))
    with pytest.raises(ValueError, match=r"real_share is 1\.5"):
        ImaginingLevel(copy.deepcopy(algorithm), ACTION, learner, imagination, real_share=1.5)
    for share in (0.01, 0.99):
        with pytest.raises(
            ValueError, match=rf"real_share is {share} of batch_size \d+, of which (0|\d+) would be real"
        ):
            ImaginingLevel(copy.deepcopy(algorithm), ACTION, learner, imagination, real_share=share, learning=LEARNING)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"reward_scale is {scale}"):
            ImaginingLevel(copy.deepcopy(algorithm), ACTION, learner, imagination, reward_scale=scale)
    online = WorldModelLearner(world, OnlineLearningConfig())
    with pytest.raises(TypeError, match="the learner's config is OnlineLearningConfig"):
        ImaginingLevel(copy.deepcopy(algorithm), ACTION, online, imagination)
