"""Policies in loops of one's own, against the Collector and against what environments take."""

import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import layeredrl
from agents.pets import PETS
from layeredrl.collector import Collector
from layeredrl.environments import EnvConfig, make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.policy import Policy
from layeredrl.task import TaskSpec
from tests.envs.counter import CounterEnv
from tests.recording import DiaryEnv, FunctionLevel, GoalEnv

UNIT = spaces.Box(-1.0, 1.0, (1,), np.float32)
COUNTER = TaskSpec(CounterEnv().observation_space, UNIT)


def random_policy(action_space, low=None, high=None):
    task = TaskSpec(COUNTER.observation_space, action_space, action_low=low, action_high=high)
    return Policy(Hierarchy([RandomLevel(action_space)], task))


# ------------------------------------------------------------------ memory


def skills():
    """Three levels whose decisions last for several steps and depend on everything that a level gets or remembers."""

    def decide(i, obs, command, n_decisions):
        count, episode = (float(x) for x in obs)
        phase = 1.0 + i + 0.7 * count + 1.3 * episode + 0.5 * n_decisions + (0.0 if command is None else command[0])
        return [float(np.float32(np.sin(phase)))], (7, 3, 1 + int(count) % 2)[i]

    return Hierarchy([FunctionLevel(partial(decide, i), UNIT, UNIT if i else None) for i in range(3)], COUNTER)


def diaries(mode):
    return SyncVectorEnv([partial(DiaryEnv, n) for n in (1, 4, 7, 11, 2, 30, 5, 8)], autoreset_mode=mode)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_skills_last_as_long_as_in_a_collector(mode):
    """In eight environments, whose episodes end at different times."""
    theirs, ours, policy = diaries(mode), diaries(mode), Policy(skills())
    collector = Collector(theirs, skills(), seed=0, learn=False)
    for _ in range(40):
        collector.step(explore=False)
    obs, _ = ours.reset()
    over = np.zeros(8, bool)
    for step in range(40):
        if mode == AutoresetMode.DISABLED and over.any():
            obs, _ = ours.reset(options={"reset_mask": over})
        obs, _, terminated, truncated, _ = ours.step(policy.predict(obs))
        ended = terminated | truncated
        policy.reset(over if mode == AutoresetMode.NEXT_STEP else ended)
        over = ended if step < 39 else over
    assert [env.diary for env in ours.envs] == [env.diary for env in theirs.envs]


def test_plans_are_those_of_a_collector_with_the_same_seed():
    """Also in the second episode: warm starts are forgotten, the generator goes on. The bounds are -2 and 2."""
    agent = PETS.preset("debug").build(make_task("Pendulum-v1"), torch.device("cpu"), seed=0)
    theirs = []
    env = make_vector_env("Pendulum-v1", max_episode_steps=3)
    collector = Collector(env, agent, seed=3, learn=False, on_step=lambda step, _: theirs.append(step.obs_next[0]))
    collector.collect_episodes(2)
    rng = np.random.default_rng(np.random.SeedSequence(3).spawn(2)[0])
    policy, env, ours = Policy(agent, seed=3), gym.make("Pendulum-v1", max_episode_steps=3), []
    for _ in range(2):
        obs, _ = env.reset(seed=int(rng.integers(2**31)))
        policy.reset()
        truncated = False
        while not truncated:
            action = policy.predict(obs)
            assert action in env.action_space
            obs, _, _, truncated, _ = env.step(action)
            ours.append(obs)
            policy.reset(truncated)
    np.testing.assert_array_equal(ours, theirs)
    assert len(ours) == 6


# ------------------------------------------------------------------ units


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_boxes_have_the_units_and_dtype_of_the_environment(dtype):
    own = spaces.Box(np.array([-2, 0], dtype), np.array([2, 50], dtype), dtype=dtype)
    policy = random_policy(spaces.Box(-1.0, 1.0, (2,)), own.low, own.high)
    assert policy.action_space == own
    many = policy.predict(np.zeros((500, 2), np.float32))
    assert many.dtype == dtype
    assert all(action in own for action in many)
    np.testing.assert_allclose(many.mean(0), [0, 25], atol=3)
    assert many.max() > 45
    policy.reset()
    assert policy.predict(np.zeros(2)) in own


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=4), spaces.MultiDiscrete([2, 3]), UNIT])
def test_actions_are_what_environments_take(space):
    for n in (None, 1, 8):
        policy = random_policy(space)
        action = policy.predict(np.zeros(2) if n is None else np.zeros((n, 2)))
        taken_by = space if n is None else gym.vector.utils.batch_space(space, n)
        assert action in taken_by
        assert n is not None or not isinstance(space, spaces.Discrete) or type(action) is int


