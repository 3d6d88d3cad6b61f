"""The interface of skill methods: priors, inputs of policies, and a custom method."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

import envs  # noqa: F401  registers the mazes
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLearningConfig, RandomLevel
from layeredrl.off_policy import SACConfig
from layeredrl.skills import SkillInputs, SkillLevel, SkillMethod
from layeredrl.world_model import Encoder
from tests.skills.walk import SKILLS, TASK

CPU = torch.device("cpu")


class Constant(SkillMethod):
    """Rewards every transition with one."""

    space: ClassVar = spaces.Box(-1.0, 1.0, (3,), np.float32)
    duration, n_inputs = 4, 4 + 3

    def inputs(self, obs, command):
        return torch.cat([obs[:, :4], command.action], -1)

    def reward(self, batch):
        return torch.ones(len(batch.obs))


def test_a_custom_method_learns_in_a_maze():
    torch.manual_seed(0)
    task, method = make_task("Maze2D-Simple-v0", n_envs=2), Constant()
    algorithm = SACConfig(hidden=(8,), learning_rate=1e-2).build(method.n_inputs, task.action_space, CPU)
    learning = PolicyLearningConfig(n_random_steps=20, batch_size=16, report_every=10)
    policy = SkillLevel(algorithm, method, task.action_space, n_envs=2, fresh_skills=0.5, learning=learning)
    agent = Hierarchy([RandomLevel(method.space, duration=method.duration), policy], task)
    env = make_vector_env("Maze2D-Simple-v0", 2)
    collector, metrics = Collector(env, agent, seed=0), {}
    for _ in range(40):
        collector.step(explore=True)
        metrics |= agent.learn(collector.n_total_env_steps)
    env.close()
    assert policy.n_updates > 50
    assert metrics["policy/reward"] == 1
    assert method.world is None
    assert method.state_dict() == {}
    method.load_state_dict({})
    with pytest.raises(ValueError, match="Constant has no state, but was given net"):
        method.load_state_dict({"net": 1})
    rows = policy.replay.all()
    assert len(rows) == 80
    np.testing.assert_array_equal(rows.info.command.elapsed, np.tile([0, 1, 2, 3], 20))
    assert len(np.unique(rows.info.command.action, axis=0)) == 20


@pytest.mark.parametrize(
    ("space", "values"),
    [(spaces.Discrete(4), {0, 1, 2, 3}), (spaces.Discrete(2, start=5), {5, 6})],
)
def test_priors_of_choices_are_uniform(space, values):
    method = Constant()
    method.space = space
    torch.manual_seed(0)
    drawn = method.prior(2000, CPU)
    assert (drawn.shape, drawn.dtype) == ((2000, 1), torch.int64)
    assert set(drawn.flatten().tolist()) == values
    assert drawn.flatten().bincount()[min(values) :].min() > 0.85 * 2000 / len(values)


def test_priors_of_a_box_are_uniform_and_follow_the_seed():
    torch.manual_seed(0)
    drawn = Constant().prior(4000, CPU)
    assert drawn.shape == (4000, 3)
    assert drawn.abs().max() <= 1
    torch.testing.assert_close(drawn.mean(0), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.mT), torch.eye(3) / 3, rtol=0, atol=0.02)
    torch.manual_seed(0)
    assert torch.equal(Constant().prior(4000, CPU), drawn)


def command(action, elapsed):
    n = len(action)
    numbers = torch.full((n,), elapsed)
    return Batch(action=action, obs=torch.full((n, 7), 0.25), elapsed=numbers, remaining=4 - numbers)


def test_inputs_leave_out_hidden_parts_and_hold_the_displacement_since_the_start():
    inputs = SkillInputs(
        TASK, SKILLS, 4, encoder=Encoder(TASK, ("achieved_goal",)), hidden=("achieved_goal",), displacement_scale=3.0
    )
    found = inputs(torch.arange(7.0)[None], command(torch.tensor([[0.5, -0.5]]), 3))
    assert found.tolist() == [[4, 5, 6, 3 * (0 - 0.25), 3 * (1 - 0.25), 0.5, -0.5, 0.75]]
    assert inputs.width == 8


def test_choices_are_one_hot_inputs():
    inputs = SkillInputs(TASK, spaces.Discrete(3), 4)
    found = inputs(torch.zeros(3, 7), command(torch.tensor([[2], [0], [1]]), 0))
    assert inputs.width == found.shape[1] == 5 + 3 + 1
    assert found[:, 5:8].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_unknown_hidden_parts_are_named():
    with pytest.raises(ValueError, match=r"hidden is \['speed'\], expected parts of the observation: achieved_goal"):
        SkillInputs(TASK, SKILLS, 4, hidden=("speed",))
