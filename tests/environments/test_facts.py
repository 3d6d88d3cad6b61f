"""Facts of a task, found out in random steps."""

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  registers the tasks
from layeredrl.environments import EnvConfig, make_facts


class Line(gym.Env):
    """A place that counts steps; the reward and the end are given."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)

    def __init__(self, reward=lambda place, action: 0.0, ends_at=None, cut_at=None):
        self.reward, self.ends_at, self.cut_at = reward, ends_at, cut_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.place += 1
        reward = self.reward(self.place, action)
        obs = np.full(3, self.place, np.float32)
        return obs, reward, self.place == self.ends_at, self.place == self.cut_at, {}


class Broken(Line):
    def step(self, action):
        raise RuntimeError("no")


@pytest.fixture(autouse=True)
def _registered():
    known = dict(gym.registry)
    gym.register("Line-v0", entry_point=Line, disable_env_checker=True)
    gym.register("Limited-v0", entry_point=Line, max_episode_steps=77, disable_env_checker=True)
    gym.register("Broken-v0", entry_point=Broken, disable_env_checker=True)
    yield
    gym.registry.clear()
    gym.registry.update(known)


def test_sizes_and_what_is_known():
    facts = make_facts("ContinuousCartPole-v0")
    assert (facts.state_dim, facts.action_dim, facts.discrete, facts.episode_steps) == (4, 1, False, 200)
    assert facts.reward_known
    assert facts.termination_known
    discrete = make_facts("Acrobot-v1")
    assert (discrete.state_dim, discrete.action_dim, discrete.discrete, discrete.episode_steps) == (6, 3, True, 500)
    assert not discrete.reward_known
    assert not discrete.termination_known
    maze = make_facts("Maze2D-Medium-v0")
    assert maze.state_dim == 4  # without the goal


@pytest.mark.parametrize(
    ("reward", "silent"),
    [
        (lambda place, action: -1.0, True),
        (lambda place, action: -0.1 * float(action[0] ** 2) - float(action[1]), True),
        (lambda place, action: float(place % 7 == 0), False),
        (lambda place, action: np.sin(place) - float(action @ action), False),
    ],
    ids=["constant", "of the action", "of the state", "of both"],
)
def test_a_task_is_silent_where_rewards_tell_nothing_about_the_state(reward, silent):
    assert make_facts("Line-v0", reward=reward).silent == silent


def test_ends_tell_something_and_are_counted():
    facts = make_facts("Line-v0", ends_at=20)
    assert not facts.silent
    assert facts.ends_after == 20
    assert make_facts("Line-v0", ends_at=20, reward=lambda place, action: -2.0).mean_reward == -2.0
    assert make_facts("Line-v0").ends_after is None


def test_the_limit_of_episodes_is_declared_or_seen():
    assert make_facts("Limited-v0").episode_steps == 77
    assert make_facts("Limited-v0", cut_at=50).episode_steps == 50  # earlier than declared
    assert make_facts("Line-v0", cut_at=50).episode_steps == 50
    assert make_facts("Line-v0").episode_steps is None


def limited(env):
    return gym.wrappers.TimeLimit(env, 30)


def test_a_declared_limit_counts_frames_where_actions_are_repeated():
    assert make_facts(EnvConfig("Limited-v0", action_repeat=2)).episode_steps == 39  # seen
    falls = {"ends_at": 10}  # so that no episode of random actions reaches the limit
    assert make_facts(EnvConfig("Limited-v0", action_repeat=2, kwargs=falls)).episode_steps == 39
    assert make_facts(EnvConfig("Limited-v0", kwargs=falls)).episode_steps == 77
    outside = EnvConfig(
        "Limited-v0", action_repeat=2, kwargs=falls, wrappers=("tests.environments.test_facts:limited",)
    )
    assert make_facts(outside).episode_steps == 30  # a limit around the repeated actions counts decisions


def test_an_environment_that_fails_leaves_what_its_spaces_tell():
    facts = make_facts("Broken-v0")
    assert (facts.state_dim, facts.action_dim, facts.silent) == (3, 2, False)


def test_global_generators_are_left_alone():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.RandomState(3).rand()
    make_facts("Line-v0")
    assert np.random.rand() == expected  # noqa: NPY002
