"""The vector environment against single mazes, stepped one by one by gymnasium."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs  # noqa: F401  registers the tasks
from envs.maze2d_vector import Maze2DVectorEnv

N = 5
SETTINGS = {"max_steps": 7, "drift": (0.01, -0.02), "impulse": (0.3, 0.2), "impulse_at": 4}
MODES = list(AutoresetMode)


def both(mode: AutoresetMode, **settings: Any) -> tuple[Maze2DVectorEnv, SyncVectorEnv]:
    settings = {**SETTINGS, **settings}
    batched = gym.make_vec("Maze2D-Medium-v0", N, "vector_entry_point", autoreset_mode=mode, **settings)
    one_by_one = gym.make_vec("Maze2D-Medium-v0", N, "sync", vector_kwargs={"autoreset_mode": mode}, **settings)
    return batched, one_by_one


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert_equal(mine, theirs)


def assert_equal(mine: Any, theirs: Any) -> None:
    """Assert equality to the last bit, of the same types."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            assert_equal(mine[key], theirs[key])
    elif isinstance(theirs, np.ndarray) and theirs.dtype == object:
        assert mine.dtype == object
        assert [one is None for one in mine] == [one is None for one in theirs]
        for one, other in zip(mine, theirs, strict=True):
            if other is not None:
                assert_equal(one, other)
    else:
        assert data_equivalence(mine, theirs, exact=True), f"{mine} is not {theirs}"


def actions(n_steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n_steps, N, 2)).astype(np.float32)


@pytest.mark.parametrize("reward_type", ["dense", "sparse"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.value)
def test_autoreset_is_that_of_gymnasium(mode: AutoresetMode, reward_type: str) -> None:
    batched, one_by_one = both(mode, reward_type=reward_type)
    assert batched.metadata["autoreset_mode"] is mode
    # At different steps of their episodes, so that only some are reset at a time.
    mask = np.array([True, False, True, False, False])
    assert_same(batched.reset(seed=3), one_by_one.reset(seed=3))
    n_partial = 0
    for i, action in enumerate(actions(30)):
        if i == 3:
            seeds = [11, None, None, 2, 3]
            assert_same(
                batched.reset(seed=seeds, options={"reset_mask": mask}),
                one_by_one.reset(seed=seeds, options={"reset_mask": mask.copy()}),
            )
        found = batched.step(action)
        assert_same(found, one_by_one.step(action))
        n_partial += 0 < found[3].sum() < N
    assert n_partial > 2


def test_manual_resets_are_those_of_gymnasium() -> None:
    batched, one_by_one = both(AutoresetMode.DISABLED)
    assert_same(batched.reset(seed=(5, 6, 7, 8, 9)), one_by_one.reset(seed=[5, 6, 7, 8, 9]))
    done = np.array([False, True, False, False, True])
    for i, action in enumerate(actions(30)):
        if done.any():
            seed = None if i % 2 else i
            options = {"reset_mask": done, "start": (1.5, 1.5)}
            found = batched.reset(seed=seed, options=options)
            assert options.keys() == {"reset_mask", "start"}  # the caller's options are not modified
            assert_same(found, one_by_one.reset(seed=seed, options=dict(options)))
        found = batched.step(action)
        assert_same(found, one_by_one.step(action))
        done = found[3]
    while not done.any():
        done = batched.step(actions(1)[0])[3]
    with pytest.raises(gym.error.ResetNeeded, match=rf"environments \[{np.flatnonzero(done)[0]}"):
        batched.step(actions(1)[0])
    assert_same((batched.reset(seed=1)[0],), (one_by_one.reset(seed=1)[0],))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_returned_arrays_are_not_modified(mode: AutoresetMode) -> None:
    batched, _ = both(mode, max_steps=4)
    kept = [batched.reset(seed=0)]
    before = pickle.dumps(kept)
    for action in actions(3):
        result = batched.step(action)
        for value in (*result[0].values(), *result[1:4]):
            value[...] = 1  # the caller may write to it too
        batched.step(action * 0) if mode != AutoresetMode.DISABLED else batched.reset()
    assert pickle.dumps(kept) == before
    assert len({id(value) for value in kept[0][0].values()}) == 3


def test_starts_and_goals_per_environment() -> None:
    batched, _ = both(AutoresetMode.NEXT_STEP)
    starts = np.array([[1.5, 1.5], [6.5, 1.5], [1.5, 6.5], [6.5, 6.5], [2.5, 2.5]])
    obs, info = batched.reset(options={"start": starts, "goal": (2.5, 2.5)})
    np.testing.assert_array_equal(obs["observation"], starts)
    np.testing.assert_array_equal(obs["desired_goal"], np.full((N, 2), 2.5))
    assert info["is_success"].tolist() == [False] * 4 + [True]
    with pytest.raises(ValueError, match=r"options\['start'\] has shape \(3, 2\)"):
        batched.reset(options={"start": starts[:3]})
    with pytest.raises(ValueError, match=r"options\['goal'\] is \(0\.5, 0\.5\), in a wall"):
        batched.reset(options={"goal": (0.5, 0.5)})


def test_only_ignored_actions_may_be_nan() -> None:
    batched, _ = both(AutoresetMode.NEXT_STEP, max_steps=2)
    batched.reset(seed=0)
    for _ in range(2):
        batched.step(np.zeros((N, 2), np.float32))
    batched.step(np.full((N, 2), np.nan, np.float32))
    bad = np.zeros((N, 2), np.float32)
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"action of environment 3 is \(0\.0, nan\)"):
        batched.step(bad)
    with pytest.raises(ValueError, match=r"shape \(2,\); it should be \(5, 2\)"):
        batched.step(bad[0])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_envs is 0"):
        Maze2DVectorEnv(0)
    batched = Maze2DVectorEnv(N, "corridor")
    with pytest.raises(gym.error.ResetNeeded):
        batched.step(np.zeros((N, 2), np.float32))
    with pytest.raises(gym.error.ResetNeeded):
        batched.reset(options={"reset_mask": np.eye(N, dtype=bool)[0]})
    with pytest.raises(ValueError, match="seed has length 3"):
        batched.reset(seed=[1, 2, 3])
    with pytest.raises(TypeError, match="of type list"):
        batched.reset(options={"reset_mask": [True] * N})
    with pytest.raises(TypeError, match="of type int64"):
        batched.reset(options={"reset_mask": np.ones(N, np.int64)})
    for mask in (np.zeros(N, bool), np.ones(N + 1, bool)):
        with pytest.raises(ValueError, match="reset_mask"):
            batched.reset(options={"reset_mask": mask})


def test_spaces_generators_and_pictures() -> None:
    batched, one_by_one = both(AutoresetMode.NEXT_STEP, render_mode="rgb_array")
    assert batched.single_observation_space == one_by_one.single_observation_space
    assert batched.observation_space == one_by_one.observation_space
    assert batched.action_space == one_by_one.action_space
    assert batched.render_mode == "rgb_array"
    assert_same(batched.reset(seed=4), one_by_one.reset(seed=4))
    assert batched.np_random_seed == one_by_one.np_random_seed == (4, 5, 6, 7, 8)
    assert len(batched.np_random) == N
    assert_equal(batched.render(), one_by_one.render())
    assert isinstance(pickle.loads(pickle.dumps(batched)), Maze2DVectorEnv)
