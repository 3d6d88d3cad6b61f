"""A level that plans in a latent world model: its schedule, its batches, and resuming."""

import copy

import numpy as np
import pytest
import torch

from layeredrl.faults import NonFiniteError
from layeredrl.levels import LatentLevel
from layeredrl.planners import ICEM, MPPI, ICEMConfig, MPPIConfig
from layeredrl.world_model import LatentLearningConfig
from tests.world_model.latent_tasks import make_latent
from tests.world_model.points import ACTION, E, random_rows

LEARNING = LatentLearningConfig(n_random_steps=12, batch_size=8, report_every=6, updates_per_transition=0.5)
MPPI_ = MPPI(ACTION, MPPIConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=4, init_std=2.0, execute="sample"))


def make(planner=MPPI_, config=LEARNING, **settings):
    return LatentLevel(make_latent(noisy=False), planner, config, **{"n_proposals": 3} | settings)


def train(level, n_steps, start=0):
    metrics = []
    for i, row in enumerate(random_rows(n_steps, seed=start)):
        level.observe(row, np.arange(E))
        metrics.append(level.learn(E * (start + i + 1)))
    return metrics


def act(level, explore, seed=0, memory=None):
    generator = torch.Generator().manual_seed(seed)
    memory = level.initial_memory(E) if memory is None else memory
    return level.act(torch.ones(E, 2), None, memory, explore=explore, generator=generator)


@pytest.mark.parametrize(("first", "n_first"), [(None, 12), (3, 3)])
def test_first_many_updates_then_some_for_each_transition(first, n_first):
    level = make(config=LatentLearningConfig(**vars(LEARNING) | {"first_updates": first}))
    train(level, 3)
    assert level.n_updates == 0
    metrics = train(level, 5, start=3)
    assert level.n_updates == n_first + (5 - 1) * E // 2
    assert [bool(each) for each in metrics] == [False, False, True, False, True]
    assert metrics[-1]["model/updates"] == level.n_updates


def test_it_acts_at_random_then_plans_with_noise_of_the_plans_own_width():
    level = make()
    first, second = act(level, True, 0).action, act(level, True, 0).action
    assert torch.equal(first, second)  # random actions do not depend on the model
    train(level, 6)
    quiet, noisy = act(level, False).action, act(level, True).action
    assert quiet.shape == noisy.shape == (E, 2)
    assert not torch.equal(quiet, noisy)
    assert ((noisy >= -1) & (noisy <= 1)).all()
    assert torch.equal(act(make(spread=0.0), False).action, act(make(spread=0.0), False, 0).action)


def test_other_planners_plan_in_it_too():
    level = make(ICEM(ACTION, ICEMConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=4)))
    train(level, 6)
    assert act(level, True).action.shape == (E, 2)


def test_environments_do_not_influence_each_other():
    level = make(n_proposals=0)
    train(level, 6)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(E, 2)
    together = level.plan(obs, level.initial_memory(E), generator)
    obs[1:] += 1
    other = level.plan(obs, level.initial_memory(E), torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.actions[0], together.actions[0])
    assert not torch.equal(other.actions[1], together.actions[1])


def test_batches_are_subsequences_of_the_replay():
    level = make()
    train(level, 6)
    batch = level.sample()
    assert batch.obs.shape == (3, 8, 2)
    follows = batch.valid[1:]
    assert torch.equal(batch.valid[0], torch.ones(8, dtype=torch.bool))
    assert follows.any()
    assert batch.rew.dtype == torch.float32


def test_gradients_that_are_never_finite_are_an_error():
    level = make()
    with torch.no_grad():
        next(level.world.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"100% of the updates .* not finite, expected at most 10%"):
        train(level, 7)


def test_a_restored_level_goes_on_the_same():
    level, other = make(), make()
    train(level, 7)
    state = copy.deepcopy(level.state_dict())
    replay = copy.deepcopy(level.replay)
    other.load_state_dict(state)
    other.replay = replay
    for each in (level, other):
        torch.manual_seed(1)
        train(each, 3, start=7)
    for name, value in level.world.state_dict().items():
        assert torch.equal(other.world.state_dict()[name], value), name
    assert torch.equal(act(level, True).action, act(other, True).action)
