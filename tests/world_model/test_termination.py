"""Learning of a termination from the states in which episodes end."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tianshou.data import Batch

from layeredrl.faults import NonFiniteError
from layeredrl.models import FitConfig
from layeredrl.models.nets import TerminationMLP
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, Imagination, ImaginationConfig, ModelLearningConfig, WorldModel
from layeredrl.world_model.learner import WorldModelLearner
from layeredrl.world_model.termination import TerminationLearner
from layeredrl.world_model.transitions import BatchTransitions
from tests.world_model.points import ACTION, OBSERVATION, E, known_reward, make_world, push, random_data

BY_STATE = ModelLearningConfig(termination="next_state")


def make(**known):
    """The world model of the points, with a termination network."""
    torch.manual_seed(0)
    dynamics = make_world().dynamics
    task = TaskSpec(OBSERVATION, ACTION, n_envs=E, reward=known_reward, **known)
    return WorldModel(Encoder(task), dynamics, task, termination_net=TerminationMLP(2, (32,)))


def make_data(ends, n=4000, seed=0):
    """Random points, pushed at random, of which those end that `ends` says of the state that is reached."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(n, 2, generator=generator)
    act = torch.rand(n, 2, generator=generator) * 2 - 1
    obs_next = push(obs, act)
    terminated = ends(obs_next, generator)
    return Batch(obs=obs, act=act, obs_next=obs_next, rew=torch.zeros(n), terminated=terminated, last=terminated)


def fitted(data, n_steps=1500):
    world = make()
    learner = TerminationLearner(world, world.termination_net)
    config, generator = FitConfig(epochs=200, max_steps=n_steps, batch_size=64), torch.Generator().manual_seed(0)
    return world, learner.fit(BatchTransitions(data), learner.moments(data), config, generator).loss


def predicted(world, data):
    with torch.no_grad():
        return world.termination(data.obs, data.obs.new_zeros(len(data.obs), 0), data.act, data.obs_next)


def far_right(obs_next, generator):
    return obs_next[:, 0] > 2.2


def one_in_fifty(obs_next, generator):
    return torch.rand(len(obs_next), generator=generator) < 0.02


def test_the_edge_is_found_by_few_terminations():
    data, unseen = make_data(far_right), make_data(far_right, seed=1)
    world, loss = fitted(data)
    assert 0 < data.terminated.sum() < 80
    assert loss < 0.5
    probability, place = predicted(world, unseen), unseen.obs_next[:, 0]
    assert probability[place > 2.8].min() > 0.5
    assert probability[place < 1.9].max() < 0.1
    assert float(probability.sum()) == pytest.approx(float(unseen.terminated.sum()), rel=0.5)


def test_probabilities_are_those_of_transitions_not_of_batches():
    """An end by chance, wherever it is, is as likely as it happened."""
    data = make_data(one_in_fifty)
    mean = predicted(fitted(data, n_steps=500)[0], data).mean()
    assert float(mean) == pytest.approx(float(data.terminated.float().mean()), rel=0.3)


@pytest.mark.parametrize("caution", [0.0, 0.5, 1.0])
def test_caution_blends_the_odds_of_transitions_with_those_of_batches(caution):
    """A batch of 2b has b terminations, and as many in its other half as a share of b."""
    net = TerminationMLP(2, caution=caution)
    net.set_odds(30, 1000)
    batches, transitions = (0.5 + 0.5 * 0.03) / (0.5 * 0.97), 0.03 / 0.97  # odds, if the state says nothing
    odds = (torch.tensor(batches).log() - net.log_odds).exp()
    assert float(odds) == pytest.approx(transitions ** (1 - caution) * batches**caution, rel=1e-5)


@pytest.mark.parametrize("all_end", [False, True])
def test_nothing_or_everything_ends(all_end):
    data = make_data(lambda obs_next, generator: torch.full((len(obs_next),), all_end))
    world, loss = fitted(data, n_steps=500)
    assert predicted(world, data).min() > 0.8 if all_end else not predicted(world, data).any()
    assert math.isnan(loss) != all_end


