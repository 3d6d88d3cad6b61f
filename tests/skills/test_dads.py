"""DADS: rewards of single steps against a plain loop, and what its model learns from."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from layeredrl.skills import DADS, SkillModelConfig
from layeredrl.skills.dads import LOWEST
from tests.skills.walk import CHOICES, TASK, Walk, as_batch, make_world, triples

CPU = torch.device("cpu")
CONFIG = SkillModelConfig(n_first=40, batch_size=32, n_priors=5, std=1.0, final_std=1.0, updates_per_skill=15)


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
