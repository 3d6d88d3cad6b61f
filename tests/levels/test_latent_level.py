"""A level that plans in a latent world model: its schedule, its batches, and resuming."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from layeredrl.faults import NonFiniteError
from layeredrl.levels import LatentLevel
from layeredrl.levels.planner_level import PlanningError
from layeredrl.planners import ICEM, MPPI, ICEMConfig, MPPIConfig, RandomShooting, RandomShootingConfig
from layeredrl.world_model import LatentLearningConfig
from tests.world_model.latent_tasks import make_latent
from tests.world_model.points import ACTION, E, random_rows

LEARNING = LatentLearningConfig(n_random_steps=12, batch_size=8, report_every=6, updates_per_transition=0.5)
MPPI_ = MPPI(ACTION, MPPIConfig(horizon=3, n_samples=8, n_iterations=2, n_elites=4, init_std=2.0, execute="sample"))


def make(planner=MPPI_, config=LEARNING, *, terminations=True, **settings):
    world = make_latent(noisy=False, terminations=terminations)
    return LatentLevel(world, planner, config, **{"n_proposals": 3} | settings)


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


def test_many_first_updates_are_spread_over_steps(monkeypatch):
    """So that a run stops soon after a signal; those of 3 environments at half an update each are never put off."""
    monkeypatch.setattr("layeredrl.levels.latent_level.MOST_AT_ONCE", 5)
    level = make(config=replace(LEARNING, first_updates=12))
    counts = []
    for i in range(12):
        train(level, 1, start=i)
        counts.append(level.n_updates)
    assert counts[3:6] == [5, 10, 15]
    assert counts[-1] == 12 + (12 - 4) * E // 2


def test_updates_that_are_skipped_leave_reports_finite():
    level = make(config=replace(LEARNING, max_skipped_share=0.5))
    train(level, 4)
    batch = level.sample()
    batch.rew[0] = np.nan
    level._means.add(level.latent.update(batch))
    report = next(m for m in train(level, 4, start=4) if m)
    assert 0 < report["model/skipped"] < 0.5
    assert all(np.isfinite(value) for value in report.values())


def test_it_acts_at_random_then_plans_with_noise_of_the_plans_own_width():
    level = make()
    first, second = act(level, True, 0).action, act(level, True, 0).action
    assert torch.equal(first, second)  # random actions do not depend on the model
    train(level, 6)
    quiet, noisy = act(level, False).action, act(level, True).action
    assert quiet.shape == noisy.shape == (E, 2)
    assert not torch.equal(quiet, noisy)
    assert ((noisy >= -1) & (noisy <= 1)).all()


class Still(RandomShooting):
    """Plans nothing but zeros, and tells the proposals that it got."""

    ends_with_std = True

    def _plan(self, score, n_envs, warm_start, generator, proposals):
        self.proposals = proposals
        plan = super()._plan(score, n_envs, warm_start, generator, None)
        return replace(plan, actions=torch.zeros(n_envs, 2, 2), std=torch.tensor([0.1, 0.4]).expand(n_envs, 2))


def test_noise_has_the_width_that_the_search_ended_with():
    planner = Still(ACTION, RandomShootingConfig(horizon=2, n_samples=4))
    level = LatentLevel(make_latent(), planner, LEARNING, n_proposals=3, spread=0.5)
    level.n_total_env_steps = 100
    generator = torch.Generator().manual_seed(0)
    obs, memory = torch.ones(2000, 2), level.initial_memory(2000)
    noisy = level.act(obs, None, memory, explore=True, generator=generator).action
    torch.testing.assert_close(noisy.std(0), torch.tensor([0.05, 0.2]), rtol=0.1, atol=0)
    assert not level.act(obs, None, memory, explore=False, generator=generator).action.any()


def test_the_planner_gets_the_policys_sequences():
    planner = Still(ACTION, RandomShootingConfig(horizon=2, n_samples=4))
    level = LatentLevel(make_latent(), planner, LEARNING, n_proposals=3)
    act(level, False, seed=4)
    generator = torch.Generator().manual_seed(4)
    torch.testing.assert_close(planner.proposals, level.world.propose(torch.ones(E, 2), 3, 2, generator))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"n_proposals": 9}, "n_proposals is 9, expected at most"), ({"planner": "random"}, "ends without a std")],
)
def test_refused_settings(settings, message):
    if "planner" in settings:
        settings = {"planner": RandomShooting(ACTION, RandomShootingConfig(horizon=2, n_samples=4))}
    with pytest.raises(ValueError, match=message):
        make(**settings)


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
    assert batch.valid[0].all()
    assert follows.any()
    assert batch.rew.dtype == torch.float32


def test_gradients_that_are_never_finite_are_an_error():
    level = make()
    with torch.no_grad():
        next(level.world.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"100% of the updates .* not finite, expected at most 10%"):
        train(level, 7)


def test_plans_that_fail_now_and_then_are_replaced_by_random_actions():
    level = make(config=replace(LEARNING, max_failed_plans=1))
    train(level, 6)
    level.world.value = lambda state, context: state.new_full(state.shape[:-1], torch.nan)
    with pytest.warns(RuntimeWarning, match="random actions replace these plans"):
        assert act(level, True).action.abs().max() <= 1
    with pytest.raises(PlanningError):
        act(level, True)
    train(level, 6, start=6)  # a report
    with pytest.warns(RuntimeWarning, match="random actions replace these plans"):
        act(level, True)


def test_terminations_without_a_place_in_the_model_are_told():
    level = make(terminations=False)
    *rows, last = random_rows(6, seed=0)
    for i, row in enumerate(rows):
        row.terminated = np.zeros(E, bool)
        level.observe(row, np.arange(E))
        level.learn(E * (i + 1))
    assert level.n_updates > 0
    last.terminated = np.ones(E, bool)
    with pytest.warns(RuntimeWarning, match=r"latent model has no terminations, .* set latent\.terminations"):
        level.observe(last, np.arange(E))
    level.observe(last, np.arange(E))  # told once; a warning would be an error


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
