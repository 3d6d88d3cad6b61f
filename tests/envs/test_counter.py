"""Numbers of the counting environment, on which other tests rely."""

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.envs.counter import CounterEnv, Ends, register_counter

ACTION = np.zeros(1, dtype=np.float32)


def _episode(
    env: gym.Env[NDArray[np.float32], NDArray[np.float32]], seed: int | None = None
) -> list[tuple[list[float], float, bool, bool]]:
    env.reset(seed=seed)
    steps: list[tuple[list[float], float, bool, bool]] = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        obs, reward, terminated, truncated, _ = env.step(ACTION)
        assert env.observation_space.contains(obs)
        steps.append((obs.tolist(), float(reward), terminated, truncated))
    return steps


def test_observation_counts_steps_and_episodes() -> None:
    env = CounterEnv(episode_length=3)
    np.testing.assert_array_equal(env.reset()[0], [0, 0])
    np.testing.assert_array_equal(env.reset()[0], [0, 1])
    assert _episode(env) == [
        ([1, 2], 1.0, False, False),
        ([2, 2], 2.0, False, False),
        ([3, 2], 3.0, True, False),
    ]


@pytest.mark.parametrize(
    ("ends", "terminated"),
    [("terminate", [True] * 4), ("truncate", [False] * 4), ("alternate", [True, False, True, False])],
)
def test_ends_of_episodes(ends: Ends, terminated: list[bool]) -> None:
    env = CounterEnv(episode_length=2, ends=ends)
    last_steps = [_episode(env)[-1] for _ in terminated]
    assert [step[2] for step in last_steps] == terminated
    assert [step[3] for step in last_steps] == [not value for value in terminated]


def test_random_length_follows_the_seed() -> None:
    env, other = CounterEnv(6, random_length=True), CounterEnv(6, random_length=True)
    lengths = [len(_episode(env, seed)) for seed in range(40)]
    assert lengths == [len(_episode(other, seed)) for seed in range(40)]
    assert set(lengths) == {1, 2, 3, 4, 5, 6}


def test_misuse_raises() -> None:
    with pytest.raises(ValueError, match="episode_length is 0"):
        CounterEnv(0)
    with pytest.raises(ValueError, match="ends is 'stop'"):
        CounterEnv(ends="stop")  # type: ignore[arg-type]
    env = CounterEnv(1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(ACTION)
    _episode(env)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(ACTION)


def test_registration_can_be_repeated() -> None:
    assert register_counter() == register_counter() == "LayeredRLTestCounter-v0"
    assert len(_episode(gym.make(register_counter(), episode_length=4))) == 4
