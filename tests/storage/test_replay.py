"""Replay: what is in it, in which order, and what it refuses."""

import copy
import os

import numpy as np
import pytest
import torch
from tianshou.data import Batch

from layeredrl.checks import require_finite_rows
from layeredrl.storage import Checkpoints
from layeredrl.storage.replay import Replay
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


@pytest.mark.parametrize("key", ["obs", "act", "obs_next"])
def test_numbers_that_single_precision_cannot_hold_are_refused(key):
    replay = Replay(8, 2)
    batch = transitions([1, 2])
    batch[key] = batch[key].astype(np.float64)
    batch[key][1] = -1e300
    with pytest.raises(ValueError, match=rf"{key} as float32 of environment 1 is .*-inf.*expected finite numbers"):
        replay.add(batch, np.arange(2))
    assert len(replay) == 0
    batch[key][1] = 3e38
    replay.add(batch, np.arange(2))
    assert np.isfinite(replay.all()[key]).all()


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


def state_of(replay: Replay) -> dict:
    """All that tianshou keeps, as plain values."""

    def ring(buffer) -> dict:
        kind, key, *rest = buffer._random_state.get_state()
        names = ("maxsize", "_size", "_insertion_idx", "_ep_return", "_ep_len", "_ep_start_idx")
        return {
            **{name: getattr(buffer, name) for name in names},
            "last_index": buffer.last_index.tolist(),
            "generator": [kind, key.tolist(), *rest],
            "columns": flat(buffer._meta),
        }

    manager = replay.buffer
    rest = {name: getattr(manager, name).tolist() for name in ("_offset", "_extend_offset", "_lengths")}
    return {"manager": ring(manager) | rest, "rings": [ring(buffer) for buffer in manager.buffers]}


def flat(batch: Batch, prefix: str = "") -> dict:
    found = {}
    for key, value in sorted(batch.items()):
        if isinstance(value, Batch):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = (value.dtype.name, value.shape, value.tobytes())
    return found


class Twin:
    """A replay that is saved and restored again and again, and the list of what happened to it."""

    def __init__(self, folder, n_envs: int, size: int) -> None:
        self.n_envs, self.size = n_envs, size
        self.replay = Replay(size, n_envs, seed=3)
        self.events: list = []  # a batch and its environments, or the size of a sample
        self.newest: dict[int, tuple[Batch, int]] = {}
        self.checkpoints, self.n = Checkpoints(folder, keep=2), 0

    def add(self, batch: Batch, env_ids: np.ndarray) -> None:
        self.events.append((batch, env_ids))
        self.replay.add(copy.deepcopy(batch), env_ids)
        self.newest |= {int(i): (batch, row) for row, i in enumerate(env_ids)}

    def truncate(self, env_ids: list[int]) -> None:
        """In the list the transition is one that had been truncated from the start."""
        self.replay.truncate(env_ids)
        for batch, row in (self.newest[i] for i in env_ids if i in self.newest):
            if not batch.terminated[row]:
                batch.truncated[row] = True

    def sample(self, n: int) -> None:
        if len(self.replay):
            self.events.append(n)
            self.replay.buffer.sample(n)

    def save(self) -> None:
        self.n += 1
        self.checkpoints.save({"agent": {"replay": self.replay.state_dict()}}, self.n)

    def restart(self) -> None:
        """In a new process, so to speak."""
        self.checkpoints = Checkpoints(self.checkpoints.folder, keep=2)
        self.replay = Replay(self.size, self.n_envs, seed=100 + self.n)
        self.replay.load_state_dict(self.checkpoints.load()["agent"]["replay"])

    def check(self) -> None:
        """Against a replay that never stopped."""
        other = Replay(self.size, self.n_envs, seed=3)
        for event in self.events:
            if isinstance(event, tuple):
                other.add(copy.deepcopy(event[0]), event[1])
            else:
                other.buffer.sample(event)
        assert state_of(self.replay) == state_of(other)
        if not len(other):
            return
        np.testing.assert_array_equal(self.replay.buffer.unfinished_index(), other.buffer.unfinished_index())
        assert flat(self.replay.all()) == flat(other.all())
        a, b = copy.deepcopy(self.replay), copy.deepcopy(other)
        for n in (1, 7, None):
            np.testing.assert_array_equal(a.buffer.sample_indices(n), b.buffer.sample_indices(n))
            assert flat(a.buffer.sample(n)[0]) == flat(b.buffer.sample(n)[0])


