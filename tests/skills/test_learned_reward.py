"""A task's reward that nobody knows: from what it is learned, in which units, and going on after a stop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tianshou.data import Batch

from layeredrl.skills import DADS, SkillModelConfig, SPlaTES
from tests.skills.walk import CHOICES, SKILLS, TASK, Walk, learn_along, make_world

CONFIG = SkillModelConfig(
    n_first=40, batch_size=32, n_priors=3, std=0.5, updates_per_segment=4, refresh_every=20, report_every=20
)
METHODS = pytest.mark.parametrize("kind", [SPlaTES, DADS])


def pay(obs):
    """Rewards (n,) of observations (n, WIDTH)."""
    return -np.linalg.norm(obs[:, :2] - obs[:, 2:4], axis=1)


def make(kind=SPlaTES, config=CONFIG, *, steps=5, known=False, **world):
    return kind(TASK, make_world(steps=steps, known=known, **world), steps, config=config)


# ------------------------------------------------------------------ from what


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize(
    ("n_envs", "size", "skill_steps", "action_steps", "done"),
    [
        (1, 400, 5, 1, 0.05),
        (3, 37, 5, 1, 0.1),  # the ring has gone round several times, and cut skills in two
        (1, 18, 6, 1, 0.0),  # what lies before the oldest transition looks as if it belonged to its skill
        (2, 50, 1, 1, 0.2),
        (3, 41, 6, 3, 0.05),  # actions stand for several steps
        (2, 41, 7, 3, 0.1),  # of which the skill's duration is no multiple
    ],
)
def test_a_skill_brings_the_sum_of_what_was_paid_while_it_was_carried_out(
    n_envs, size, skill_steps, action_steps, done, share
):
    rng = np.random.default_rng(5)
    walk = Walk(
        n_envs, size, skill_steps, action_steps=action_steps, done=done, pay=lambda obs: rng.normal(size=n_envs)
    )
    walk.step(149)
    method = make(config=replace(CONFIG, newest=share), steps=skill_steps)
    kept = {id(row) for rows in walk.rows for row in rows[-size:]}
    drawn = {id(row) for rows in walk.newest(share) for row in rows}
    expected = {}
    for parts in walk.whole_skills():
        if all(id(row) in kept for row in parts) and any(id(row) in drawn for row in parts):
            expected[tuple(parts[-1].obs_next.tolist())] = sum(row.rew for row in parts)
    found = method.segments(walk.replay, 4000)
    assert found.rew.dtype == torch.float32
    paid = dict(zip(map(tuple, found.obs_next.tolist()), found.rew.tolist(), strict=True))
    assert paid == pytest.approx(expected, abs=1e-5)
    assert expected


def test_a_step_brings_what_was_paid_for_it():
    walk = Walk(2, pay=pay).step(60)
    found = make(DADS).segments(walk.replay, 500)
    expected = {tuple(row.obs_next.tolist()): row.rew for rows in walk.rows for row in rows[-30:]}
    paid = dict(zip(map(tuple, found.obs_next.tolist()), found.rew.tolist(), strict=True))
    assert paid == pytest.approx(expected, abs=1e-5)


def test_where_the_reward_is_known_nothing_is_asked_for():
    walk, method = Walk(2).step(60), make(known=True)
    assert method.learned_reward is None
    assert "rew" not in method.segments(walk.replay, 50)
    assert "reward_optimizer" not in method.state_dict()
    told = learn_along(method, walk, 30)
    assert told
    assert not any("model/reward_loss" in metrics for metrics in told.values())


# ------------------------------------------------------------------ what is learned


@METHODS
def test_it_comes_to_what_a_known_reward_would_have_said(kind):
    """Of skills that stay where they are, for which a coarse step's reward at its end is exact."""
    method = make(kind, replace(CONFIG, updates_per_segment=4, report_every=40, reward_learning_rate=1e-2))
    walk = Walk(16, spread=2.0, pay=pay)
    told = learn_along(method, walk, 40)
    state, context = 2 * torch.randn(200, 2), 2 * torch.randn(200, 2)
    skill = torch.zeros(200, 2)
    known = TASK.coarse(SKILLS, 5 if kind is SPlaTES else 1).reward(state, context, skill, state)
    with torch.no_grad():
        found = method.world.reward(state, context, skill, state)
    assert (found - known).abs().mean() < 0.15 * known.std()
    assert abs(float((found - known).mean())) < 0.05 * float(known.mean().abs())
    assert told[max(told)]["model/reward_loss"] < 0.03


