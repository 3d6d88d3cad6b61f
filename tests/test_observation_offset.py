"""Observations whose constant part is too large for float32, against the environment's own numbers in float64."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.environments.answers import fitted
from layeredrl.hierarchy import Hierarchy
from layeredrl.observation_offset import N_WATCHED
from layeredrl.task import TaskSpec
from tests.recording import RecordingRandomLevel

FAR = 5e6
UNIT = spaces.Box(-1.0, 1.0, (1,), np.float32)


class FarAway(gym.Env):
    """A mass at map coordinates, with a clock since 1970 that differs at every start of the environment."""

    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    observation_space = spaces.Dict(
        achieved_goal=spaces.Box(-np.inf, np.inf, (1,), np.float64),
        clock=spaces.Box(0, 2**40, (1,), np.int64),
        desired_goal=spaces.Box(-np.inf, np.inf, (1,), np.float64),
        speed=spaces.Box(-9.0, 9.0, (1,), np.float32),
    )
    n_started = 0

    def __init__(self):
        FarAway.n_started += 1
        self.began = 1_700_000_000 + 5_000 * FarAway.n_started

    def _observe(self):
        return {
            "achieved_goal": np.array([FAR + self.x]),
            "clock": np.array([self.began + self.t]),
            "desired_goal": np.array([FAR + 3]),
            "speed": np.array([self.v], np.float32),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v, self.t = self.np_random.normal(), 0.0, 0
        return self._observe(), {}

    def step(self, action):
        self.v = float(np.clip(self.v + 0.05 * float(action[0]), -9, 9))
        self.x, self.t = self.x + 0.1 * self.v, self.t + 1
        obs = self._observe()
        reward = float(-abs(obs["achieved_goal"][0] - (FAR + 3)))
        return obs, reward, bool(obs["achieved_goal"][0] > FAR + 2), self.t >= 10, {}

    @staticmethod
    def reward_function(state, context, action, next_state):
        return -(next_state[..., 0] - context[..., 0]).abs()

    @staticmethod
    def termination_function(state, context, action, next_state):
        return next_state[..., 0] > FAR + 2

    @staticmethod
    def dynamics_function(state, context, action):
        speed = (state[..., 2] + 0.05 * action[..., 0]).clamp(-9, 9)
        return torch.stack([state[..., 0] + 0.1 * speed, state[..., 1] + 1, speed], -1)


gym.register("FarAway-v0", FarAway, disable_env_checker=True)


def agent_for(task):
    level = RecordingRandomLevel(task.action_space, task.n_envs)
    return Hierarchy([level], task), level


def play(n_steps, n_envs=2):
    task = make_task("FarAway-v0", n_envs)
    agent, level = agent_for(task)
    collector = Collector(make_vector_env("FarAway-v0", n_envs), agent, seed=0)
    for _ in range(n_steps):
        collector.step(explore=True)
    return collector, level


def test_changes_at_a_large_offset_are_kept():
    collector, level = play(60)
    rows, task = level.replay.all(), collector.agent.task
    moved = rows.obs_next.astype(float) - rows.obs
    np.testing.assert_array_equal(moved[:, 1], 1)
    np.testing.assert_allclose(moved[:, 0], 0.1 * rows.obs_next[:, 3], atol=1e-6)
    whole = rows.obs_next + task.offset.values
    np.testing.assert_allclose(-np.abs(whole[:, 0] - whole[:, 2]), rows.rew, atol=1e-6)
    np.testing.assert_allclose(whole[:, 2], FAR + 3)
    assert task.offset.values[0] == task.offset.values[2]  # distances to the goal mean something


def test_known_functions_see_the_observations_of_the_environment():
    collector, level = play(60)
    task, rows = collector.agent.task, level.replay.all()
    assert task.reward is not None  # random steps agree with all of them
    assert task.termination is not None
    obs, after = torch.from_numpy(rows.obs), torch.from_numpy(rows.obs_next)
    state, context = obs[:, [0, 1, 3]], obs[:, [2]]
    action, next_state = task.to_env_units(torch.from_numpy(rows.act)), after[:, [0, 1, 3]]
    reward = task.reward(state, context, action, next_state)
    assert reward.dtype == torch.float32
    np.testing.assert_allclose(reward, rows.rew, atol=1e-6)
    np.testing.assert_array_equal(task.termination(state, context, action, next_state), rows.terminated)
    torch.testing.assert_close(task.dynamics(state, context, action), next_state, atol=1e-6, rtol=0)
    coarse = task.coarse(UNIT, 5)
    torch.testing.assert_close(coarse.reward(state, context, action, next_state), 5 * reward)


def test_the_offset_is_saved_with_the_agent():
    """The clock of another process begins elsewhere."""
    first, _ = play(5)
    state = first.agent.state_dict()
    second, _ = play(0)
    mine, other = first.agent.task, second.agent.task
    assert mine.offset.values[1] != other.offset.values[1]
    torch.testing.assert_close(other.offset.on(torch.device("cpu")), torch.from_numpy(other.offset.values))
    second.agent.load_state_dict(state)
    np.testing.assert_array_equal(mine.offset.values, other.offset.values)
    np.testing.assert_array_equal(other.offset.on(torch.device("cpu")).numpy(), mine.offset.values)
    del state["observation_offset"]  # as in older checkpoints
    second.agent.load_state_dict(state)
    assert not other.offset.used
    with pytest.raises(ValueError, match=r"offset of observations has shape \(2,\), expected \(4,\)"):
        second.agent.load_state_dict(state | {"observation_offset": torch.zeros(2, dtype=torch.float64)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_ordinary_observations_are_unchanged(dtype):
    task = TaskSpec(spaces.Box(0, 200, (3,), dtype), UNIT, reward=lambda state, *_: state[..., 0])
    obs = np.random.default_rng(0).uniform(0, 200, (50, 4, 3)).astype(dtype)
    for rows in obs:
        np.testing.assert_array_equal(task.flatten(rows), rows.astype(np.float32))
    state = torch.from_numpy(task.flatten(obs[0]))
    assert torch.equal(task.reward(state, state[:, :0], state, state), state[:, 0])
    assert "observation_offset" not in agent_for(task)[0].state_dict()


@pytest.mark.parametrize(("speed", "warns"), [(1e-3, True), (50.0, False)])
def test_a_change_that_is_still_lost_is_named_once(speed, warns):
    """The observation drifts away from where it began."""
    task = TaskSpec(spaces.Box(-np.inf, np.inf, (2,), np.float64), UNIT)
    task.flatten(np.zeros((3, 2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(5 * N_WATCHED):
            task.flatten(np.full((3, 2), [1.0, 1e6 + speed * t]))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == warns
    if warns:
        assert "dimension 1 of the observation is 1e+06 and changes by 0.001 in a step" in messages[0]
        assert "precision of float32, 0.0625" in messages[0]


def test_every_environment_is_watched():
    """The second is elsewhere, so that the offset of the first is not its own; the third is large, but fast."""
    task = TaskSpec(spaces.Box(-np.inf, np.inf, (1,), np.float64), UNIT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(10 * N_WATCHED):
            task.flatten(np.array([[1e7], [2e7 + 0.01 * t], [3e7 + 100.0 * t]]))
    (message,) = (str(warning.message) for warning in caught)
    assert "dimension 0 of the observation is 2e+07 and changes by 0.01" in message


def test_large_numbers_that_a_space_of_float32_rounds_are_named_once(monkeypatch):
    monkeypatch.setattr("layeredrl.environments.answers.ROUNDED", set())
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.warns(RuntimeWarning, match=r"part\[1\] is 1e\+07, which .* rounds to steps of 1; declare .* float64"):
        fitted(space, np.array([0.1, 1e7 + 0.1]), "part")
    fitted(space, np.array([1e7 + 0.2, 0.1]), "part")  # a warning would be an error
    fitted(space, np.array([0.1, 2.0**24]), "whole")