@pytest.fixture(autouse=True)
def without_sync(monkeypatch):
    """It takes time, and shows nothing as long as the machine does not lose its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 15))])
def test_a_replay_that_was_restored_is_the_one_that_never_stopped(tmp_path, seed):
    """Random adds, samples, truncations, saves, saves that fail, and restarts, through several rounds of the rings."""
    rng = np.random.default_rng(seed)
    n_envs = int(rng.integers(1, 5))
    twin = Twin(tmp_path, n_envs, n_envs * int(rng.integers(1, 9)) + int(rng.integers(0, n_envs)))
    twin.save()
    for t in range(60):
        ids = np.flatnonzero(rng.random(n_envs) < 0.7)
        if len(ids):
            twin.add(transitions(100 * ids + t), ids)
        if rng.random() < 0.2:
            twin.truncate(rng.integers(0, n_envs, 2).tolist())
        if rng.random() < 0.2:
            twin.sample(int(rng.integers(1, 9)))
        if rng.random() < 0.2:
            twin.replay.state_dict()  # a save that came to nothing
        if rng.random() < 0.3:
            twin.save()
            if rng.random() < 0.5:
                twin.truncate(rng.integers(0, n_envs, 2).tolist())  # of what has been saved
                twin.sample(3)
                twin.save()
            if rng.random() < 0.6:
                twin.restart()
                if t % 3 == 0:
                    twin.check()
    twin.save()
    twin.restart()
    twin.check()
    assert twin.replay.buffer.rings[0].n_added > 2 * twin.replay.buffer.rings[0].maxsize


def test_only_new_transitions_are_saved(tmp_path):
    replay, checkpoints = Replay(20, 2), Checkpoints(tmp_path)
    for t in range(4):
        replay.add(transitions([t, 100 + t]), np.arange(2))
    checkpoints.save({"replay": replay.state_dict()}, 0)
    replay.add(transitions([4]), np.array([0]))
    replay.truncate([0, 1])
    increment = replay.state_dict()["rows"]
    assert (increment.start, increment.stop, increment.keep_from) == ([4, 4], [5, 4], [0, 0])
    assert increment.rows["obs"].tolist() == [[4, 4]]
    checkpoints.save({"replay": replay.state_dict()}, 1)
    restored = Replay(20, 2)
    restored.load_state_dict(Checkpoints(tmp_path).load()["replay"])
    np.testing.assert_array_equal(restored.all().truncated, [True, False, False, False, True] + [False] * 3 + [True])
    assert restored.state_dict()["rows"].start == [5, 4]
    for t in range(10, 35):
        restored.add(transitions([t]), np.array([0]))
    state = restored.state_dict()
    assert (state["rows"].start, state["rows"].keep_from) == ([20, 4], [20, 0])
    assert state["truncated"] == [[], [3]]  # the other one has made room


def test_a_key_that_comes_later_is_saved_for_all(tmp_path):
    twin = Twin(tmp_path, 2, 12)
    for t in range(12):
        batch = transitions([t, 100 + t])
        if t >= 5:
            batch.info.late = Batch(value=np.arange(2, dtype=np.int8) + t)
        twin.add(batch, np.arange(2))
        twin.save()
        if t % 2:
            twin.restart()
            twin.check()
    assert twin.replay.all().info.late.value.dtype == np.int8


def test_dtypes_and_shapes_are_kept(tmp_path):
    twin = Twin(tmp_path, 2, 6)
    for t in range(5):
        batch = transitions([t, 100 + t])
        batch.obs = np.full((2, 3, 4, 4), t, np.uint8)
        batch.obs_next = np.full((2, 3, 4, 4), t + 1, np.uint8)
        batch.act = np.array([t, 2], np.int32)
        batch.rew = batch.rew.astype(np.float32)
        batch.info = Batch(half=np.ones((2, 1), np.float16), wide=np.ones(2, np.uint64), done=np.ones(2, bool))
        twin.add(batch, np.arange(2))
        twin.save()
        twin.restart()
        twin.check()
    rows = twin.replay.all()
    assert (rows.obs.dtype, rows.act.dtype, rows.rew.dtype) == (np.uint8, np.int32, np.float64)
    assert (rows.info.half.dtype, rows.info.wide.dtype) == (np.float16, np.uint64)


def test_without_info(tmp_path):
    twin = Twin(tmp_path, 1, 3)
    for t in range(4):
        batch = transitions([t])
        del batch.info
        twin.add(batch, np.arange(1))
        twin.save()
        twin.restart()
        twin.check()


def test_what_cannot_be_saved_is_named():
    for info, message in [
        ({"name": np.array(["x"], dtype=object)}, "info.name of the transitions has dtype object"),
        ({"a.b": np.zeros(1)}, "key 'info.a.b', expected none with a dot"),
    ]:
        replay = Replay(4, 1)
        batch = transitions([1])
        batch.info = Batch(info)
        replay.add(batch, np.arange(1))
        with pytest.raises((TypeError, ValueError), match=message):
            replay.state_dict()


def test_a_truncated_transition_ends_its_episode():
    replay = Replay(8, 2)
    replay.truncate([0, 1])
    assert len(replay) == 0
    replay.add(transitions([1, 5]), np.arange(2))  # 5 is terminated
    replay.truncate([0, 1])
    replay.truncate(np.array([0]))
    rows = replay.all()
    np.testing.assert_array_equal(rows.truncated, [True, False])
    np.testing.assert_array_equal(rows.terminated, [False, True])
    np.testing.assert_array_equal(rows.done, [True, True])
    assert len(replay.buffer.unfinished_index()) == 0
    _, returns, lengths, starts = replay.buffer.add(transitions([14]), buffer_ids=np.array([0]))  # 14 is truncated
    assert (returns.item(), lengths.item(), starts.item()) == (14 / 3, 1, 1)


def saved_state(folder, n_envs: int = 2, size: int = 8, *, change=lambda batch: None) -> dict:
    replay = Replay(size, n_envs)
    for t in range(6):
        batch = transitions(100 * np.arange(n_envs) + t)
        change(batch)
        replay.add(batch, np.arange(n_envs))
    Checkpoints(folder).save(replay.state_dict(), 0)
    return Checkpoints(folder).load()


def narrow(batch: Batch) -> None:
    batch.obs = batch.obs[:, :1]


def integers(batch: Batch) -> None:
    batch.act = batch.act.astype(np.int64)


def fewer(batch: Batch) -> None:
    batch.info = Batch(command=batch.info.command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_envs": 3}, "of 3 environments, expected 2"),
        ({"size": 10}, "room for 5 transitions of each environment, expected 4"),
        ({"change": narrow}, r"obs of the replay's state has shape \(8, 1\), expected \(8, 2\)"),
        ({"change": integers}, "act of the replay's state has dtype int64, expected float32"),
        ({"change": fewer}, "rows of act, done, info.command, obs, .*, expected .*info.duration"),
    ],
)
def test_the_state_of_another_replay_is_refused(tmp_path, arguments, message):
    replay = Replay(8, 2)
    for t in range(3):
        replay.add(transitions([t, 5 + t]), np.arange(2))
    before = state_of(replay)
    with pytest.raises(ValueError, match=message):
        replay.load_state_dict(saved_state(tmp_path, **arguments))
    assert state_of(replay) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("episodes"), "has the keys .*, expected episodes, generators"),
        (
            lambda state: state["rows"].update(start=[0, 0]),
            r"holds transitions \[0, 0\] to \[6, 6\], expected the last 4",
        ),
        (lambda state: state["rows"]["rows"].pop("obs_next"), "rows of .*, expected at least .*obs_next"),
        (lambda state: state["rows"].update(rows={}), "rows of nothing, expected at least"),
        (lambda state: state["rows"]["rows"].update(rew=torch.zeros(8)), "rew .*float32, expected float64"),
        (lambda state: state["rows"]["rows"].update(done=torch.zeros(8)), "done .*float32, expected bool"),
        (lambda state: state["rows"]["rows"].update(obs=torch.zeros(7)), r"obs .*\(7,\), expected \(8, ...\)"),
        (lambda state: state.update(truncated=[[1], []]), r"truncated of environment 0 is \[1\], expected 2 to 5"),
        (lambda state: state["episodes"].pop(), "numbers of episodes or generators"),
        (lambda state: state["generators"].update(keys=torch.zeros(2, 624)), "numbers of episodes or generators"),
        (
            lambda state: state["generators"].update(keys=torch.zeros(3, 624)),
            "generator 0 of the replay has other words",
        ),
        (lambda state: state["generators"]["rest"].__setitem__(1, (625, 0, 0.0)), "generator 1 .* has position 625"),
        (lambda state: state["generators"]["rest"].__setitem__(2, (-1, 0, 0.0)), "generator 2 .* has position -1"),
        (lambda state: state["generators"]["rest"].__setitem__(0, (1, 2, 0.0)), "generator 0 .* has has_gauss 2"),
    ],
)
def test_a_state_that_contradicts_itself_is_refused(tmp_path, change, message):
    state = saved_state(tmp_path)
    replay = Replay(8, 2)
    before = state_of(replay)
    change(state)
    with pytest.raises(ValueError, match=message):
        replay.load_state_dict(state)
    assert state_of(replay) == before


def test_an_empty_replay_takes_the_place_of_a_full_one(tmp_path):
    Checkpoints(tmp_path).save(Replay(8, 2, seed=5).state_dict(), 0)
    replay = Replay(8, 2)
    replay.add(transitions([1, 2]), np.arange(2))
    replay.load_state_dict(Checkpoints(tmp_path).load())
    assert state_of(replay) == state_of(Replay(8, 2, seed=5))
    replay.add(transitions([3, 4]), np.arange(2))
    check(replay.all(), [3, 4])


# ------------------------------------------------------------------ what came later in an episode


class Rows:
    """What was ever stored of one environment, in a plain list: (value, number of its episode)."""

    def __init__(self, size: int) -> None:
        self.rows: list[tuple[int, int]] = []
        self.size, self.episode = size, 0

    def add(self, value: int, done: bool) -> None:
        self.rows.append((value, self.episode))
        self.episode += done

    def truncate(self) -> None:
        """The next row begins an episode, whether the newest one ended one or not."""
        if self.rows and self.rows[-1][1] == self.episode:
            self.episode += 1

    def kept(self) -> list[tuple[int, list[int]]]:
        """Values that are there, and those that followed each in its episode."""
        kept = self.rows[-self.size :]
        return [(value, [v for v, e in kept[i + 1 :] if e == episode]) for i, (value, episode) in enumerate(kept)]


def check_futures(replay: Replay, plain: list[Rows]) -> None:
    """Of all rows that are there: how many follow, and which."""
    assert replay.n_added == sum(len(rows.rows) for rows in plain)
    expected = dict(pair for rows in plain for pair in rows.kept())
    places = replay.buffer.sample_indices(0)
    assert len(places) == len(expected)
    if not len(places):
        return
    values = replay.rows(places).rew.astype(np.int64).tolist()
    left = replay.steps_left(places)
    assert left.tolist() == [len(expected[value]) for value in values]
    for steps in range(left.max() + 1):
        found = replay.rows(replay.later(places, np.minimum(steps, left))).rew.astype(np.int64).tolist()
        followed = [[value, *expected[value]] for value in values]
        assert found == [path[min(steps, len(path) - 1)] for path in followed]


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 15))])
def test_what_came_later_in_an_episode(tmp_path, seed):
    """Episodes of all lengths, longer than a ring and as short as a step; truncated from outside; restored."""
    rng = np.random.default_rng(seed)
    n_envs, size = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    replay, plain = Replay(n_envs * size, n_envs), [Rows(size) for _ in range(n_envs)]
    checkpoints, n_saved, value = Checkpoints(tmp_path), 0, 0
    ends = rng.choice([0.05, 0.3, 0.7])
    for _ in range(60):
        ids = np.flatnonzero(rng.random(n_envs) < 0.7)
        if len(ids):
            values = np.arange(value, value + len(ids))
            value += len(ids)
            terminated, truncated = rng.random((2, len(ids))) < ends / 2
            batch = transitions(values)
            batch.rew, batch.terminated, batch.truncated = values.astype(np.float64), terminated, truncated
            replay.add(batch, ids)
            for row, i in enumerate(ids):
                plain[i].add(int(values[row]), bool(terminated[row] | truncated[row]))
        if rng.random() < 0.15:
            chosen = rng.integers(0, n_envs, 2).tolist()
            replay.truncate(chosen)
            for i in chosen:
                plain[i].truncate()
        check_futures(replay, plain)
        if rng.random() < 0.15:
            n_saved += 1
            checkpoints.save({"replay": replay.state_dict()}, n_saved)
            replay, checkpoints = Replay(n_envs * size, n_envs, seed=1), Checkpoints(tmp_path)
            if rng.random() < 0.5:  # in the place of one that has seen something else
                replay.add(transitions([4] * n_envs), np.arange(n_envs))
            replay.load_state_dict(checkpoints.load()["replay"])
            check_futures(replay, plain)
    assert n_saved
    assert len(plain[0].rows) > 3 * size


def test_nothing_follows_what_has_come_last():
    replay = Replay(8, 2)
    for _ in range(5):
        replay.add(transitions([1, 11]), np.arange(2))
        np.testing.assert_array_equal(replay.steps_left(replay.buffer.last_index), [0, 0])
    assert sorted(replay.steps_left(np.arange(4))) == [0, 1, 2, 3]
    np.testing.assert_array_equal(replay.later(np.array([3, 7]), np.array([1, 2])), [0, 5])  # in its own ring


def test_a_sample_is_what_was_added_and_where_it_lies():
    replay = Replay(24, 3, seed=4)
    for t in range(11):
        replay.add(transitions([t, 100 + t, 200 + t]), np.arange(3))
    assert replay.n_added == 33
    rows, indices = replay.sample(200)
    check(rows, rows.obs[:, 0])
    assert set(rows.obs[:, 0]) == {100 * i + t for i in range(3) for t in range(3, 11)}
    assert flat(replay.rows(indices)) == flat(rows)
    np.testing.assert_array_equal(indices // 8, rows.obs[:, 0] // 100)
    rows.obs[:] = rows.info.command[:] = 0  # is a copy
    assert (replay.all().obs[:, 0] > 0).all()
    assert (replay.all().info.command > 0).all()


def test_a_copy_knows_what_follows_by_itself():
    replay = Replay(8, 2)
    replay.add(transitions([1, 11]), np.arange(2))
    other = copy.deepcopy(replay)
    for _ in range(3):
        other.add(transitions([2, 5]), np.arange(2))  # 5 terminates
    np.testing.assert_array_equal(other.steps_left(other.buffer.sample_indices(0)), [3, 2, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(replay.steps_left(np.array([0, 4])), [0, 0])


# ------------------------------------------------------------------ the newest


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_the_newest_is_drawn_uniformly(share):
    """Of each environment: one that has gone round, one that is half full, one with a row, one with none."""
    replay, n_added = Replay(80, 4, seed=1), [47, 10, 1, 0]
    for t in range(47):
        ids = np.flatnonzero(np.array(n_added) > t)
        replay.add(transitions(100 * ids + t), ids)
    expected = set()
    for i, n in enumerate(n_added[:3]):
        kept = range(max(0, n - 20), n)
        expected |= {100.0 * i + t for t in kept[len(kept) - max(1, round(share * len(kept))) :]}
    places = replay.newest(8000, share)
    values, counts = np.unique(replay.rows(places).obs[:, 0], return_counts=True)
    assert set(values) == expected
    mean = 8000 / len(expected)
    assert np.abs(counts - mean).max() < 5 * mean**0.5


def test_of_little_there_is_the_newest_one():
    replay = Replay(20, 1)
    for t in range(15):
        replay.add(transitions([t]), np.array([0]))
        assert set(replay.rows(replay.newest(5, 1e-3)).obs[:, 0]) == {t}


def test_draws_of_the_newest_go_on_after_a_restart(tmp_path):
    replay, restored = Replay(20, 2, seed=3), Replay(20, 2)
    for t in range(15):
        replay.add(transitions([t, 100 + t]), np.arange(2))
    first = replay.newest(50, 0.5)
    Checkpoints(tmp_path).save({"replay": replay.state_dict()}, 0)
    restored.load_state_dict(Checkpoints(tmp_path).load()["replay"])
    second = replay.newest(50, 0.5)
    np.testing.assert_array_equal(restored.newest(50, 0.5), second)
    assert (first != second).any()
