"""Factories: ids, scaled actions, vector environments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import envs  # noqa: F401  registers the tasks
from layeredrl.environments import EnvPool, UnknownEnvironmentError, make_env, make_task, make_vector_env
from tests.envs.counter import register_counter


@pytest.mark.parametrize("make", [make_env, make_task, make_vector_env])
def test_unknown_ids_have_near_matches(make):
    for env_id, near in [
        ("ContinuousCartpole-v0", "ContinuousCartPole-v0"),
        ("ContinuousCartPole-v7", "ContinuousCartPole-v0"),
        ("Pendulm-v1", "Pendulum-v1"),
    ]:
        with pytest.raises(UnknownEnvironmentError, match=f"'{env_id}'.*{near}"):
            make(env_id)


@pytest.mark.parametrize("env_id", ["Qqqqqqqqqqq-v0", "nowhere/Qqqqqqq-v3", "", "not an id", "no_such_module:Thing-v0"])
def test_unknown_ids_without_a_match_are_named(env_id):
    with pytest.raises(UnknownEnvironmentError, match=f"{env_id!r}"):
        make_env(env_id)


def test_the_modules_of_an_id_are_imported():
    env = make_env("envs:ContinuousCartPole-v0")
    assert env.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)


def test_settings_reach_the_environment():
    env = make_env(register_counter(), episode_length=2)
    env.reset()
    assert [env.step(np.zeros(1, np.float32))[2] for _ in range(2)] == [False, True]
    assert make_env("Pendulum-v1", g=0.0).unwrapped.g == 0.0
    with pytest.raises(TypeError, match="no_such_setting"):
        make_env(register_counter(), no_such_setting=1)


def test_actions_are_scaled():
    scaled, plain = make_env("Pendulum-v1"), gym.make("Pendulum-v1")
    assert plain.action_space == spaces.Box(-2.0, 2.0, (1,), np.float32)
    assert scaled.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    scaled.reset(seed=0)
    plain.reset(seed=0)
    for action in np.linspace(-1, 1, 11, dtype=np.float32):
        ours, theirs = scaled.step(np.array([action])), plain.step(np.array([2 * action]))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5)


def test_discrete_actions_are_unchanged():
    assert make_env("CartPole-v1").action_space == spaces.Discrete(2)
    assert make_vector_env("CartPole-v1", 2).single_action_space == spaces.Discrete(2)


def test_the_task_of_an_id():
    task = make_task("Pendulum-v1", 3)
    assert task.n_envs == 3
    assert task.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    np.testing.assert_array_equal([task.action_low, task.action_high], [[-2.0], [2.0]])
    assert task.observation_space == make_vector_env("Pendulum-v1", 1).single_observation_space


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_vector_environments_do_not_reset_themselves(vectorization):
    env = make_vector_env(register_counter(), 2, vectorization=vectorization, episode_length=2)
    try:
        assert type(env) is EnvPool
        assert env.num_envs == 2
        assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        env.reset(seed=[1, 2])
        actions = np.zeros((2, 1), np.float32)
        env.step(actions)
        obs, _, terminated, _, _ = env.step(actions)
        assert terminated.all()
        np.testing.assert_array_equal(obs, [[2, 0], [2, 0]])
        obs, _ = env.reset(options={"reset_mask": np.array([False, True])})
        np.testing.assert_array_equal(obs, [[2, 0], [0, 1]])
    finally:
        env.close()


def test_native_vectors_are_registered_ones():
    env = make_vector_env("Maze2D-Simple-v0", 3, vectorization="native", max_steps=7)
    assert type(env.unwrapped).__name__ == "Maze2DVectorEnv"
    assert (env.num_envs, env.metadata["autoreset_mode"]) == (3, AutoresetMode.DISABLED)
    env.reset(seed=[1, 2, 3])
    ends = [env.step(np.zeros((3, 2), np.float32))[3].all() for _ in range(7)]
    assert ends == [False] * 6 + [True]
    with pytest.raises(UnknownEnvironmentError, match=r"'Pendulum-v1' is not registered as a vector environment"):
        make_vector_env("Pendulum-v1", vectorization="native")
    with pytest.raises(UnknownEnvironmentError, match=r"did you mean Maze2D-Simple-v0"):
        make_vector_env("Maze2D-Simpel-v0", vectorization="native")


class Echo(gym.vector.VectorEnv):
    """Observes the actions that it gets, between -3 and 3."""

    def __init__(self, num_envs, autoreset_mode):
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": autoreset_mode}
        self.single_action_space = self.single_observation_space = spaces.Box(-3.0, 3.0, (1,), np.float32)
        self.action_space = self.observation_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        return np.zeros((self.num_envs, 1), np.float32), {}

    def step(self, actions):
        none = np.zeros(self.num_envs, bool)
        return actions, np.zeros(self.num_envs), none, none, {}


def test_native_vectors_take_actions_in_agents_units():
    gym.register("Echo-v0", entry_point=lambda: make_env("Pendulum-v1"), vector_entry_point=Echo)
    try:
        env = make_vector_env("Echo-v0", 2, vectorization="native")
        assert env.single_action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
        env.reset(seed=[5, 6])
        np.testing.assert_allclose(env.step(np.array([[0.5], [-1.0]], np.float32))[0], [[1.5], [-3.0]])
    finally:
        del gym.registry["Echo-v0"]


def test_a_number_of_environments_below_one_is_refused():
    with pytest.raises(ValueError, match="n_envs is 0"):
        make_vector_env(register_counter(), 0)


def test_unbounded_actions_are_refused_by_every_factory():
    class Unbounded(gym.Env):
        observation_space = spaces.Box(-1.0, 1.0, (1,))
        action_space = spaces.Box(-np.inf, np.inf, (1,))

    env_id = "LayeredRLTestUnbounded-v0"
    if env_id not in gym.registry:
        gym.register(env_id, entry_point=Unbounded)
    for make in (make_task, make_env, make_vector_env):
        with pytest.raises(ValueError, match=r"action space is Box\(-inf, inf.*expected finite bounds"):
            make(env_id)
