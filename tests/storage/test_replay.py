"""Replay: its rows and their order, samples, saved states, and refused values."""

import copy
import itertools
import os

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, hypergeom
from tianshou.data import Batch, VectorReplayBuffer

from layeredrl.checks import require_finite_rows
from layeredrl.storage import Checkpoints
from layeredrl.storage.replay import Replay
from tests.recording import stored


def transitions(values):
    """One transition for each of the values, which appear in all of its parts."""
    values = np.asarray(values, np.float32)
    return Batch(
        obs=np.repeat(values[:, None], 2, 1),
        act=-values[:, None],
        rew=values.astype(np.float64) / 3,
        terminated=values % 5 == 0,
        truncated=values % 7 == 0,
        obs_next=np.repeat(values[:, None] + 1, 2, 1),
        info=Batch(duration=values.astype(np.int64), command=10 * values[:, None]),
    )


def filled(n_steps, size=8, n_envs=2, **kwargs):
    """A replay with the values 100 * environment + step."""
    replay = Replay(size, n_envs, **kwargs)
    for t in range(n_steps):
        replay.add(transitions(100 * np.arange(n_envs) + t), np.arange(n_envs))
    return replay


def check(rows, values):
    expected = transitions(values)
    for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next"):
        np.testing.assert_array_equal(rows[key], expected[key], err_msg=key)
    np.testing.assert_array_equal(rows.info.duration, expected.info.duration)
    np.testing.assert_array_equal(rows.info.command, expected.info.command)


def test_rows_are_stored_by_environment_in_the_order_of_time():
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


def test_the_newest_of_an_environment_overwrite_its_oldest():
    replay = filled(3)
    for t in range(3, 11):
        replay.add(transitions([t]), np.array([0]))
    assert len(replay) == 4 + 3
    check(replay.all(), [7, 8, 9, 10, 100, 101, 102])


def test_floats_are_stored_in_single_precision_but_rewards_in_double():
    replay = Replay(8, 2)
    double = transitions([1 / 3, 2 / 3])
    for key in ("obs", "act", "obs_next"):
        double[key] = double[key].astype(np.float64)
    replay.add(double, np.arange(2))
    rows = replay.all()
    assert [rows[key].dtype.name for key in ("obs", "act", "obs_next", "rew")] == [*["float32"] * 3, "float64"]
    replay, discrete = Replay(8, 2), transitions([3, 4])
    discrete.act = discrete.act.astype(np.int64)
    replay.add(discrete, np.arange(2))
    assert replay.all().act.dtype == np.int64
    np.testing.assert_array_equal(replay.all().act, [[-3], [-4]])


@pytest.mark.parametrize("key", ["obs", "act", "rew", "obs_next"])
def test_non_finite_numbers_are_refused(key):
    replay, env_ids = Replay(8, 4), np.array([0, 2, 3])
    for value in (np.nan, np.inf, -np.inf):
        batch = transitions([1, 2, 3])
        batch[key][1] = value
        with pytest.raises(ValueError, match=rf"{key} of environment 2 is .*{value}.*expected finite numbers"):
            replay.add(batch, env_ids)
    assert len(replay) == 0
    replay.add(transitions([1, 2, 3]), env_ids)
    check(replay.all(), [1, 2, 3])


@pytest.mark.parametrize("key", ["obs", "act", "obs_next"])
def test_numbers_beyond_single_precision_are_refused(key):
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


def test_sums_do_not_decide_what_is_finite():
    with pytest.raises(ValueError, match="obs of environment 5 is"):
        require_finite_rows("obs", np.array([[np.inf, -np.inf]], np.float32), np.array([5]))
    require_finite_rows("obs", np.full((3, 4), 3e38, np.float32), np.arange(3))
    replay = Replay(8, 2)
    replay.add(transitions([9e17, -9e17]), np.arange(2))
    check(replay.all(), [9e17, -9e17])


def test_sizes():
    with pytest.raises(ValueError, match="size is 2, expected at least one transition for each of 3"):
        Replay(2, 3)
    with pytest.raises(ValueError, match="empty"):
        Replay(8, 2).all()
    for size, n_envs in [(8, 2), (7, 2), (10, 3), (3, 3)]:
        assert len(Replay(size, n_envs)) == 0
        assert size - n_envs < len(filled(2 * size, size, n_envs)) <= size


