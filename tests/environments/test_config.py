"""Recipes of environments: arguments, repeated actions and wrappers, wherever instances are made."""

import warnings

import gymnasium as gym
import numpy as np
import pytest

import envs  # noqa: F401  registers the tasks
from layeredrl.collector import Collector
from layeredrl.environments import EnvConfig, UnknownEnvironmentError, make_env, make_task, make_vector_env
from layeredrl.environments.action_repeat import FRAMES_KEY, ActionRepeat
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from tests.envs.counter import CounterEnv, register_counter


class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


class PlusOne(gym.RewardWrapper):
    def reward(self, reward):
        return reward + 1


class WithChoice(gym.ObservationWrapper):
    """The observation, and the remainder of the count by three as a choice."""

    def __init__(self, env):
        super().__init__(env)
        choice = gym.spaces.Discrete(3)
        self.observation_space = gym.spaces.Tuple([env.observation_space, gym.spaces.Dict(mod=choice)])

    def observation(self, obs):
        return obs, {"mod": np.int64(obs[0] % 3)}


def no_env(env):
    return None


HERE = __name__


def test_rewards_of_repeated_actions_are_summed_and_stop_at_an_end():
    for end in ("terminate", "truncate"):
        env = make_env(EnvConfig(register_counter(), {"episode_length": 5, "ends": end}, action_repeat=3))
        env.reset()
        obs, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        assert (obs[0], reward, terminated, truncated, info[FRAMES_KEY]) == (3, 1 + 2 + 3, False, False, 3)
        obs, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        assert (obs[0], reward, info[FRAMES_KEY]) == (5, 4 + 5, 2)
        assert (terminated, truncated) == (end == "terminate", end == "truncate")


def test_a_success_in_any_frame_is_one_of_the_step():
    class Succeeds(CounterEnv):
        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {"success": self._count == 2, "is_success": np.float32(0)}

    env = ActionRepeat(Succeeds(9), 3)
    env.reset()
    found = [env.step(np.zeros(1))[4] for _ in range(2)]
    assert [info["success"] for info in found] == [True, False]
    assert [info["is_success"] for info in found] == [0, 0]


def test_a_picture_is_drawn_after_each_step():
    assert make_env(EnvConfig("ContinuousCartPole-v0", action_repeat=4)).metadata["render_fps"] == 50 / 4


def test_wrappers_are_applied_in_order_around_repeated_actions():
    both = EnvConfig(register_counter(), action_repeat=2, wrappers=(f"{HERE}:Doubled", f"{HERE}:PlusOne"))
    for config, expected in [(both, 2 * (1 + 2) + 1), (EnvConfig(register_counter()), 1)]:
        env = make_vector_env(config, 2)
        env.reset(seed=0)
        assert env.step(np.zeros((2, 1), np.float32))[1].tolist() == [expected] * 2
        env.close()


def test_the_wrapper_that_errors_name_makes_nested_observations_flat():
    env_id, nested = register_counter(), f"{HERE}:WithChoice"
    with pytest.raises(ValueError, match=r"observation space is Tuple.*FlattenObservation") as refusal:
        make_task(EnvConfig(env_id, wrappers=(nested,)))
    wrapper = str(refusal.value).split("the wrapper ")[1].split()[0]
    config = EnvConfig(env_id, wrappers=(nested, wrapper))
    task, env = make_task(config), make_vector_env(config)
    env.reset(seed=0)
    obs = [task.flatten(env.step(np.zeros((1, 1), np.float32))[0])[0].tolist() for _ in range(2)]
    assert obs == [[1, 0, 0, 1, 0], [2, 0, 0, 0, 1]]  # count, episode, choice
    env.close()


def test_processes_of_environments_have_the_same_recipe():
    config = EnvConfig("Pendulum-v1", {"g": 3.0}, action_repeat=2, wrappers=(f"{HERE}:Doubled",))
    rewards = []
    for vectorization in ("sync", "async"):
        env = make_vector_env(config, 1, vectorization=vectorization)
        env.reset(seed=[4])
        rewards.append(env.step(np.full((1, 1), 0.5, np.float32))[1].item())
        env.close()
    plain = gym.make("Pendulum-v1", g=3.0)
    plain.reset(seed=4)
    expected = 2 * sum(float(plain.step(np.array([1.0], np.float32))[1]) for _ in range(2))
    assert rewards == pytest.approx([expected] * 2, rel=1e-6)


def test_known_functions_of_a_frame_are_left_out_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once, thrice = (make_task(EnvConfig("ContinuousCartPole-v0", action_repeat=n)) for n in (1, 3))
    assert once.reward is not None
    assert thrice.reward is None
    assert thrice.dynamics is None
    assert thrice.termination is not None  # of the state that was reached, however many frames it took


def test_frames_are_counted_beside_environment_steps():
    config = EnvConfig(register_counter(), {"episode_length": 5}, action_repeat=3)
    task = make_task(config, 2)
    agent = Hierarchy([RandomLevel(task.action_space)], task)
    collector = Collector(make_vector_env(config, 2), agent, seed=0)
    episodes = [episode for _ in range(4) for episode in collector.step(explore=True)]
    assert [episode.length for episode in episodes] == [2] * 4
    assert (collector.n_total_env_steps, collector.take_metrics()["env/frames"]) == (8, 20.0)
    other = Collector(make_vector_env(config, 2), agent, seed=0)
    other.load_state_dict(collector.state_dict())
    assert other.take_metrics()["env/frames"] == 20.0
    once = Collector(make_vector_env(register_counter(), 2), agent, seed=0)
    once.step(explore=True)
    assert "env/frames" not in once.take_metrics()


@pytest.mark.parametrize("change", [{"action_repeat": 2}, {"wrappers": (f"{HERE}:Doubled",)}])
def test_native_vectors_are_not_wrapped(change):
    with pytest.raises(ValueError, match="vectorization is 'native', expected 'sync' or 'async'"):
        make_vector_env(EnvConfig("Maze2D-Simple-v0", **change), vectorization="native")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"action_repeat": 0}, ValueError, "action_repeat is 0, expected at least 1"),
        ({"action_repeat": 1.5}, TypeError, "action_repeat is 1.5"),
        ({"kwargs": [1]}, TypeError, r"env_kwargs is \[1\], expected a mapping"),
        ({"wrappers": ("Doubled",)}, ValueError, "wrappers has 'Doubled', expected package.module:Class"),
    ],
)
def test_bad_recipes(settings, error, message):
    with pytest.raises(error, match=message):
        EnvConfig("Pendulum-v1", **settings)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("no_such_module:X", "unknown wrapper 'no_such_module:X': No module named"),
        (f"{HERE}:Tripled", "unknown wrapper .* has no attribute 'Tripled'"),
        (f"{HERE}:HERE", "expected a class"),
        (f"{HERE}:no_env", "returned NoneType, expected a gym.Env"),
        ("gymnasium.wrappers:TransformReward", "environment 'Pendulum-v1' cannot be made: TypeError: "),
    ],
)
def test_bad_wrappers(wrapper, message):
    with pytest.raises(UnknownEnvironmentError, match=message):
        make_env(EnvConfig("Pendulum-v1", wrappers=(wrapper,)))
