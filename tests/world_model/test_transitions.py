"""Transitions read in place from a replay, against `Replay.all`; and a learner that fits from them."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.models import FitConfig
from layeredrl.models.config import EnsembleConfig
from layeredrl.models.normalization import Moments
from layeredrl.storage import Checkpoints, Replay, TensorReplay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, ModelLearningConfig, WorldModel, WorldModelLearner, transitions
from layeredrl.world_model.transitions import ReplayTransitions, TensorTransitions

CPU = torch.device("cpu")
REPLAYS = [pytest.param(Replay, id="host"), pytest.param(partial(TensorReplay, device=CPU), id="device")]


def add(replay, n, env_ids, seed=0, duration=1):
    """Add n random transitions for each of some environments; episodes end now and then."""
    rng, e = np.random.default_rng(seed), len(env_ids)
    for _ in range(n):
        obs = rng.standard_normal((e, 3), np.float32)
        row = Batch(
            obs=obs,
            act=rng.uniform(-1, 1, (e, 1)).astype(np.float32),
            rew=rng.standard_normal(e),
            terminated=rng.random(e) < 0.05,
            truncated=np.zeros(e, bool),
            obs_next=obs + 0.1,
            info=Batch(duration=rng.integers(1, duration + 1, e)),
        )
        if isinstance(replay, TensorReplay):
            replay.add(row.to_torch(), torch.tensor(env_ids))
        else:
            replay.add(row, np.array(env_ids))


def expected(replay, duration=1):
    rows = replay.all().to_numpy()
    rows = rows[(rows.info.duration == duration) | rows.terminated]
    return {
        "obs": rows.obs,
        "obs_next": rows.obs_next,
        "act": rows.act,
        "rew": rows.rew.astype(np.float32),
        "terminated": rows.terminated,
        "last": rows.terminated | rows.truncated,
    }


def moments_of(rows):
    return {"obs": Moments.of(rows.obs), "last": Moments.of(rows.last.float().unsqueeze(-1))}


def assert_as_in(replay, found, duration=1):
    rows = expected(replay, duration)
    assert len(found) == len(rows["obs"])
    taken = found.take(torch.arange(len(found)))
    for key, value in rows.items():
        np.testing.assert_array_equal(taken[key].numpy(), value, err_msg=key)
    np.testing.assert_array_equal(found.terminated().numpy(), np.flatnonzero(rows["terminated"]))
    index = torch.randint(len(found), (3, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.take(index).obs, taken.obs[index])
    for name, moments in found.moments(moments_of).items():
        values = rows[name].reshape(len(found), -1).astype(float)
        assert moments.n_rows == len(found)
        np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(moments.variance, values.var(0), rtol=1e-9)


@pytest.fixture(params=["in place", "copied"])
def make(request, monkeypatch):
    """Make transitions that are read in place, or copied as for another device; in small blocks."""
    monkeypatch.setattr(transitions, "CHUNK", 16)
    monkeypatch.setattr(transitions, "SMALL", 4)
    if request.param == "copied":
        monkeypatch.setattr(ReplayTransitions, "_in_place", False)
    return ReplayTransitions


@pytest.mark.parametrize("n_envs", [1, 3])
def test_transitions_are_those_of_the_replay_also_when_rings_wrap(make, n_envs):
    replay = Replay(30 * n_envs, n_envs)
    found = make(replay, 1, CPU)
    for i, n in enumerate((2, 5, 1, 20, 17, 3, 40)):
        add(replay, n, range(n_envs), seed=i)
        if n_envs > 1:
            add(replay, 3, [1], seed=100 + i)  # rings of different lengths
        found.update()
        assert_as_in(replay, found)


def test_what_was_cut_short_is_left_out(make):
    replay = Replay(80, 2)
    found = make(replay, 3, CPU)
    for i in range(4):
        add(replay, 15, range(2), seed=i, duration=3)
        found.update()
        assert_as_in(replay, found, 3)


def test_a_row_that_is_truncated_later_is_read_again(make):
    replay = Replay(50, 1)
    found = make(replay, 1, CPU)
    add(replay, 20, [0])
    replay.buffer.done[19] = replay.buffer.terminated[19] = False
    found.update()
    assert not found.take(torch.tensor([19])).last
    found.moments(moments_of)
    replay.truncate([0])
    found.update()
    assert found.take(torch.tensor([19])).last
    assert_as_in(replay, found)


def test_a_replay_that_loads_a_state_is_read_anew(make):
    first, second = Replay(40, 2), Replay(40, 2)
    add(first, 25, range(2))
    add(second, 25, range(2), seed=9)
    found = make(second, 1, CPU)
    found.update()
    found.moments(moments_of)
    state = first.state_dict()
    rows = state["rows"]
    second.load_state_dict({**state, "rows": {"rows": rows.rows, "start": rows.start, "stop": rows.stop}})
    found.update()
    assert_as_in(second, found)


def test_only_blocks_that_changed_are_computed_again(make):
    replay, computed = Replay(200, 1), []
    found = make(replay, 1, CPU)

    def of(rows):
        computed.append(len(rows.obs))
        return moments_of(rows)

    add(replay, 100, [0])
    found.update()
    found.moments(of)
    assert sum(computed) == 100
    computed.clear()
    add(replay, 2, [0], seed=1)
    found.update()
    found.moments(of)
    assert sum(computed) <= 16


def assert_as_anew(found):
    """The same moments, bit for bit, as those of all rows read for the first time."""
    anew = TensorTransitions(found.replay, found.duration)
    anew.update()
    for kept, computed in zip(found.moments(moments_of).values(), anew.moments(moments_of).values(), strict=True):
        assert kept.n_rows == computed.n_rows
        assert torch.equal(kept.mean, computed.mean)
        assert torch.equal(kept.variance, computed.variance)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(transitions, "CHUNK", 16)


@pytest.mark.parametrize("duration", [1, 3])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_transitions_on_a_device_are_those_of_the_replay_also_when_the_ring_wraps(small_blocks, n_envs, duration):
    replay = TensorReplay(75 * n_envs, n_envs, device=CPU)  # no multiple of a block
    found = TensorTransitions(replay, duration)
    for i, n in enumerate((9, 5, 1, 20, 17, 30, 3, 40, 1, 76, 2)):
        add(replay, n, range(n_envs), seed=i, duration=duration)
        if n_envs > 1 and i > 5:
            add(replay, 3, [1], seed=100 + i, duration=duration)  # not all environments together
        found.update()
        assert_as_in(replay, found, duration)
        replay.truncate(torch.arange(n_envs) % 2 == i % 2)  # marks rows that have been read
        found.update()
        assert_as_in(replay, found, duration)
        assert_as_anew(found)


def test_a_mark_in_a_block_that_is_known_is_read(small_blocks):
    replay = TensorReplay(200, 2, device=CPU)
    found = TensorTransitions(replay, 1)
    add(replay, 5, range(2))
    replay._flags()[:] = replay.ring.column("integers")[:, replay._spans["terminated"][1]] = 0
    add(replay, 60, [0])  # the newest transition of the other environment is in the first of many blocks
    found.update()
    found.moments(moments_of)
    replay.truncate(torch.tensor([False, True]))
    found.update()
    assert found.take(torch.tensor([9])).last
    assert_as_in(replay, found)


@pytest.mark.parametrize("duration", [1, 3])
def test_a_replay_on_a_device_that_loads_a_state_is_read_anew(small_blocks, duration, tmp_path):
    first, second = (TensorReplay(150, 2, device=CPU) for _ in range(2))
    add(first, 100, range(2), duration=duration)
    add(second, 100, range(2), seed=9, duration=duration)
    found = TensorTransitions(second, duration)
    found.update()
    found.moments(moments_of)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(first.state_dict(), 1)
    first.truncate(torch.tensor([True, False]))  # after it was saved
    checkpoints.save(first.state_dict(), 2)
    second.load_state_dict(checkpoints.load(CPU))
    resumed, going_on = found, TensorTransitions(first, duration)
    for seed in (1, 2, 3):
        for replay, rows in ((first, going_on), (second, resumed)):
            rows.update()
            assert_as_in(replay, rows, duration)
            assert_as_anew(rows)
        for name, moments in going_on.moments(moments_of).items():
            assert torch.equal(moments.mean, resumed.moments(moments_of)[name].mean)
            assert torch.equal(moments.variance, resumed.moments(moments_of)[name].variance)
        for replay in (first, second):
            add(replay, 13, range(2), seed=seed, duration=duration)


def make_learner(config, seed=0):
    torch.manual_seed(seed)
    task = TaskSpec(spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (1,), np.float32))
    encoder = Encoder(task)
    model = EnsembleConfig(n_models=2, hidden=(8,))
    dynamics = model.build(encoder.state_space, encoder.context_space, task.action_space, CPU)
    return WorldModelLearner(WorldModel(encoder, dynamics, task), config, seed=seed)


@pytest.mark.parametrize("make_replay", REPLAYS)
@pytest.mark.parametrize("max_steps", [None, 2])
def test_a_fit_from_a_replay_is_one_from_a_batch(max_steps, make_replay):
    fitted = []
    for in_place in (True, False):
        replay = make_replay(100, 2)
        add(replay, 30, range(2))
        learner = make_learner(ModelLearningConfig(fit=FitConfig(epochs=2, batch_size=8, max_steps=max_steps)))
        data = Batch({key: torch.as_tensor(value) for key, value in expected(replay).items()})
        metrics = learner.fit(learner.transitions(replay) if in_place else data)
        assert metrics["model/transitions"] == 60
        fitted.append((metrics, learner.world.state_dict()))
    assert fitted[0][0] == fitted[1][0]
    for key, value in fitted[0][1].items():
        assert torch.equal(value, fitted[1][1][key]), key


@pytest.mark.parametrize("make_replay", REPLAYS)
@pytest.mark.parametrize(("n_envs", "duration"), [(1, 1), (4, 1), (2, 3)])
def test_a_bounded_fit_reads_no_more_rows_of_a_larger_replay(monkeypatch, n_envs, duration, make_replay):
    """Rows that are read, per fit, after the first: independent of the replay's length, also when rings wrap."""
    monkeypatch.setattr(transitions, "CHUNK", 32)
    monkeypatch.setattr(transitions, "SMALL", 4)
    read = {}
    for n in (100, 1000, 1300):
        replay = make_replay(1200, n_envs)
        add(replay, n // n_envs, range(n_envs), duration=duration)
        learner = make_learner(ModelLearningConfig(fit=FitConfig(max_steps=3, batch_size=4, holdout=0.2)))
        learner.n_total_env_steps = n
        learner.fit(learner.transitions(replay, duration))
        add(replay, 1, range(n_envs), seed=1, duration=duration)
        rows, counted = learner.transitions(replay, duration), []
        name = "take" if isinstance(replay, TensorReplay) else "_read"
        original = getattr(rows, name)
        monkeypatch.setattr(rows, name, lambda slots, f=original, c=counted: c.append(slots.numel()) or f(slots))
        learner.fit(rows)
        read[n] = sum(counted)
    # A ring on a device that has wrapped holds a part of a block at each end; another block may have become full.
    assert max(read.values()) <= read[100] + (96 if isinstance(replay, TensorReplay) else 32)
