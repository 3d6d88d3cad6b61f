import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.random import Random
from layeredrl.task import TaskSpec

OBSERVATIONS = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("actions", [spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(4, start=2)])
def test_actions_fill_the_space_and_follow_the_seed(actions: spaces.Space) -> None:
    agent = Random().build(TaskSpec(OBSERVATIONS, actions), torch.device("cpu"), seed=0)

    def act(seed: int) -> np.ndarray:
        return agent.act(np.zeros((500, 2), np.float32), agent.initial_carry(500, seed), explore=False)

    taken = act(1)
    np.testing.assert_array_equal(taken, act(1))
    assert not np.array_equal(taken, act(2))
    if isinstance(actions, spaces.Discrete):
        assert set(taken[:, 0]) == {2, 3, 4, 5}
    else:
        assert actions.contains(taken[0])
        assert taken.min() < -0.95
        assert taken.max() > 0.95
        np.testing.assert_allclose(taken.mean(0), 0, atol=0.1)  # 4 standard errors


def test_it_does_not_learn() -> None:
    agent = Random().build(TaskSpec(OBSERVATIONS, OBSERVATIONS), torch.device("cpu"), seed=0)
    assert agent.learn(100) == {}
    assert agent.state_dict() == {"random": {}}
    agent.load_state_dict(agent.state_dict())


def test_unbounded_actions_are_refused() -> None:
    task = TaskSpec(OBSERVATIONS, spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(ValueError, match="expected bounds to draw uniformly between"):
        Random().build(task, torch.device("cpu"), seed=0)
