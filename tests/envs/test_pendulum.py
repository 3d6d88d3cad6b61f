"""The pendulum against gymnasium's, to the last bit. Its functions are tested in test_known_tasks."""

import gymnasium as gym
import numpy as np
import torch

import envs  # noqa: F401  registers the tasks
from envs.pendulum import dynamics_function, reward_function


def test_is_pendulum_v1() -> None:
    ours, theirs = gym.make("SwingUpPendulum-v0"), gym.make("Pendulum-v1")
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    for i, push in enumerate(np.random.default_rng(0).uniform(-2, 2, (200, 1)).astype(np.float32)):
        obs, reward, terminated, truncated, _ = ours.step(push)
        expected_obs, expected_reward, *_ = theirs.step(push)
        np.testing.assert_array_equal(obs, expected_obs)
        assert reward == expected_reward
        assert (terminated, truncated) == (False, i == 199)


def test_torque_and_speed_are_clipped() -> None:
    state = torch.tensor([[0.0, 1.0, 7.9], [0.0, -1.0, -7.9]])
    for torque in (2.0, 5.0):
        push = torch.tensor([[torque], [-torque]])
        assert dynamics_function(state, None, push)[:, 2].tolist() == [8.0, -8.0]
        reward = reward_function(state, None, push, state)
        torch.testing.assert_close(reward, torch.full((2,), -((np.pi / 2) ** 2 + 0.1 * 7.9**2 + 0.004)).float())