def test_terminations_that_have_left_the_replay_are_not_forgotten():
    net = TerminationMLP(2)
    net.set_odds(3, 100)
    before = net.log_odds.clone()
    net.set_odds(0, 100)
    assert torch.equal(net.log_odds, before)


def test_a_network_that_is_not_trained_keeps_its_inputs_too():
    """Other inputs would change what it predicts, while its parameters stay."""
    world, _ = fitted(make_data(far_right), n_steps=50)
    data = make_data(lambda obs_next, generator: torch.zeros(len(obs_next), dtype=torch.bool))
    before, moved = predicted(world, data), copy.deepcopy(data)
    moved.obs_next += 3
    learner, generator = TerminationLearner(world, world.termination_net), torch.Generator().manual_seed(0)
    learner.fit(BatchTransitions(moved), learner.moments(moved), FitConfig(), generator)
    assert before.any()
    assert torch.equal(predicted(world, data), before)


def test_transitions_without_terminations_and_numbers_that_are_not_finite():
    world, data = make(), make_data(one_in_fifty, n=300)
    learner, generator = TerminationLearner(world, world.termination_net), torch.Generator().manual_seed(0)
    config, moments = FitConfig(epochs=5, batch_size=8), learner.moments(data)
    without = Batch({key: data[key] for key in ("obs", "act", "obs_next", "rew", "last")})
    assert not len(BatchTransitions(without).terminated())
    data.obs_next[:] = math.nan
    with pytest.raises(NonFiniteError, match="the termination network's loss or gradient is not finite in"):
        learner.fit(BatchTransitions(data), moments, config, generator)


def test_rollouts_and_branches_end_by_the_state_that_is_reached():
    world, generator = make(), torch.Generator().manual_seed(0)
    world.termination_net.set_odds(1, 2)
    assert world.has_termination
    result = world.rollout(torch.randn(5, 2), torch.rand(5, 4, 2), generator=generator)
    after = result.state[..., 1:, :]
    with torch.no_grad():
        torch.testing.assert_close(result.term_prob, world.termination_net(after, after[..., :0]))
    data = random_data(30)
    imagination = Imagination(world, ImaginationConfig(n_branches=40, n_steps=(2, 2)), 0.9)
    imagination.imagine(BatchTransitions(data), lambda obs: torch.zeros(len(obs), 2), 0)
    rows = imagination.sample(100)
    with torch.no_grad():
        ends = world.termination_net(rows.obs_next, rows.obs_next[..., :0])
    torch.testing.assert_close(rows.discount, 0.9 * (1 - ends))


def test_a_known_termination_has_no_network():
    world = make(termination=lambda state, context, action, next_state: next_state[..., 0] > 1)
    assert world.termination_net is None
    assert BY_STATE.make_termination(world.encoder, world.task) is None
    assert WorldModelLearner(world, BY_STATE).termination is None


def test_a_learner_needs_the_network_that_its_settings_ask_for():
    with pytest.raises(ValueError, match="expected 'dynamics': the world model has no termination network"):
        WorldModelLearner(make_world(), BY_STATE)
    with pytest.raises(ValueError, match="expected the `termination` 'next_state' to fit it"):
        WorldModelLearner(make(), ModelLearningConfig())


def test_a_learner_resumes_with_its_termination():
    config = replace(BY_STATE, n_random_steps=12, fit_every=6, first_epochs=2, fit=FitConfig(epochs=2, batch_size=8))
    learner, other = (WorldModelLearner(make(), config, seed=seed) for seed in (0, 1))
    data = make_data(one_in_fifty, n=200)
    learner.fit(data)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert learner.fit(data) == other.fit(data)
    for name, value in learner.world.state_dict().items():
        assert torch.equal(value, other.world.state_dict()[name]), name
