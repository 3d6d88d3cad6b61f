"""DADS: rewards of single steps against a plain loop, segments, and importance weights."""

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

from layeredrl import off_policy
from layeredrl.levels import PolicyLearningConfig
from layeredrl.off_policy import SACConfig, TD3Config
from layeredrl.skills import DADS, SkillLevel, SkillModelConfig
from layeredrl.skills.dads import LOWEST
from tests.skills.walk import CHOICES, TASK, Walk, as_batch, make_world, no_log_prob, triples

CPU = torch.device("cpu")
ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
CONFIG = SkillModelConfig(n_first=40, batch_size=32, n_priors=5, std=1.0, final_std=1.0, updates_per_segment=10)
LEARNED = replace(CONFIG, deviation="learned", std=0.2, final_std=0.2, updates_per_segment=40)


def make(config=CONFIG, **world):
    return DADS(TASK, make_world(steps=1, repeat=5, **world), 5, config=config)


@pytest.mark.parametrize(
    ("config", "world"),
    [(CONFIG, {}), (CONFIG, {"skills": CHOICES, "n_models": 2}), (LEARNED, {"n_models": 2})],
    ids=["one member", "choices", "learned deviation"],
)
def test_every_step_is_rewarded_by_its_information_about_the_skill(config, world):
    """Fixed deviations count in whitened coordinates; learned ones are the model's, floored at `std`."""
    walk, method = Walk(2, skills=world.get("skills", Walk().skills), noise=0.3).step(60), make(config, **world)
    for n in (100, 110):
        method.learn(walk.replay, n, no_log_prob)
    rows, n_floored = walk.rows[0][:15], 0
    with torch.no_grad():
        torch.manual_seed(1)
        found = method.reward(as_batch(rows))
        torch.manual_seed(1)
        others = method.prior(15 * 5, CPU).view(15, 5, -1)
        matrix = torch.eye(2).double() if config is LEARNED else method.whitening.matrix.double()
        floor = 0.2 * method.whitening.covariance.diagonal().sqrt().double()
        for i, row in enumerate(rows):
            state, after, goal = (torch.tensor(x[None]) for x in (row.obs[:2], row.obs_next[:2], row.obs[2:4]))
            densities = []
            for skill in (torch.tensor(row.skill), *others[i]):
                mean, weights, std, _ = method.dynamics.predict(state, goal, skill[None])
                mean, std = mean[0].flatten(0, 1).double(), std[0].flatten(0, 1).double()
                n_floored += int((std < floor).sum())
                std = std.maximum(floor) if config is LEARNED else torch.ones_like(mean)
                weights = weights.flatten().double()
                steps = Independent(Normal((mean - state) @ matrix.mT, std), 1)
                mixture = MixtureSameFamily(Categorical(weights / weights.sum()), steps)
                densities.append(math.exp(float(mixture.log_prob((after - state)[0].double() @ matrix.mT))))
            assert float(found[i]) == pytest.approx(math.log(densities[0] / (sum(densities) / 6)), abs=1e-3)
    assert found.std() > 0.02
    assert config is CONFIG or n_floored > 0


def with_importance(clip):
    """A method with importance weights, and the level that executes its skills."""
    torch.manual_seed(0)
    world = make_world(steps=1, repeat=5, weighted_loss=True)
    method = DADS(TASK, world, 5, config=CONFIG, importance_clip=clip)
    algorithm = SACConfig(hidden=(8,)).build(method.n_inputs, ACTIONS, CPU)
    return method, SkillLevel(algorithm, method, ACTIONS, n_envs=2, learning=PolicyLearningConfig(n_random_steps=10))