def test_dict_observations_of_one_and_of_many():
    seen = []

    def record(obs, command, n_decisions):
        seen.append(obs.tolist())
        return [0.5], 1

    def make():
        return GoalEnv(CounterEnv())

    task = TaskSpec(make().observation_space, UNIT)
    policy, env = Policy(Hierarchy([FunctionLevel(record, UNIT)], task)), make()
    obs, _ = env.reset()
    policy.predict(env.step(policy.predict(obs))[0])
    names = list(env.observation_space)
    first, second = ({"observation": [n, 0], "desired_goal": [10], "achieved_goal": [-n]} for n in (0, 1))
    assert seen == [[float(x) for name in names for x in part[name]] for part in (first, second)]
    many = SyncVectorEnv([make] * 3)
    policy.reset()
    assert policy.predict(many.reset()[0]).shape == (3, 1)
    assert seen[2:] == seen[:1] * 3


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("obs", "error", "message"),
    [
        (np.zeros(3), ValueError, r"obs has shape \(3,\), expected \(2,\), or \(n, 2\) for n environments"),
        (np.zeros((2, 3)), ValueError, r"obs has shape \(2, 3\), expected \(2,\)"),
        (np.zeros((0, 2)), ValueError, r"obs has shape \(0, 2\)"),
        (1.0, ValueError, r"obs has shape \(\)"),
        ({"observation": np.zeros(2)}, TypeError, "obs is dict of object, expected an array of numbers"),
        (np.array([[0, 0], [0, np.nan]]), ValueError, "the observation of environment 1 is .*nan.*expected finite"),
        (np.zeros((3, 2)), ValueError, r"obs is of 3 environments, expected 2 as in the call before; call reset\(\)"),
    ],
)
def test_observations_that_do_not_fit_are_refused(obs, error, message):
    policy = random_policy(UNIT)
    policy.predict(np.zeros((2, 2)))
    with pytest.raises(error, match=message):
        policy.predict(obs)


@pytest.mark.parametrize(
    ("obs", "error", "message"),
    [
        (np.zeros(4), TypeError, "obs is ndarray, expected a dict with"),
        ({"observation": np.zeros(2)}, ValueError, "obs holds observation, expected .*desired_goal"),
        (
            {"observation": np.zeros(2), "desired_goal": np.zeros((1, 1)), "achieved_goal": np.zeros(1)},
            ValueError,
            "different numbers of environments: observation: one, desired_goal: 1,",
        ),
        (
            {"observation": np.zeros(2), "desired_goal": np.zeros(2), "achieved_goal": np.zeros(1)},
            ValueError,
            r"obs\['desired_goal'\] has shape \(2,\), expected \(1,\)",
        ),
    ],
)
def test_dict_observations_that_do_not_fit_are_refused(obs, error, message):
    policy = Policy(Hierarchy([RandomLevel(UNIT)], TaskSpec(GoalEnv(CounterEnv()).observation_space, UNIT)))
    with pytest.raises(error, match=message):
        policy.predict(obs)


def test_masks_that_do_not_fit_are_refused():
    policy = random_policy(UNIT)
    policy.reset(np.ones(2, bool))  # there is nothing to forget yet
    policy.predict(np.zeros((2, 2)))
    with pytest.raises(TypeError, match="ended is of int64, expected a mask of bools"):
        policy.reset(np.array([1]))
    for mask in (np.ones(3, bool), True):
        with pytest.raises(ValueError, match=r"ended has shape .*, expected \(2,\)"):
            policy.reset(mask)
    with pytest.raises(ValueError, match="seed is -1"):
        Policy(policy.agent, seed=-1)


def test_the_package_has_its_lazy_attributes_alone():
    assert layeredrl.Policy is Policy
    with pytest.raises(AttributeError, match="'layeredrl' has no attribute 'lode'"):
        layeredrl.lode  # noqa: B018


def test_the_environment_of_a_run_is_made_as_it_was_trained_in():
    config = EnvConfig("Pendulum-v1", action_repeat=3)
    task = make_task(config)
    policy = Policy(Hierarchy([RandomLevel(task.action_space)], task), env=config)
    env = policy.make_env()
    obs, _ = env.reset(seed=0)
    assert env.action_space.high == 2  # in its own units
    n_steps, truncated = 0, False
    while not truncated:
        obs, _, _, truncated, _ = env.step(policy.predict(obs))
        n_steps += 1
    assert n_steps == math.ceil(200 / 3)
    with pytest.raises(ValueError, match="expected the recipe of an environment"):
        Policy(Hierarchy([RandomLevel(task.action_space)], task)).make_env()
