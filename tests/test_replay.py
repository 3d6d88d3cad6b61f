"""Replay: what is in it, in which order, and what it refuses."""

import numpy as np
import pytest
from tianshou.data import Batch

from layeredrl.replay import Replay, require_finite_rows
from tests.recording import stored


def transitions(values, width=2):
    """One transition for each of the numbers, which appear in all of its parts."""
    values = np.asarray(values, np.float32)
    return Batch(
        obs=np.repeat(values[:, None], width, 1),
        act=-values[:, None],
        rew=values.astype(np.float64) / 3,
        terminated=values % 5 == 0,
        truncated=values % 7 == 0,
        obs_next=np.repeat(values[:, None] + 1, width, 1),
        info=Batch(duration=values.astype(np.int64), command=10 * values[:, None]),
    )


def check(rows, values):
    expected = transitions(values)
    for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next"):
        np.testing.assert_array_equal(rows[key], expected[key], err_msg=key)
    np.testing.assert_array_equal(rows.info.duration, expected.info.duration)
    np.testing.assert_array_equal(rows.info.command, expected.info.command)


def test_everything_is_kept_by_environment_in_the_order_of_time():
    replay = Replay(60, 3)
    plain = [[], [], []]
    rng = np.random.default_rng(0)
    for t in range(20):
        ids = np.flatnonzero(rng.random(3) < 0.6)
        if not len(ids):
            continue
        replay.add(transitions(100 * ids + t), ids)
        for i in ids:
            plain[i].append(100 * i + t)
        assert len(replay) == sum(map(len, plain))
    check(replay.all(), sum(plain, []))  # noqa: RUF017  three lists
    for i in range(3):
        check(stored(replay, i), plain[i])


def test_the_oldest_of_an_environment_make_room_for_its_newest():
    replay = Replay(8, 2)
    for t in range(11):
        replay.add(transitions([t]), np.array([0]))
        if t < 3:
            replay.add(transitions([100 + t]), np.array([1]))
    assert len(replay) == 4 + 3
    check(replay.all(), [7, 8, 9, 10, 100, 101, 102])


def test_numbers_are_stored_as_single_precision_and_rewards_as_double():
    replay = Replay(8, 2)
    double = transitions([1 / 3, 2 / 3])
    for key in ("obs", "act", "obs_next"):
        double[key] = double[key].astype(np.float64)
    replay.add(double, np.arange(2))
    rows = replay.all()
    assert {key: rows[key].dtype.name for key in ("obs", "act", "obs_next", "rew")} == {
        "obs": "float32",
        "act": "float32",
        "obs_next": "float32",
        "rew": "float64",
    }


def test_integer_actions_stay_integers():
    replay = Replay(8, 2)
    discrete = transitions([3, 4])
    discrete.act = discrete.act.astype(np.int64)
    replay.add(discrete, np.arange(2))
    assert replay.all().act.dtype == np.int64
    np.testing.assert_array_equal(replay.all().act, [[-3], [-4]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["obs", "act", "rew", "obs_next"])
def test_numbers_that_are_not_finite_are_refused(key, value):
    replay = Replay(8, 4)
    batch = transitions([1, 2, 3])
    batch[key][1] = value
    with pytest.raises(ValueError, match=rf"{key} of environment 2 is .*{value}.*expected finite numbers"):
        replay.add(batch, np.array([0, 2, 3]))
    assert len(replay) == 0
    replay.add(transitions([1, 2, 3]), np.array([0, 2, 3]))
    check(replay.all(), [1, 2, 3])


def test_infinities_of_both_signs_are_refused():
    with pytest.raises(ValueError, match="obs of environment 5 is"):
        require_finite_rows("obs", np.array([[np.inf, -np.inf]], np.float32), np.array([5]))


def test_large_finite_numbers_are_no_fault():
    require_finite_rows("obs", np.full((3, 4), 3e38, np.float32), np.arange(3))
    replay = Replay(8, 2)
    replay.add(transitions([9e17, -9e17]), np.arange(2))
    check(replay.all(), [9e17, -9e17])


def test_an_empty_replay_says_so():
    assert len(Replay(8, 2)) == 0
    with pytest.raises(ValueError, match="empty"):
        Replay(8, 2).all()


def test_a_size_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match="size is 2, expected at least one transition for each of 3"):
        Replay(2, 3)
    assert len(Replay(3, 3)) == 0


@pytest.mark.parametrize(("size", "n_envs"), [(8, 2), (7, 2), (10, 3), (3, 3)])
def test_no_more_than_size_is_kept(size, n_envs):
    replay = Replay(size, n_envs)
    for t in range(2 * size):
        replay.add(transitions([t] * n_envs), np.arange(n_envs))
    assert size - n_envs < len(replay) <= size


def test_sampling_is_uniform_and_follows_the_seed():
    def draws(seed):
        replay = Replay(40, 4, seed=seed)
        for t in range(10):
            replay.add(transitions([t, 100 + t, 200 + t, 300 + t]), np.arange(4))
        return np.concatenate([replay.buffer.sample(50)[0].obs[:, 0] for _ in range(40)])

    first = draws(0)
    np.testing.assert_array_equal(first, draws(0))
    assert not np.array_equal(first, draws(1))
    counts = np.array([np.sum(first == value) for value in np.add.outer([0, 100, 200, 300], np.arange(10)).ravel()])
    assert counts.sum() == 2000
    assert np.sum((counts - 50) ** 2 / 50) < 73  # chi-squared with 39 degrees of freedom exceeds it once in 1000
    shares = [np.array([value % 100 for value in first if value // 100 == i])[:300] for i in range(4)]
    for i in range(4):
        for j in range(i):
            n = min(len(shares[i]), len(shares[j]))
            assert np.mean(shares[i][:n] == shares[j][:n]) < 0.2  # rings that are seeded alike agree throughout
