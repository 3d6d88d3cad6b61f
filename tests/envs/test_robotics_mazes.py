"""The wrapped mazes of gymnasium-robotics. Promises of all tasks are tested in test_known_tasks."""

import copy
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics")

import gymnasium_robotics

import envs  # noqa: F401  registers the tasks
from envs.robotics_mazes import AntMaze, PointMaze

gym.register_envs(gymnasium_robotics)

ORIGINALS = {
    "PointMaze-UMaze-v0": "PointMaze_UMazeDense-v3",
    "PointMaze-Medium-v0": "PointMaze_MediumDense-v3",
    "AntMaze-UMaze-v0": "AntMaze_UMazeDense-v5",
    "AntMaze-Medium-v0": "AntMaze_MediumDense-v5",
}


@pytest.mark.parametrize("env_id", ORIGINALS)
def test_episodes_are_the_originals(env_id: str) -> None:
    original, env = gym.make(ORIGINALS[env_id]), gym.make(env_id)
    assert env.spec.max_episode_steps == original.spec.max_episode_steps
    env.action_space.seed(0)
    expected, found = original.reset(seed=0), env.reset(seed=0)
    for _ in range(20):
        for key, part in expected[0].items():
            assert found[0][key].dtype == np.float32
            np.testing.assert_array_equal(found[0][key], part.astype(np.float32))
        assert found[1:] == expected[1:]
        assert type(found[-1]["success"]) is bool
        action = env.action_space.sample()
        expected, found = original.step(action), env.step(action)


def test_info_has_the_success() -> None:
    env = PointMaze("umaze")
    successes = []
    for seed in range(8):
        env.reset(seed=seed, options={"goal_cell": np.array([1, 1]), "reset_cell": np.array([1, 1])})
        obs, reward, *_, info = env.step(np.zeros(2, np.float32))
        distance = np.linalg.norm(obs["achieved_goal"] - obs["desired_goal"])
        assert info["success"] == (distance <= 0.45)
        assert reward == pytest.approx(np.exp(-distance), rel=1e-4)
        successes.append(info["success"])
    assert any(successes)


@pytest.mark.parametrize("kind", [PointMaze, AntMaze])
def test_copies_work_and_no_file_is_left(kind: type[PointMaze]) -> None:
    env = kind("medium")
    assert not Path(env.tmp_xml_file_path).exists()
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        obs, expected = other.reset(seed=5)[0], env.reset(seed=5)[0]
        for key, part in expected.items():
            np.testing.assert_array_equal(obs[key], part)
    with pytest.raises(ValueError, match="maze is 'large'; it should be one of 'umaze', 'medium'"):
        kind("large")
