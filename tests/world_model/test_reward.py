"""Learning of a reward, and of an encoder along with it."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.models import FitConfig
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, LearnedEncoder, Oracle, WorldModel
from layeredrl.world_model.reward import RewardLearner
from layeredrl.world_model.transitions import BatchTransitions

ACTIONS, CHOICES = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3)
PLACE = spaces.Box(-np.inf, np.inf, (2,), np.float32)
PARTS = spaces.Dict(desired_goal=PLACE, observation=spaces.Box(-np.inf, np.inf, (4,), np.float32))
MIX = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0]
"""Rotates the position, the first two of four numbers, into the observation."""


def make(encoder=None, actions=ACTIONS, learning_rate=1e-2):
    torch.manual_seed(0)
    task = TaskSpec(PARTS, actions)
    encoder = Encoder(task) if encoder is None else encoder(task)
    dynamics = Oracle.from_step(encoder.state_space, encoder.context_space, actions, lambda state, *_: state)
    world = WorldModel(encoder, dynamics, task, reward_hidden=(32,))
    return RewardLearner(world, world.reward_net, learning_rate)


def learned_encoder(task):
    return LearnedEncoder(task, 2, 2)


def make_data(n=256, seed=0, actions=ACTIONS):
    """The reward is minus the distance of the position from the goal after the transition."""
    generator = torch.Generator().manual_seed(seed)
    goal, place = torch.randn(n, 2, generator=generator), torch.randn(n, 4, generator=generator)
    after = place + 0.1 * torch.randn(n, 4, generator=generator)
    act = torch.rand(n, 2, generator=generator) * 2 - 1
    if isinstance(actions, spaces.Discrete):
        act = torch.arange(n)[:, None] % 3
    obs, obs_next = (torch.cat([goal, x @ MIX], -1) for x in (place, after))
    return Batch(obs=obs, obs_next=obs_next, act=act, rew=-(after[:, :2] - goal).norm(dim=-1), place=place, goal=goal)


def fit(learner, data, config):
    return learner.fit(BatchTransitions(data), learner.moments(data), config, torch.Generator().manual_seed(0))


def error(learner, data):
    """Mean squared error of the world's reward, in units of the reward's variance."""
    with torch.no_grad():
        (state, context), (after, _) = learner.world.encode(data.obs), learner.world.encode(data.obs_next)
        predicted = learner.world.reward(state, context, data.act, after)
    return float((predicted - data.rew).square().mean() / data.rew.var(correction=0))


@pytest.mark.parametrize("actions", [ACTIONS, CHOICES], ids=["box", "choices"])
def test_a_fit_learns_the_reward(actions):
    learner, data = make(actions=actions), make_data(600, actions=actions)
    config = FitConfig(epochs=20, batch_size=64)
    result = fit(learner, data, config)
    assert error(learner, make_data(200, seed=1, actions=actions)) < 0.15
    assert result[0] == pytest.approx(error(learner, data), abs=0.05)
    assert result[1] == 0  # no step was skipped


def test_a_fit_leaves_the_encoder():
    learner = make(learned_encoder)
    before = copy.deepcopy(learner.world.encoder.state_dict())
    fit(learner, make_data(), FitConfig(epochs=2))
    assert all(torch.equal(x, before[name]) for name, x in learner.world.encoder.state_dict().items())


def test_a_step_has_the_loss_of_its_batch_and_a_rate_of_its_own():
    learner, data = make(), make_data()
    learner.fit_scales(data)
    expected = error(learner, data)
    loss = learner.step(data, 0.25)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert not loss.requires_grad
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.25e-2]
    assert error(learner, data) < expected


def test_a_learned_encoder_finds_what_the_reward_depends_on():
    """The position, rotated into dimensions that change as much, and the goal."""
    learner = make(learned_encoder, learning_rate=2e-2)
    encoder, data = learner.world.encoder, make_data(1000)
    encoder.fit(data.obs, data.obs_next)
    assert encoder.changes.tolist() == [False] * 2 + [True] * 4

    def explained():
        """Share of the variance of the position and of the goal that is linear in state and context."""
        with torch.no_grad():
            found, shares = encoder(data.obs), []
        for x, y in zip(found, (data.place[:, :2], data.goal), strict=True):
            x = torch.cat([x, torch.ones(len(x), 1)], -1)
            rest = y - x @ torch.linalg.lstsq(x, y).solution
            shares.append(float((1 - rest.var(0) / y.var(0)).min()))
        return shares

    assert explained()[0] < 0.8
    learner.fit_scales(data)
    for seed in range(200):
        learner.step(make_data(128, seed=seed), 1.0)
    state, context = explained()
    assert state > 0.93
    assert context > 0.99
    for rows in (encoder.to_state, encoder.to_context):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def test_the_state_of_another_optimiser_is_refused():
    learner, other = make(), make()
    learner.step(make_data(), 1.0)
    state = copy.deepcopy(learner.state_dict())
    other.load_state_dict(state)
    state["state"][0]["exp_avg"] = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="state of the reward's optimizer has exp_avg of shape"):
        other.load_state_dict(state)