def test_sampling_is_uniform_and_follows_the_seed():
    def draws(seed):
        replay = filled(10, 40, 4, seed=seed)
        return np.concatenate([replay.buffer.sample(50)[0].obs[:, 0] for _ in range(40)])

    first = draws(0)
    np.testing.assert_array_equal(first, draws(0))
    assert not np.array_equal(first, draws(1))
    counts = np.array([np.sum(first == value) for value in np.add.outer([0, 100, 200, 300], np.arange(10)).ravel()])
    assert counts.sum() == 2000
    assert np.sum((counts - 50) ** 2 / 50) < 73  # chi-squared with 39 degrees of freedom exceeds it once in 1000
    by_env = [first[first // 100 == i][:300] % 100 for i in range(4)]
    n = min(map(len, by_env))
    for i, j in itertools.combinations(range(4), 2):
        assert np.mean(by_env[i][:n] == by_env[j][:n]) < 0.2  # rings with equal seeds agree throughout


@pytest.mark.parametrize("lengths", [[10] * 16, [40, 3, 3, 30, 1, 5, 20, 38]])
def test_each_part_of_a_sample_mixes_all_environments(lengths):
    """A part that is drawn without replacement from the sample has as many environments, on average."""
    n_envs, n, n_parts = len(lengths), 256, 8
    replay = Replay(40 * n_envs, n_envs, seed=1)
    for t in range(40):
        ids = np.flatnonzero(np.array(lengths) > t)
        replay.add(transitions(100 * ids + t), ids)
    n_draws, found, expected, drawn = 60, np.zeros(n_parts), 0.0, []
    for _ in range(n_draws):
        rows, indices = replay.sample(n)
        env = indices // 40
        np.testing.assert_array_equal(rows.obs[:, 0] // 100, env)
        found += [len(np.unique(part)) for part in np.split(env, n_parts)]
        counts = np.bincount(env, minlength=n_envs)
        expected += (1 - hypergeom(n, counts, n // n_parts).pmf(0)).sum()
        drawn.append(rows.obs[:, 0])
    np.testing.assert_allclose(found / n_draws, expected / n_draws, atol=0.6)  # standard error 0.15; by ring, 2 of 16
    values = np.concatenate([100 * i + np.arange(length) for i, length in enumerate(lengths)])
    counts = (np.concatenate(drawn)[:, None] == values).sum(0)
    assert chisquare(counts).pvalue > 1e-3


class OneByOne(VectorReplayBuffer):
    """tianshou's own, without its compilation of functions, which takes seconds."""

    def _compile(self):
        pass


def test_rows_are_added_as_by_tianshou_one_ring_at_a_time():
    """Indices, returns, lengths and first rows of episodes, through several rounds of rings of 7."""
    rng = np.random.default_rng(0)
    ours, theirs = Replay(28, 4).buffer, OneByOne(28, 4)
    for t in range(60):
        ids = np.arange(4) if t % 3 == 0 else np.flatnonzero(rng.random(4) < 0.6)
        if len(ids):
            batch = transitions(rng.integers(0, 100, len(ids)))
            for mine, other in zip(
                ours.add(copy.deepcopy(batch), ids), theirs.add(copy.deepcopy(batch), ids), strict=True
            ):
                np.testing.assert_array_equal(mine, other)
            assert flat(ours._meta) == flat(theirs._meta)
            np.testing.assert_array_equal(ours.unfinished_index(), theirs.unfinished_index())
            np.testing.assert_array_equal(ours.last_index, theirs.last_index)
            assert len(ours) == len(theirs)


def state_of(replay: Replay) -> dict:
    """The whole state of tianshou's buffers, as plain values."""

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
    """A replay that is saved and restored repeatedly, with a list of all calls."""

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
        """In the list the transition is truncated from the start."""
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
        """Restore as a new process would."""
        self.checkpoints = Checkpoints(self.checkpoints.folder, keep=2)
        self.replay = Replay(self.size, self.n_envs, seed=100 + self.n)
        self.replay.load_state_dict(self.checkpoints.load()["agent"]["replay"])

    def check(self) -> None:
        """Compare with an uninterrupted replay."""
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
    """Syncing takes time and only matters when the machine loses its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 15))])
def test_a_restored_replay_equals_an_uninterrupted_one(tmp_path, seed):
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
            twin.replay.state_dict()  # a save that failed
        if rng.random() < 0.3:
            twin.save()
            if rng.random() < 0.5:
                twin.truncate(rng.integers(0, n_envs, 2).tolist())  # of saved transitions
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
    replay, checkpoints = filled(4, 20), Checkpoints(tmp_path)
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
    assert state["truncated"] == [[], [3]]  # the other truncated transition is overwritten


def with_a_late_key(batch, t):
    if t >= 5:
        batch.info.late = Batch(value=np.arange(2, dtype=np.int8) + t)


def with_unusual_dtypes(batch, t):
    batch.obs = np.full((2, 3, 4, 4), t, np.uint8)
    batch.obs_next = np.full((2, 3, 4, 4), t + 1, np.uint8)
    batch.act = np.array([t, 2], np.int32)
    batch.rew = batch.rew.astype(np.float32)
    batch.info = Batch(half=np.ones((2, 1), np.float16), wide=np.ones(2, np.uint64), done=np.ones(2, bool))


def without_info(batch, t):
    del batch.info


@pytest.mark.parametrize(
    ("change", "dtypes"),
    [
        (with_a_late_key, {"info.late.value": "int8"}),
        (with_unusual_dtypes, {"obs": "uint8", "act": "int32", "rew": "float64", "info.half": "float16"}),
        (without_info, {}),
    ],
)
def test_columns_survive_restarts(tmp_path, change, dtypes):
    twin = Twin(tmp_path, 2, 12)
    for t in range(12):
        batch = transitions([t, 100 + t])
        change(batch, t)
        twin.add(batch, np.arange(2))
        twin.save()
        if t % 2:
            twin.restart()
            twin.check()
    columns = flat(twin.replay.all())
    assert {name: columns[name][0] for name in dtypes} == dtypes


def test_keys_that_cannot_be_saved_are_named():
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_envs": 3}, "of 3 environments, expected 2"),
        ({"size": 10}, "room for 5 transitions of each environment, expected 4"),
        (
            {"change": lambda batch: batch.update(obs=batch.obs[:, :1])},
            r"obs of the replay's state has shape \(8, 1\), expected \(8, 2\)",
        ),
        (
            {"change": lambda batch: batch.update(act=batch.act.astype(np.int64))},
            "act of the replay's state has dtype int64, expected float32",
        ),
        (
            {"change": lambda batch: batch.info.pop("duration")},
            "rows of act, done, info.command, obs, .*, expected .*info.duration",
        ),
    ],
)
def test_the_state_of_another_replay_is_refused(tmp_path, arguments, message):
    replay = filled(3)
    before = state_of(replay)
    with pytest.raises(ValueError, match=message):
        replay.load_state_dict(saved_state(tmp_path, **arguments))
    assert state_of(replay) == before


def test_inconsistent_states_are_refused(tmp_path):
    whole, replay = saved_state(tmp_path), Replay(8, 2)
    before = state_of(replay)
    for path, value, message in [
        (["episodes"], None, "has the keys .*, expected episodes, generators"),
        (["rows", "start"], [0, 0], r"holds transitions \[0, 0\] to \[6, 6\], expected the last 4"),
        (["rows", "rows", "obs_next"], None, "rows of .*, expected at least .*obs_next"),
        (["rows", "rows"], {}, "rows of nothing, expected at least"),
        (["rows", "rows", "rew"], torch.zeros(8), "rew .*float32, expected float64"),
        (["rows", "rows", "done"], torch.zeros(8), "done .*float32, expected bool"),
        (["rows", "rows", "obs"], torch.zeros(7), r"obs .*\(7,\), expected \(8, ...\)"),
        (["truncated"], [[1], []], r"truncated of environment 0 is \[1\], expected 2 to 5"),
        (["episodes"], whole["episodes"][:1], "numbers of episodes or generators"),
        (["generators", "keys"], torch.zeros(2, 624), "numbers of episodes or generators"),
        (["generators", "keys"], torch.zeros(3, 624), "generator 0 of the replay has other words"),
        (["generators", "rest", 1], (625, 0, 0.0), "generator 1 .* has position 625"),
        (["generators", "rest", 2], (-1, 0, 0.0), "generator 2 .* has position -1"),
        (["generators", "rest", 0], (1, 2, 0.0), "generator 0 .* has has_gauss 2"),
    ]:
        state = copy.deepcopy(whole)
        part = state
        for key in path[:-1]:
            part = part[key]
        if value is None:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        with pytest.raises(ValueError, match=message):
            replay.load_state_dict(state)
        assert state_of(replay) == before


def test_an_empty_state_replaces_a_full_replay(tmp_path):
    Checkpoints(tmp_path).save(Replay(8, 2, seed=5).state_dict(), 0)
    replay = Replay(8, 2)
    replay.add(transitions([1, 2]), np.arange(2))
    replay.load_state_dict(Checkpoints(tmp_path).load())
    assert state_of(replay) == state_of(Replay(8, 2, seed=5))
    replay.add(transitions([3, 4]), np.arange(2))
    check(replay.all(), [3, 4])


class Rows:
    """All rows ever stored of one environment, in a plain list: (value, number of its episode)."""

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
        """Stored values, each with the later ones of its episode."""
        kept = self.rows[-self.size :]
        return [(value, [v for v, e in kept[i + 1 :] if e == episode]) for i, (value, episode) in enumerate(kept)]


def check_futures(replay: Replay, plain: list[Rows]) -> None:
    """Compare the later rows of all stored rows with the lists."""
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


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 15))])
def test_later_rows_of_an_episode(tmp_path, seed):
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
            if rng.random() < 0.5:  # instead of one with other rows
                replay.add(transitions([4] * n_envs), np.arange(n_envs))
            replay.load_state_dict(checkpoints.load()["replay"])
            check_futures(replay, plain)
    assert n_saved
    assert len(plain[0].rows) > 3 * size


def test_no_row_follows_the_newest():
    replay = Replay(8, 2)
    for _ in range(5):
        replay.add(transitions([1, 11]), np.arange(2))
        np.testing.assert_array_equal(replay.steps_left(replay.buffer.last_index), [0, 0])
    assert sorted(replay.steps_left(np.arange(4))) == [0, 1, 2, 3]
    np.testing.assert_array_equal(replay.later(np.array([3, 7]), np.array([1, 2])), [0, 5])  # in its own ring


def test_samples_are_copies_of_the_rows_at_their_indices():
    replay = filled(11, 24, 3, seed=4)
    assert replay.n_added == 33
    rows, indices = replay.sample(200)
    check(rows, rows.obs[:, 0])
    assert set(rows.obs[:, 0]) == {100 * i + t for i in range(3) for t in range(3, 11)}
    assert flat(replay.rows(indices)) == flat(rows)
    np.testing.assert_array_equal(indices // 8, rows.obs[:, 0] // 100)
    rows.obs[:] = rows.info.command[:] = 0
    assert (replay.all().obs[:, 0] > 0).all()
    assert (replay.all().info.command > 0).all()


def test_a_copy_tracks_its_own_episodes():
    replay = Replay(8, 2)
    replay.add(transitions([1, 11]), np.arange(2))
    other = copy.deepcopy(replay)
    for _ in range(3):
        other.add(transitions([2, 5]), np.arange(2))  # 5 terminates
    np.testing.assert_array_equal(other.steps_left(other.buffer.sample_indices(0)), [3, 2, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(replay.steps_left(np.array([0, 4])), [0, 0])


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_the_newest_is_drawn_uniformly(share):
    """One environment has a full ring, one a half full one, one a single row, one none."""
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


def test_the_smallest_share_is_the_newest_row():
    replay = Replay(20, 1)
    for t in range(15):
        replay.add(transitions([t]), np.array([0]))
        assert set(replay.rows(replay.newest(5, 1e-3)).obs[:, 0]) == {t}


def test_draws_of_the_newest_continue_after_a_restart(tmp_path):
    replay, restored = filled(15, 20, seed=3), Replay(20, 2)
    first = replay.newest(50, 0.5)
    Checkpoints(tmp_path).save({"replay": replay.state_dict()}, 0)
    restored.load_state_dict(Checkpoints(tmp_path).load()["replay"])
    second = replay.newest(50, 0.5)
    np.testing.assert_array_equal(restored.newest(50, 0.5), second)
    assert (first != second).any()


def test_sequences_stay_within_an_episode_and_begin_anywhere():
    replay = filled(30, size=22, n_envs=2, seed=3)  # wrapped; values that are multiples of 5 or 7 end episodes
    rows, valid = replay.sequences(4000, 4)
    values = rows.obs[..., 0].astype(int)
    assert rows.obs.shape == (4, 4000, 2)
    kept = np.concatenate([np.arange(19, 30), 100 + np.arange(19, 30)])
    counts = np.array([(values[0] == value).sum() for value in kept])
    assert counts.sum() == 4000
    assert chisquare(counts).pvalue > 1e-3
    for i in range(4000):
        expected = [values[0, i]]
        while len(expected) < 4 and expected[-1] % 5 and expected[-1] % 7 and expected[-1] % 100 != 29:
            expected.append(expected[-1] + 1)
        assert valid[:, i].tolist() == [t < len(expected) for t in range(4)]
        assert values[:, i].tolist() == expected + expected[-1:] * (4 - len(expected))
