"""A level of random actions."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl import action_spaces
from layeredrl.levels import RandomLevel

LOW, HIGH = np.array([-3.0, 0.5], np.float32), np.array([-1.0, 8.0], np.float32)
BOX = spaces.Box(LOW, HIGH)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def act(level, n=5, seed=0, explore=True, command=None):
    return level.act(torch.zeros(n, 3), command, level.initial_memory(n), explore=explore, generator=seeded(seed))


def test_box_actions_are_uniform_within_the_bounds():
    actions = action_spaces.uniform(BOX, (5000,), seeded())
    assert actions.shape == (5000, 2)
    assert actions.dtype == torch.float32
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    assert (actions >= low).all()
    assert (actions <= high).all()
    share = ((actions - low) / (high - low)).double()
    quantiles = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    torch.testing.assert_close(share.quantile(quantiles, 0), quantiles[:, None].expand(19, 2), rtol=0, atol=0.03)
    assert abs(torch.corrcoef(share.T)[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("space", "choices"),
    [
        (spaces.Discrete(3, start=-2), [[-2, -1, 0]]),
        (spaces.MultiDiscrete([2, 4], start=[0, -1]), [[0, 1], [-1, 0, 1, 2]]),
    ],
    ids=["discrete", "multi"],
)
def test_discrete_actions_are_uniform_over_their_choices(space, choices):
    actions = action_spaces.uniform(space, (4000,), seeded())
    assert actions.shape == (4000, len(choices))
    assert not actions.is_floating_point()
    for i, values in enumerate(choices):
        found, counts = actions[:, i].unique(return_counts=True)
        assert found.tolist() == values
        assert (counts > 0.9 * 4000 / len(values)).all()


@pytest.mark.parametrize("space", [spaces.Box(-1.0, np.inf, (2,)), spaces.MultiBinary(3)])
def test_other_spaces_are_refused_at_construction(space):
    with pytest.raises(ValueError, match=r"action space is .*, expected"):
        RandomLevel(space)


def test_a_duration_below_one_is_refused():
    with pytest.raises(ValueError, match="duration is 0"):
        RandomLevel(BOX, duration=0)


@pytest.mark.parametrize(("space", "explore"), [(BOX, True), (spaces.Discrete(3), False)], ids=["box", "discrete"])
def test_decisions(space, explore):
    level = RandomLevel(space, duration=4)
    decision = act(level, explore=explore)
    assert torch.equal(decision.action, action_spaces.uniform(space, (5,), seeded()))
    assert decision.duration.tolist() == [4] * 5
    assert decision.duration.dtype == np.int64
    assert decision.metrics == {}
    assert not torch.equal(decision.action, act(level, seed=1, explore=explore).action)


def test_a_command_is_ignored():
    command_space = spaces.Box(-1.0, 1.0, (2,))
    level = RandomLevel(BOX, command_space)
    assert level.command_space == command_space
    assert level.action_space == BOX
    assert RandomLevel(BOX).command_space is None
    assert torch.equal(act(level, command=torch.ones(5, 2)).action, act(level, command=-torch.ones(5, 2)).action)


def test_it_learns_nothing():
    level = RandomLevel(BOX)
    before = act(level).action
    level.observe(Batch(obs=np.zeros((1, 3))), np.array([0]))
    assert level.learn(1000) == {}
    assert level.state_dict() == {}
    level.load_state_dict({})
    assert torch.equal(before, act(level).action)
    with pytest.raises(ValueError, match="weights"):
        level.load_state_dict({"weights": 1})
