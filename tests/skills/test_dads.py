"""DADS: rewards of single steps against a plain loop, and what its model learns from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from layeredrl.levels import PolicyLearningConfig, SACConfig, TD3Config, off_policy
from layeredrl.skills import DADS, SkillLevel, SkillModelConfig
from layeredrl.skills.dads import LOWEST
from tests.skills.walk import CHOICES, TASK, Walk, as_batch, make_world, triples

CPU = torch.device("cpu")
CONFIG = SkillModelConfig(n_first=40, batch_size=32, n_priors=5, std=1.0, final_std=1.0, updates_per_segment=15)


def make(config=CONFIG, **world):
    return DADS(TASK, make_world(steps=1, repeat=5, **world), 5, config=config)


@pytest.mark.parametrize("world", [{}, {"n_models": 2}, {"skills": CHOICES}], ids=["one", "two", "choices"])
def test_every_step_is_paid_for_what_it_tells_of_the_skill(world):
    walk = Walk(2, skills=world.get("skills", Walk().skills)).step(60)
    method = make(**world)
    for n in (100, 105):
        method.learn(walk.replay, n)
    rows = walk.rows[0][:20]
    with torch.no_grad():
        torch.manual_seed(1)
        found = method.reward(as_batch(rows))
        torch.manual_seed(1)
        others = method.prior(20 * 5, CPU).view(20, 5, -1)
        matrix = method.whitening.matrix.double()
        for i, row in enumerate(rows):
            state, after = (torch.tensor(x[None, :2]) for x in (row.obs, row.obs_next))
            goal = torch.tensor(row.obs[None, 2:4])
            densities = []
            for skill in (torch.tensor(row.skill), *others[i]):
                mean, weights, _, _ = method.dynamics.predict(state, goal, skill[None])
                mean, weights = mean[0].flatten(0, 1).double(), weights[0].flatten().double()
                steps = Independent(Normal((mean - state) @ matrix.mT, torch.ones(len(mean), 2).double()), 1)
                mixture = MixtureSameFamily(Categorical(weights / weights.sum()), steps)
                densities.append(math.exp(float(mixture.log_prob((after - state)[0].double() @ matrix.mT))))
            assert float(found[i]) == pytest.approx(math.log(densities[0] / (sum(densities) / 6)), abs=1e-3)
    assert found.std() > 0.05


def test_with_a_learned_deviation_rewards_are_those_of_the_model_s_own_mixture():
    config = replace(CONFIG, deviation="learned", std=0.2, final_std=0.2)
    walk, method = Walk(2, noise=0.3).step(60), make(config, n_models=2)
    for n in (100, 130):
        method.learn(walk.replay, n)
    rows = walk.rows[0][:20]
    least = 0.2 * method.whitening.covariance.diagonal().sqrt().double()
    raised = 0
    with torch.no_grad():
        torch.manual_seed(1)
        found = method.reward(as_batch(rows))
        torch.manual_seed(1)
        others = method.prior(20 * 5, CPU).view(20, 5, -1)
        for i, row in enumerate(rows):
            state, after = (torch.tensor(x[None, :2]) for x in (row.obs, row.obs_next))
            densities = []
            for skill in (torch.tensor(row.skill), *others[i]):
                mean, weights, std, _ = method.dynamics.predict(state, torch.tensor(row.obs[None, 2:4]), skill[None])
                mean, weights, std = mean[0].flatten(0, 1).double(), weights.flatten().double(), std[0].flatten(0, 1)
                raised += int((std.double() < least).sum())
                parts = Independent(Normal(mean, std.double().maximum(least)), 1)
                mixture = MixtureSameFamily(Categorical(weights / weights.sum()), parts)
                densities.append(math.exp(float(mixture.log_prob(after[0].double()))))
            assert float(found[i]) == pytest.approx(math.log(densities[0] / (sum(densities) / 6)), abs=1e-3)
    assert raised > 0


def importance(clip, **world):
    """A method with a level above a walk whose actions the policy drew."""
    torch.manual_seed(0)
    method = DADS(
        TASK, make_world(steps=1, repeat=5, weighted_loss=True, **world), 5, config=CONFIG, importance_clip=clip
    )
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    algorithm = SACConfig(hidden=(8,)).build(method.n_inputs, space, CPU)
    return method, SkillLevel(algorithm, method, space, n_envs=2, learning=PolicyLearningConfig(n_random_steps=10))


def test_the_model_learns_by_how_much_likelier_steps_have_become():
    method, level = importance(1.5)
    walk = Walk(2).step(60)
    for rows in zip(*walk.rows, strict=True):
        transitions = Batch(
            obs=np.stack([row.obs for row in rows]),
            act=np.stack([0.9 * row.skill for row in rows]),
            rew=np.zeros(2),
            terminated=np.zeros(2, bool),
            truncated=np.zeros(2, bool),
            obs_next=np.stack([row.obs_next for row in rows]),
            info=Batch(
                duration=np.ones(2, np.int64),
                command=Batch(
                    action=np.stack([row.skill for row in rows]),
                    obs=np.stack([row.start for row in rows]),
                    elapsed=np.array([row.elapsed for row in rows]),
                    remaining=np.array([row.remaining for row in rows]),
                ),
            ),
        )
        level.n_total_env_steps = 10**6
        level.observe(transitions, np.arange(2))
    stored = level.replay.all()

    def density(obs, command, act):
        mean, std = level.algorithm.policy.actor(level.inputs(obs, command))[0]
        raw = TransformedDistribution(Normal(mean.double(), std.double()), TanhTransform())
        return raw.log_prob(act.double()).sum(-1)

    command = Batch(
        **{key: torch.as_tensor(stored.info.command[key]) for key in ("action", "obs", "elapsed", "remaining")}
    )
    obs, act = torch.as_tensor(stored.obs), torch.as_tensor(stored.act)
    with torch.no_grad():
        then = density(obs, command, act)
        torch.testing.assert_close(torch.as_tensor(stored.info.log_prob).double(), then, rtol=1e-3, atol=1e-3)
        for parameter in level.algorithm.policy.actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        now = density(obs, command, act)
    expected = {
        tuple(o): w for o, w in zip(stored.obs.tolist(), (now - then).exp().clamp(1 / 1.5, 1.5).tolist(), strict=True)
    }
    found = method.segments(level.replay, 500)
    for row, weight in zip(found.obs.tolist(), found.weight.tolist(), strict=True):
        assert weight == pytest.approx(expected[tuple(row)], rel=1e-3)
    assert float(found.weight.min()) < 0.9
    assert float(found.weight.max()) == pytest.approx(1.5)
    assert torch.equal(method._transitions(found).weight, found.weight)


def test_random_steps_have_the_density_of_a_uniform_one():
    _, level = importance(10.0)
    rows = Batch(act=np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(level._log_prob_then(rows), math.log(1 / 4), rtol=1e-6)


@pytest.mark.parametrize(("clip", "weighted"), [(1.0, True), (2.0, False)])
def test_the_dynamics_has_to_take_the_weights(clip, weighted):
    with pytest.raises(
        ValueError, match=rf"importance_clip is {clip}, but weighted_loss of the dynamics is {weighted}"
    ):
        DADS(TASK, make_world(steps=1, repeat=5, weighted_loss=weighted), 5, config=CONFIG, importance_clip=clip)


def test_a_policy_without_a_density_is_refused():
    space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    algorithm = TD3Config(hidden=(8,)).build(3, space, CPU)
    with pytest.raises(TypeError, match="expected SAC's: others have no density"):
        off_policy.log_prob(algorithm, torch.zeros(1, 3), torch.zeros(1, 2))


@torch.no_grad()
def test_what_the_model_thinks_impossible_costs_no_more_than_the_lowest():
    walk = Walk(2, noise=3.0).step(10)
    method = make(SkillModelConfig(std=1e-3, final_std=1e-3))
    found = method.reward(as_batch(walk.rows[0]))
    assert found.min() == LOWEST
    assert found.max() <= math.log(17)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_segments_are_single_steps_among_the_newest(share):
    walk = Walk(3, size=31).step(100)
    method = make(SkillModelConfig(newest=share))
    found = method.segments(walk.replay, 2000)
    rows = [row for newest in walk.newest(share) for row in newest]
    columns = ([getattr(row, name) for row in rows] for name in ("obs", "skill", "obs_next"))
    assert triples(found.obs.numpy(), found.act.numpy(), found.obs_next.numpy()) == triples(*columns)
    assert len(found.obs) == 2000


@torch.no_grad()
def test_the_planner_s_world_holds_each_skill_for_its_duration():
    world = make(n_modes=1).world
    for name, parameter in world.dynamics.network.named_parameters():
        if "bounds" in name:
            parameter.fill_(-40.0)  # log-variances, so that states are the means
    obs = torch.tensor(np.random.default_rng(0).normal(size=(3, 7)), dtype=torch.float32)
    skills = 2 * torch.rand((3, 2, 2), generator=torch.Generator().manual_seed(0)) - 1
    result = world.rollout(obs, skills)
    assert result.state.shape == (3, 1, 1, 11, 2)
    assert result.reward.shape == (3, 1, 1, 10)
    (state, context), alive, returns = world.encode(obs), torch.ones(3), torch.zeros(3)
    for t in range(10):
        mean, _, _, term_prob = world.dynamics.predict(state, context, skills[:, t // 5])
        state = mean[:, 0, 0]
        torch.testing.assert_close(result.state[:, 0, 0, t + 1], state)
        returns += alive * -(state - context).norm(dim=-1)
        alive *= 1 - term_prob
    torch.testing.assert_close(result.returns[:, 0, 0], returns)
