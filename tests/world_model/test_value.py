"""A learned value: its targets against a plain loop, what it learns against a closed form, and its state."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.models import FitConfig
from layeredrl.models.normalization import Moments
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, ValueConfig, ValueLearner, ValueNet
from layeredrl.world_model.transitions import ReplayTransitions

CPU, GAMMA = torch.device("cpu"), 0.9
ENCODER = Encoder(TaskSpec(spaces.Box(-1e6, 1e6, (1,)), spaces.Box(-1.0, 1.0, (1,))))


def counting(n_steps, n_envs, size, n_last=(7, 11)):
    """Transitions of environments that count their steps; episodes end, by termination or else, at `n_last`."""
    replay, count = Replay(size, n_envs), np.arange(n_envs) * 1000
    for t in range(n_steps):
        ends = [(t + 1) % n == 0 for n in n_last]
        replay.add(
            Batch(
                obs=count[:, None].astype(np.float32),
                act=np.zeros((n_envs, 1), np.float32),
                rew=np.sin(count.astype(float)),
                terminated=np.full(n_envs, ends[0]),
                truncated=np.full(n_envs, ends[1] and not ends[0]),
                obs_next=count[:, None].astype(np.float32) + 1,
                info=Batch(duration=np.ones(n_envs, int)),
            ),
            np.arange(n_envs),
        )
        count = count + (10 if any(ends) else 1)
    transitions = ReplayTransitions(replay, 1, CPU)
    transitions.update()
    return transitions


def learner(config, gamma=GAMMA):
    torch.manual_seed(0)
    return ValueLearner(ValueNet(1, config, CPU), ENCODER, gamma, config)


def moments_of(value, transitions):
    return transitions.moments(lambda rows: value.moments(rows.obs, rows.rew))


@pytest.mark.parametrize(("n_steps", "size"), [(40, 300), (40, 60)], ids=["not full", "wrapped"])
def test_targets_sum_the_rewards_that_follow_in_the_episode_and_end_in_the_target_value(n_steps, size):
    transitions = counting(n_steps, 3, size)
    value = learner(ValueConfig(hidden=(8,), n_members=2, n_steps=4))
    with torch.no_grad():  # a value of the observation's own size, by each network another
        for layers in (value.net.layers, value.target):
            list(layers.parameters())[-2].normal_()
    value.net.set_scales(Moments(1, torch.zeros(1), torch.ones(1)), 3.0)
    index = torch.arange(len(transitions)).repeat(2, 1)
    inputs, targets = value.batch(transitions, index)
    rows = transitions.take(index[0])
    assert torch.equal(inputs[0], rows.obs)
    for i in range(len(transitions)):
        total, power, j = torch.zeros(2), 1.0, i
        for _ in range(4):
            total, power = total + power * rows.rew[j], power * GAMMA
            follows = j + 1 < len(rows) and rows.obs[j + 1, 0] == rows.obs[j, 0] + 1
            if rows.terminated[j]:
                power = 0.0
            if rows.last[j] or not follows:
                break
            j += 1
        else:
            j -= 1  # the last one that was summed
        with torch.no_grad():
            after = value.target(value.net.inputs(rows.obs_next[j].expand(2, 1, 1))).flatten() * value.net.scale
        torch.testing.assert_close(targets[:, i], total + power * after, rtol=1e-4, atol=1e-4)


def test_the_value_of_counting_to_an_end_is_that_of_the_closed_form():
    replay = Replay(2000, 1)
    for t in range(600):
        place = t % 6
        row = {"obs": np.float32([[place]]), "obs_next": np.float32([[place + 1]]), "act": np.zeros((1, 1), np.float32)}
        flags = {"terminated": np.array([place == 5]), "truncated": np.array([False])}
        replay.add(Batch(**row, **flags, rew=np.ones(1), info=Batch(duration=np.ones(1, int))), np.arange(1))
    transitions = ReplayTransitions(replay, 1, CPU)
    transitions.update()
    value = learner(ValueConfig(hidden=(32, 32), n_members=2, learning_rate=6e-3, n_steps=2, target_rate=0.2))
    generator = torch.Generator().manual_seed(0)
    assert not value.net(torch.zeros(1, 1), torch.zeros(1, 0)).any()  # before the first fit
    for _ in range(3):
        value.fit(transitions, moments_of(value, transitions), FitConfig(epochs=100, max_steps=60), generator)
    found = value.net(torch.arange(6.0).unsqueeze(-1), torch.zeros(6, 0))
    expected = torch.tensor([(1 - GAMMA ** (6 - i)) / (1 - GAMMA) for i in range(6)])
    torch.testing.assert_close(found.detach(), expected, rtol=0.05, atol=0.1)
    by_member = value.net.members(torch.arange(6.0).view(1, 6, 1).expand(2, -1, -1)) * value.net.scale
    torch.testing.assert_close(found, by_member.amin(0))


def test_values_stay_the_same_when_their_unit_changes():
    value = learner(ValueConfig(hidden=(8,)))
    with torch.no_grad():
        list(value.net.layers.parameters())[-2].normal_()
    states, nothing = torch.randn(5, 1), torch.zeros(5, 0)
    before = value.net(states, nothing)
    value.net.set_scales(Moments(1, torch.zeros(1), torch.ones(1)), 250.0)
    torch.testing.assert_close(value.net(states, nothing), before)


def test_a_learner_goes_on_as_if_it_had_not_stopped():
    transitions, config = counting(50, 1, 300), FitConfig(epochs=1, max_steps=3)

    def go_on(value, seed):
        value.fit(transitions, moments_of(value, transitions), config, torch.Generator().manual_seed(seed))
        return value

    first = go_on(learner(ValueConfig()), 1)
    second = learner(ValueConfig())
    second.net.load_state_dict(first.net.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    expected = go_on(first, 2).net.state_dict()
    for key, x in go_on(second, 2).net.state_dict().items():
        assert torch.equal(x, expected[key]), key


def test_a_discount_of_one_is_an_error():
    with pytest.raises(ValueError, match=r"discount is 1\.0 with a learned value, expected less than 1"):
        learner(ValueConfig(), gamma=1.0)
