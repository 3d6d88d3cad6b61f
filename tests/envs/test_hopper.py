"""The hopper whose termination is known, against its own episodes."""

import gymnasium as gym
import pytest
import torch

pytest.importorskip("mujoco")

import envs  # noqa: F401  registers the task
from layeredrl.environments import make_task


def test_the_declared_termination_is_that_of_the_episodes() -> None:
    env = gym.make("KnownEndHopper-v0")
    env.action_space.seed(0)
    obs, _ = env.reset(seed=0)
    found, true = [], []
    for _ in range(300):
        action = env.action_space.sample()
        after, _, terminated, _, _ = env.step(action)
        rows = (torch.as_tensor(x).float() for x in (obs, obs[:0], action, after))
        found.append(bool(env.unwrapped.termination_function(*rows)))
        true.append(terminated)
        obs = env.reset()[0] if terminated else after
    assert found == true
    assert sum(true) > 5


def test_the_task_knows_its_termination_and_learns_its_reward() -> None:
    task = make_task("KnownEndHopper-v0")
    assert task.termination is not None
    assert task.reward is None
