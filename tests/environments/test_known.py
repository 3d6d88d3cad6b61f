"""Known functions and dimensions of an environment are used only where a few random steps agree with them."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    MaxAndSkipObservation,
    NormalizeObservation,
    TimeAwareObservation,
    TimeLimit,
    TransformObservation,
    TransformReward,
)

from layeredrl.environments import make_task

ORDER = [2, 1, 0]


class Roller(gym.Env):
    """An angle, a speed and the number of steps; declares all that it knows, and writes into one array."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    angle_dims = (0,)
    absolute_dims = (2,)
    factor = 1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([*self.np_random.normal(size=2), 0.0], np.float32)
        return self.state, {}

    def step(self, action):
        self.state += np.array([0.1 * self.state[1], 0.1 * action[0], 1.0], np.float32)
        reward = float(np.cos(self.state[0]) - 0.01 * action[0] ** 2)
        return self.state, reward, bool(self.state[2] >= 7), False, {}

    def reward_function(self, state, context, action, next_state):
        return self.factor * (next_state[..., 0].cos() - 0.01 * action[..., 0].square())

    @staticmethod
    def termination_function(state, context, action, next_state):
        return next_state[..., 2] >= 7

    @staticmethod
    def dynamics_function(state, context, action):
        change = torch.stack([0.1 * state[..., 1], 0.1 * action[..., 0], torch.ones_like(state[..., 0])], -1)
        return state + change


class Wrong(Roller):
    factor = 1.01


class Fails(Roller):
    def step(self, action):
        raise RuntimeError("no licence")


def reordered(env):
    return TransformObservation(env, lambda obs: obs[ORDER].copy(), env.observation_space)


class Rare(Roller):
    """Rewards and ends that random steps never reach."""

    def step(self, action):
        obs, _, _, truncated, info = super().step(action)
        return obs, 0.0, False, truncated, info

    @staticmethod
    def reward_function(state, context, action, next_state):
        return (next_state[..., 0] > 100).float()

    @staticmethod
    def termination_function(state, context, action, next_state):
        return next_state[..., 0] > 100


class Judged(gym.Wrapper):
    """Another wrapper that has a `step` of its own."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, -reward, False, truncated or terminated, info


class Fence(gym.Wrapper):
    """Ends episodes, with a bonus, where random steps do not come."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward + 10 * (obs[0] > 100), terminated or obs[0] > 100, truncated, info


KINDS = {
    "Fenced": (lambda: Fence(Roller()), {"dynamics", "dims"}),
    "Rare": (lambda: Rare(), {"reward", "termination", "dynamics", "dims"}),
    "MinusRareReward": (lambda: TransformReward(Rare(), lambda r: -r), {"termination", "dynamics", "dims"}),
    "JudgedRare": (lambda: Judged(Rare()), {"dynamics", "dims"}),
    "ReorderedRare": (lambda: reordered(Rare()), set()),
    "Clock": (lambda: TimeAwareObservation(TimeLimit(Rare(), 50)), {"reward", "termination", "dims"}),
    "Plain": (lambda: Roller(), {"reward", "termination", "dynamics", "dims"}),
    "MinusReward": (lambda: TransformReward(Roller(), lambda r: -r), {"termination", "dynamics", "dims"}),
    # Three steps at once: the mean of observations and the sum of rewards; it ends when the last one of them ends.
    "Skip": (lambda: MaxAndSkipObservation(Roller(), 3), set()),
    "Normalized": (lambda: NormalizeObservation(Roller()), set()),
    "Reordered": (lambda: reordered(Roller()), set()),
    "WrongReward": (lambda: Wrong(), {"termination", "dynamics", "dims"}),
    "Failing": (lambda: Fails(), {"reward", "termination", "dynamics", "dims"}),
}
for name, (make, _) in KINDS.items():
    gym.register(f"Known{name}-v0", lambda make=make, **kwargs: make(**kwargs), max_episode_steps=50)


@pytest.mark.parametrize("name", KINDS)
def test_only_what_random_steps_agree_with_is_known(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = make_task(f"Known{name}-v0")
    kept = {key for key in ("reward", "termination", "dynamics") if getattr(task, key) is not None}
    kept |= {"dims"} if task.dims.angle else set()
    expected = KINDS[name][1]
    assert kept == expected
    messages = [str(w.message) for w in caught if "contradict" in str(w.message)]
    assert len(messages) == (len(expected) < 4)
    if messages:
        for key in ("reward", "termination", "dynamics"):
            assert (f"{key}_function" in messages[0]) == (key not in expected)
        assert ("angle_dims" in messages[0]) == ("dims" not in expected)


def test_trying_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make_task("KnownPlain-v0")
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
