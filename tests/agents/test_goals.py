from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs  # noqa: F401  registers the mazes
from agents.goals import Goals
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.levels import PlannerLevel, PolicyLevel
from layeredrl.task import TaskSpec
from layeredrl.world_model import GridSupport, NeighbourSupport
from tests.recording import stored

CPU = torch.device("cpu")
DEBUG = Goals.preset("debug")
TASK = make_task("Maze2D-Simple-v0", n_envs=2)


def test_both_levels_store_transitions_at_their_own_time_scale() -> None:
    torch.manual_seed(0)
    agent = DEBUG.build(TASK, CPU, seed=0)
    planner, policy = agent.levels
    env = make_vector_env("Maze2D-Simple-v0", 2)
    collector = Collector(env, agent, seed=0)
    for _ in range(30):
        collector.step(explore=True)
        agent.learn(collector.n_total_env_steps)
    assert isinstance(planner, PlannerLevel)
    assert isinstance(policy, PolicyLevel)
    assert policy.n_updates > 0
    assert planner.learner.last_fit > 0
    for i in range(2):
        above, below = stored(planner.replay, i), stored(policy.replay, i)
        assert len(below) == 3 * len(above) == 30
        np.testing.assert_array_equal(above.info.duration, 3)
        np.testing.assert_array_equal(above.obs, below.obs[::3])
        np.testing.assert_array_equal(above.obs_next, below.obs_next[2::3])
        np.testing.assert_allclose(above.rew, below.rew.reshape(-1, 3).sum(1), atol=1e-6)
        np.testing.assert_array_equal(np.repeat(above.act, 3, 0), below.info.command.action)
        np.testing.assert_array_equal(below.info.command.remaining, np.tile([3, 2, 1], 10))
    env.close()


def test_the_planner_has_the_reward_of_its_own_time_scale() -> None:
    level = DEBUG.build(TASK, CPU, seed=0).levels[0]
    assert isinstance(level, PlannerLevel)
    state, goal = torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0, 5.0]])
    after = torch.tensor([[4.0, 1.0]])
    diameter = 10 * 2**0.5
    reward = level.world.reward(state, goal, torch.zeros(1, 2), after)
    assert reward.item() == pytest.approx(-3 * 4.0 / diameter, rel=1e-5)
    assert level.world.encoder.state_dim == 2
    assert replace(DEBUG, state=()).build(TASK, CPU, seed=0).levels[0].world.encoder.state_dim == 4  # type: ignore[attr-defined]


def test_the_support_depends_on_the_achieved_goal() -> None:
    for kind, cls in (("cells", GridSupport), ("neighbours", NeighbourSupport)):
        settings = replace(DEBUG, support_weight=1.0, support=kind, state=())  # type: ignore[arg-type]
        level = settings.build(TASK, CPU, seed=0).levels[0]
        assert isinstance(level, PlannerLevel)
        support = level.world.objective.support
        assert isinstance(support, cls)
        assert support.dims == (0, 1)
    with pytest.raises(ValueError, match="support is 'cell', expected one of cells, neighbours"):
        replace(DEBUG, support="cell")  # type: ignore[arg-type]


def test_tasks_without_goals_or_with_choices_are_refused() -> None:
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    with pytest.raises(ValueError, match="expected an achieved_goal"):
        DEBUG.build(TaskSpec(box, box), CPU, seed=0)
    with pytest.raises(ValueError, match=r"Discrete\(3\), expected a flat Box"):
        DEBUG.build(replace(TASK, action_space=spaces.Discrete(3), action_low=None, action_high=None), CPU, seed=0)
