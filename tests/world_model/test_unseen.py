"""Predictions of transitions before they are learned from, against a plain loop."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tianshou.data import Batch

from layeredrl.storage import Replay
from layeredrl.world_model.unseen import N_FITS, UnseenTransitions
from tests.world_model.points import E, fill, make_world, push, random_rows


def filled(world, n_steps=8, ends=(), ring_size=100, seed=0):
    """A replay of walks, of which those of environment 0 terminate at the steps `ends`."""
    replay, rng = Replay(ring_size * E, E), np.random.default_rng(seed)
    obs = rng.normal(size=(E, 2)).astype(np.float32)
    for t in range(n_steps):
        act = rng.uniform(-1, 1, (E, 2)).astype(np.float32)
        obs_next = push(obs, act).astype(np.float32)
        over = np.array([t in ends, False, False])
        replay.add(
            Batch(
                obs=obs,
                act=act,
                rew=-(obs_next.astype(float) ** 2).sum(-1),
                terminated=over,
                truncated=np.zeros(E, bool),
                obs_next=obs_next,
                info=Batch(duration=np.ones(E, int)),
            ),
            np.arange(E),
        )
        obs = np.where(over[:, None], rng.normal(size=(E, 2)), obs_next).astype(np.float32)
    return replay


@pytest.mark.parametrize("normalize", [True, False])
def test_errors_are_in_the_units_of_changes_and_of_the_learned_reward(normalize):
    world = make_world(reward=None, normalize_targets=normalize)
    replay = filled(world)
    obs, act, obs_next, rew = (torch.as_tensor(replay.column(x)).float() for x in ("obs", "act", "obs_next", "rew"))
    world.dynamics.fit_statistics({"state": obs, "context": obs[:, :0], "act": act, "state_next": obs_next})
    world.reward_net.fit_scales(torch.cat([obs, act, obs_next], -1), rew)
    metrics = UnseenTransitions(world, replay).metrics(2)
    with torch.no_grad():
        mean = world.dynamics.predict(obs, obs[:, :0], act)[0].mean((1, 2))
        unit = (obs_next - obs).std(0, correction=0)
        expected = ((mean - obs_next) / unit).square().mean().sqrt()
        reward = world.reward_net(obs, obs[:, :0], act, obs_next)
    assert metrics["unseen/state_error"] == pytest.approx(float(expected), rel=1e-3)
    expected = (reward - rew).square().mean().sqrt() / rew.std(correction=0)
    assert metrics["unseen/reward_error"] == pytest.approx(float(expected), rel=1e-3)


def test_a_dimension_that_begins_to_change_has_an_error_of_moderate_size():
    world = make_world()
    replay, errors = Replay(100 * E, E), []
    unseen = UnseenTransitions(world, replay)
    for n, flag in ((30, 0.0), (10, 1.0)):
        for row in random_rows(n, seed=n):
            row.obs[:, 1], row.obs_next[:, 1] = 0.0, flag
            replay.add(row, np.arange(E))
        errors.append(unseen.metrics(1)["unseen/state_error"])
        unseen.seen()
    assert all(0 < error < 10 for error in errors)  # at first that of the other dimension alone


def test_only_new_transitions_are_measured():
    world = make_world()
    replay = filled(world)
    unseen = UnseenTransitions(world, replay)
    assert unseen.metrics(1)
    unseen.seen()
    assert unseen.metrics(1) == {}
    fill(replay, 2, seed=3)
    assert len(unseen._transitions().obs) == 2 * E
    other = UnseenTransitions(world, replay)
    other.load_state_dict(unseen.state_dict())
    assert other.metrics(1) == unseen.metrics(1)


def test_returns_are_of_whole_stretches_of_an_episode():
    world = make_world()
    replay = filled(world, n_steps=6, ends=(2,))
    unseen = UnseenTransitions(world, replay)
    data = unseen._transitions()
    achieved = []
    for i in range(len(data.obs)):  # plain loop over starts
        steps = [i]
        while len(steps) < 3:
            j = steps[-1] + 1
            if j >= len(data.obs) or data.last[j - 1] or not torch.equal(data.obs_next[j - 1], data.obs[j]):
                break
            steps.append(j)
        else:
            achieved.append(float(data.rew[steps].sum()))
    assert len(achieved) == 2 + 4 + 4
    assert unseen.metrics(3)["unseen/return_achieved"] == pytest.approx(np.mean(achieved), rel=1e-5)
    assert "unseen/return_achieved" not in unseen.metrics(7)


def test_returns_do_not_go_on_in_another_environment():
    world = make_world()
    replay = Replay(100, E, seed=0)
    for row in random_rows(3, seed=0):  # all states are the same, so that only the environment tells rows apart
        row.obs, row.obs_next = np.zeros_like(row.obs), np.zeros_like(row.obs_next)
        row.terminated = row.truncated = np.zeros(E, bool)
        replay.add(row, np.arange(E))
    unseen = UnseenTransitions(world, replay)
    achieved = replay.column("rew").reshape(E, 3).sum(1).mean()
    assert unseen.metrics(3)["unseen/return_achieved"] == pytest.approx(achieved, rel=1e-5)
    assert "unseen/return_achieved" not in unseen.metrics(4)


@dataclass
class FixedTermination:
    """Predicts that those end whose first action is above zero."""

    def __call__(self, state, context, action):
        weights = torch.ones(*state.shape[:-1], 1, 1)
        return state[..., None, None, :], weights, None, (action[..., 0] > 0).float()


def test_precision_and_recall_of_terminations_are_counted_over_the_last_fits(monkeypatch):
    world = make_world()
    replay = filled(world, n_steps=40, ends=range(0, 40, 4))
    unseen = UnseenTransitions(world, replay)
    monkeypatch.setattr(world.dynamics, "predict", FixedTermination())
    act, true = replay.column("act")[:, 0] > 0, replay.column("terminated")
    for _ in range(N_FITS + 3):
        metrics = unseen.metrics(1)
    assert metrics["unseen/termination_precision"] == pytest.approx((act & true).sum() / act.sum())
    assert metrics["unseen/termination_recall"] == pytest.approx((act & true).sum() / true.sum())
    assert len(unseen._counts) == N_FITS