def test_scales_are_those_of_the_newest_data_when_they_are_refreshed():
    method, walk = make(config=replace(CONFIG, refresh_every=50, newest=0.1)), Walk(2, pay=pay)
    learn_along(method, walk, 30)
    net = method.world.reward_net
    before = float(net.targets.mean)
    dynamics = [x.clone() for x in method.dynamics.network.buffers()]
    walk.pay = lambda obs: 100 + pay(obs)
    learn_along(method, walk, 60)
    assert before < 0
    assert float(net.targets.mean) == pytest.approx(5 * 100, rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(dynamics, method.dynamics.network.buffers(), strict=True))


def test_reports_tell_the_mean_loss_of_every_tenth_update(monkeypatch):
    method, walk = make(config=replace(CONFIG, updates_per_segment=12)), Walk(2, pay=pay)
    losses, learn = [], method.learned_reward.learn
    monkeypatch.setattr(method.learned_reward, "learn", lambda *args: losses.append(learn(*args)) or losses[-1])
    told, n_told = learn_along(method, walk, 40), 0
    for n, metrics in told.items():
        stop = int(12 * (n - 40) / 5)
        chosen = [float(losses[i]) for i in range(n_told, stop) if i % 10 == 0]
        assert metrics["model/reward_loss"] == pytest.approx(np.mean(chosen), rel=1e-5)
        n_told = stop
    assert [*told] == [60, 80]


def test_the_learning_rate_falls_with_that_of_the_dynamics():
    method, walk = make(config=replace(CONFIG, decay=(60, 100), reward_learning_rate=2e-3)), Walk(2, pay=pay)
    learn_along(method, walk, 40)
    rates = [group["lr"] for group in method.learned_reward.optimizer.param_groups]
    assert rates == pytest.approx([2e-3 * (1 - 0.9 * 20 / 40)])


@METHODS
def test_skills_of_choices(kind):
    method, walk = make(kind, skills=CHOICES), Walk(2, skills=CHOICES, pay=pay)
    told = learn_along(method, walk, 40)
    assert np.isfinite(told[80]["model/reward_loss"])
    result = method.world.rollout(torch.zeros(3, 7), torch.zeros(3, 2, 1, dtype=torch.int64))
    assert result.reward.isfinite().all()


def test_the_state_of_another_optimiser_is_refused():
    method, other = make(), make()
    learn_along(method, Walk(2, pay=pay), 40)
    state = copy.deepcopy(method.state_dict())
    state["reward_optimizer"]["state"][0]["exp_avg"] = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="state of the skill reward's optimizer has"):
        other.load_state_dict(state)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_learning_rate_out_of_range_is_named(rate):
    with pytest.raises(ValueError, match=f"reward_learning_rate is {rate}"):
        SkillModelConfig(reward_learning_rate=rate)


def test_planning_uses_what_was_learned():
    """The best of some skills, by the learned reward, is one that leads towards the goal."""
    method = make(config=replace(CONFIG, reward_learning_rate=1e-2))
    learn_along(method, Walk(16, pay=pay), 40)
    obs = torch.zeros(1, 7)
    obs[0, 2:4] = torch.tensor([1.5, -1.5])
    ways = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]])
    scores = method.world.score(obs, ways[None, :, None])
    assert scores.shape == (1, 4)
    assert int(scores.argmax()) == 0
    assert int(scores.argmin()) == 1
    assert isinstance(method.world.rollout(obs, ways[None, :1]), Batch)
