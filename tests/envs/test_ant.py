"""The ant that goes to a goal. Promises of all tasks are tested in test_known_tasks."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("mujoco")

import envs  # noqa: F401  registers the tasks
from envs.ant import AntGoal


def test_observes_and_moves_as_ant_v5() -> None:
    plain = gym.make(
        "Ant-v5",
        include_cfrc_ext_in_observation=False,
        exclude_current_positions_from_observation=False,
        terminate_when_unhealthy=False,
    ).unwrapped
    env = AntGoal(goal=(3.0, -4.0))
    env.action_space.seed(0)
    flat, (obs, info) = plain.reset(seed=0)[0], env.reset(seed=0)
    for _ in range(20):
        assert all(part.dtype == np.float32 for part in obs.values())
        np.testing.assert_array_equal(obs["achieved_goal"], flat[:2].astype(np.float32))
        np.testing.assert_array_equal(obs["observation"], flat[2:].astype(np.float32))
        np.testing.assert_array_equal(obs["desired_goal"], [3.0, -4.0])
        assert info == {"is_success": False, "dist_to_goal": pytest.approx(np.hypot(flat[0] - 3, flat[1] + 4))}
        action = env.action_space.sample()
        flat, (obs, reward, terminated, truncated, info) = plain.step(action)[0], env.step(action)
        assert reward == -info["dist_to_goal"]
        assert not terminated
        assert not truncated


def test_being_unhealthy_does_not_terminate() -> None:
    env = AntGoal(goal=(0.0, 0.0))
    env.reset(seed=0)
    qpos, qvel = env.data.qpos.copy(), env.data.qvel.copy()
    qpos[2:7] = 3.0, 0.0, 1.0, 0.0, 0.0  # high in the air, on its back
    env.set_state(qpos, qvel)
    _, _, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert not env.is_healthy
    assert not terminated
    assert info["is_success"]  # within 1.5 m


def test_goals_are_uniform_or_given_and_checked() -> None:
    env = AntGoal()
    env.reset(seed=0)
    goals = np.array([env.reset()[0]["desired_goal"] for _ in range(300)])
    assert np.abs(goals).max() < 15
    assert np.abs(goals).min(0).max() < 1
    np.testing.assert_allclose(goals.std(0), 15 / 3**0.5, rtol=0.1)
    np.testing.assert_array_equal(env.reset(seed=4)[0]["desired_goal"], env.reset(seed=4)[0]["desired_goal"])
    fixed = AntGoal(goal=[10.0, 10.0])
    np.testing.assert_array_equal(fixed.reset(options={"goal": (0, -10)})[0]["desired_goal"], [0, -10])
    for other in (fixed, copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        np.testing.assert_array_equal(other.reset()[0]["desired_goal"], [10, 10])
    with pytest.raises(ValueError, match=r"goal is \(1, 2, 3\); it should be two finite numbers"):
        AntGoal(goal=(1, 2, 3))
    with pytest.raises(ValueError, match=r"options\['goal'\] is \(nan, 0\)"):
        env.reset(options={"goal": (float("nan"), 0)})


def test_episodes_have_200_steps() -> None:
    env = gym.make("AntGoal-v0")
    env.reset(seed=0)
    ends = [env.step(np.zeros(8, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]
