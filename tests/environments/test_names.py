"""Names of observation dimensions."""

import gymnasium as gym
import numpy as np
import pytest

from envs.cartpole import ContinuousCartPole
from layeredrl.environments import make_task
from layeredrl.environments.names import observation_names


class Named(ContinuousCartPole):
    observation_names = ("x", "v")


class Observing(gym.envs.classic_control.PendulumEnv):
    def _get_obs(self):
        return np.zeros(3, np.float32)


def test_gymnasiums_names_are_in_the_order_of_its_observations():
    env = gym.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    theta, velocity = env.unwrapped.state
    found = dict(zip(observation_names(env), obs, strict=True))
    assert found == pytest.approx(
        {"cos of angle": np.cos(theta), "sin of angle": np.sin(theta), "angular velocity": velocity}, abs=1e-5
    )
    assert make_task("CartPole-v1").names == make_task("envs:ContinuousCartPole-v0").names
    assert make_task("CartPole-v1").names[2] == "pole angle"


def test_no_names_where_observations_are_others():
    assert observation_names(gym.wrappers.FlattenObservation(gym.make("Pendulum-v1"))) != ()
    assert observation_names(gym.wrappers.TimeAwareObservation(gym.make("Pendulum-v1"))) == ()
    assert observation_names(Observing()) == ()
    assert make_task("envs:Maze2D-Simple-v0").names == ()
    named = Named()
    with pytest.warns(RuntimeWarning, match="expected 4 names, one for each dimension; it is not used"):
        assert observation_names(named) == ()


def test_joints_of_mujoco_tasks_are_in_the_order_of_the_observations():
    pytest.importorskip("mujoco")
    env = gym.make("HalfCheetah-v5")
    obs, _ = env.reset(seed=0)
    found, data = dict(zip(observation_names(env), obs, strict=True)), env.unwrapped.data
    assert found["bthigh"] == data.joint("bthigh").qpos[0]
    assert found["rootx velocity"] == data.joint("rootx").qvel[0]
    assert found["ffoot velocity"] == data.joint("ffoot").qvel[0]
    assert len(observation_names(gym.make("Reacher-v5"))) == 10
    assert observation_names(gym.make("Ant-v5")) == observation_names(gym.make("envs:PETSHalfCheetah-v0")) == ()
