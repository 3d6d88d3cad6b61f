"""Factories: ids, scaled actions, vector environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import envs  # noqa: F401  registers the tasks
from layeredrl.action_spaces import Rescaling
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
    with pytest.raises(UnknownEnvironmentError, match=r"TypeError: .*no_such_setting"):
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


class Bounded(gym.Env):
    """Fails at actions outside of its Box; reports the others."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, low, high, dtype):
        low, high = np.atleast_1d(np.array(low, dtype)), np.atleast_1d(np.array(high, dtype))
        self.action_space = spaces.Box(low, high, dtype=dtype)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is outside of {self.action_space}"
        return np.zeros(1, np.float32), 0.0, False, False, {"action": action}


class BoundedVector(Echo):
    """Two of them, as one."""

    def __init__(self, num_envs, autoreset_mode, **kwargs):
        super().__init__(num_envs, autoreset_mode)
        self.alone = Bounded(**kwargs)
        self.single_action_space, self.single_observation_space = self.alone.action_space, self.alone.observation_space
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def step(self, actions):
        for action in actions:
            self.alone.step(action)
        return *super().step(np.zeros((self.num_envs, 1), np.float32))[:4], {"action": actions}


gym.register("Bounded-v0", Bounded, vector_entry_point=BoundedVector, disable_env_checker=True)
MOST, MOST64 = np.finfo(np.float32).max, np.finfo(np.float64).max
BOXES = [
    (-2.0, 2.28, np.float32),  # gymnasium's RescaleAction gives 2.2800002
    ([-1, 0.5], [1, 0.5], np.float32),
    (-MOST, MOST, np.float32),
    (-MOST64, MOST64, np.float64),
    (-0.1, 0.7, np.float64),
    (-0.3, 0.1, np.float16),
    (0, 10, np.int64),
    (0, 255, np.uint8),
    (-(2**63), 2**63 - 1, np.int64),
]


@pytest.mark.parametrize(("low", "high", "dtype"), BOXES)
def test_actions_stay_inside_of_the_box_and_have_its_dtype(low, high, dtype):
    """In vectors of both kinds, and where a known function gets them; a process of its own calls `make_env`, too."""
    kwargs = {"low": low, "high": high, "dtype": dtype}
    task = make_task("Bounded-v0", **kwargs)
    low, high = (np.atleast_1d(np.array(bound, dtype)) for bound in (low, high))
    low64, high64 = low.astype(float), high.astype(float)
    rounding = {np.float16: 1e-3, np.int64: 0.5, np.uint8: 0.5}.get(dtype, 1e-6)
    assert task.action_space == spaces.Box(-1.0, 1.0, low.shape, np.float32)
    for vectorization in ("sync", "native"):
        env = make_vector_env("Bounded-v0", 2, vectorization=vectorization, **kwargs)
        assert env.single_action_space == task.action_space
        env.reset(seed=[0, 1])
        for x in (-1.0, -0.25, 0.0, 1.0):
            action = np.full((2, len(low)), x, np.float32)
            taken = env.step(action)[4]["action"]
            assert taken.dtype == dtype
            expected = np.tile(low64 * ((1 - x) / 2) + high64 * ((1 + x) / 2), (2, 1))
            np.testing.assert_allclose(taken.astype(float), expected, rtol=1e-6, atol=rounding)
            if abs(x) == 1:
                np.testing.assert_array_equal(taken, np.broadcast_to(high if x == 1 else low, taken.shape))
            units = task.to_env_units(torch.from_numpy(action)).double().numpy()
            assert np.isfinite(units).all()
            assert ((units >= low64) & (units <= high64)).all()
            if high64[0] <= MOST:  # float32 has no larger number
                np.testing.assert_allclose(units, expected, rtol=1e-6, atol=rounding)
        env.close()


def test_no_pair_of_bounds_is_left_by_rounding():
    rng = np.random.default_rng(0)
    low = rng.uniform(-5, 5, 1000).round(2)
    for dtype in (np.float16, np.float32, np.float64):
        box = spaces.Box(low.astype(dtype), (low + rng.uniform(0, 10, 1000)).round(2).astype(dtype), dtype=dtype)
        for x in (-1.0, 1.0):
            assert box.contains(Rescaling(box)(np.full(1000, x, np.float32)))


class Raises(gym.Env):
    """Raises when it is made."""

    def __init__(self, error):
        raise error


class Panic(BaseException):
    """The base class of panics of code in Rust."""


gym.register("Raises-v0", Raises, vector_entry_point=lambda num_envs, autoreset_mode, error: Raises(error))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no\nlicence"), KeyError("robot"), AssertionError(), SystemExit(1), ImportError("libGL.so"), Panic()],
)
def test_errors_of_constructors_are_one_line(error):
    for make in (make_env, make_task, make_vector_env):
        with pytest.raises(UnknownEnvironmentError) as caught:
            make("Raises-v0", error=error)
        message = str(caught.value)
        assert message.startswith(f"environment 'Raises-v0' cannot be made: {type(error).__name__}: ")
        assert "\n" not in message


def test_an_interrupt_while_an_environment_is_made_is_no_error_of_it():
    with pytest.raises(KeyboardInterrupt):
        make_env("Raises-v0", error=KeyboardInterrupt())


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