def test_the_model_s_loss_is_weighted_by_current_over_behaviour_probability():
    method, level = with_importance(1.5)
    level.n_total_env_steps = 10**6
    for rows in zip(*Walk(2).step(60).rows, strict=True):
        batch = as_batch(list(rows))
        zeros = np.zeros(2, bool)
        info = Batch(duration=np.ones(2, np.int64), command=Batch({k: x.numpy() for k, x in batch.command.items()}))
        transitions = Batch(rew=np.zeros(2), terminated=zeros, truncated=zeros, info=info)
        transitions.obs, transitions.obs_next = batch.obs.numpy(), batch.obs_next.numpy()
        transitions.act = np.stack([0.9 * row.skill for row in rows])
        level.observe(transitions, np.arange(2))
    stored = level.replay.all()

    def log_density():
        command = Batch({key: torch.as_tensor(x) for key, x in stored.info.command.items()})
        mean, std = level.algorithm.policy.actor(level.inputs(torch.as_tensor(stored.obs), command))[0]
        squashed = TransformedDistribution(Normal(mean.double(), std.double()), TanhTransform())
        return squashed.log_prob(torch.as_tensor(stored.act).double()).sum(-1)

    with torch.no_grad():
        behaviour = log_density()
        torch.testing.assert_close(torch.as_tensor(stored.info.log_prob).double(), behaviour, rtol=1e-3, atol=1e-3)
        for parameter in level.algorithm.policy.actor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ratio = (log_density() - behaviour).exp().clamp(1 / 1.5, 1.5)
    expected = dict(zip(map(tuple, stored.obs.tolist()), ratio.tolist(), strict=True))
    found = method.segments(level.replay, 500, level.log_prob)
    for row, weight in zip(found.obs.tolist(), found.weight.tolist(), strict=True):
        assert weight == pytest.approx(expected[tuple(row)], rel=1e-3)
    assert float(found.weight.min()) < 0.9
    assert float(found.weight.max()) == pytest.approx(1.5)
    assert torch.equal(method.learner._rows(found).weight, found.weight)


def test_the_log_probability_of_a_random_action_is_that_of_a_uniform_one():
    _, level = with_importance(10.0)
    rows = Batch(act=np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(level._behaviour_log_prob(rows), math.log(1 / 4), rtol=1e-6)


@pytest.mark.parametrize(("clip", "weighted"), [(1.0, True), (2.0, False)])
def test_importance_weights_need_a_dynamics_that_takes_them(clip, weighted):
    message = rf"importance_clip is {clip}, but weighted_loss of the dynamics is {weighted}, expected {not weighted}"
    with pytest.raises(ValueError, match=message):
        DADS(TASK, make_world(steps=1, repeat=5, weighted_loss=weighted), 5, config=CONFIG, importance_clip=clip)


def test_a_policy_without_a_density_is_refused():
    algorithm = TD3Config(hidden=(8,)).build(3, ACTIONS, CPU)
    with pytest.raises(TypeError, match="expected SAC's: others have no density"):
        off_policy.log_prob(algorithm, torch.zeros(1, 3), torch.zeros(1, 2))


@torch.no_grad()
def test_the_reward_of_an_impossible_step_is_bounded():
    found = make(SkillModelConfig(std=1e-3, final_std=1e-3)).reward(as_batch(Walk(2, noise=3.0).step(10).rows[0]))
    assert found.min() == LOWEST
    assert found.max() <= math.log(17)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_segments_are_single_steps_among_the_newest(share):
    rng = np.random.default_rng(5)
    walk = Walk(3, size=31, reward=lambda obs: rng.normal(size=3)).step(100)
    found = make(SkillModelConfig(newest=share), known=False).segments(walk.replay, 2000, no_log_prob)
    rows = [row for newest in walk.newest(share) for row in newest]
    columns = ([getattr(row, name) for row in rows] for name in ("obs", "skill", "obs_next"))
    assert triples(found.obs.numpy(), found.act.numpy(), found.obs_next.numpy()) == triples(*columns)
    assert len(found.obs) == 2000
    rewards = dict(zip(map(tuple, found.obs_next.tolist()), found.rew.tolist(), strict=True))
    assert rewards == pytest.approx({tuple(row.obs_next.tolist()): row.rew for row in rows}, abs=1e-5)


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
