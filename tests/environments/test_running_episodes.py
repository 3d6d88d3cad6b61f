"""Replays of running episodes against environments that keep diaries."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from layeredrl.environments import running_episodes
from layeredrl.environments.running_episodes import RunningEpisodes
from tests.experiments.tasks import Drift
from tests.recording import DiaryEnv

IDS = np.arange(3)


class Walk(Drift):
    """Ends where the point is far out; a little noise at every step, by the episode's seed."""

    def step(self, action):
        outcome = super().step(action)
        self._point += self.np_random.normal(size=2) * 0.01
        return self._observe(), *outcome[1:]


def walks(n_envs=3, kind=Walk):
    return SyncVectorEnv([kind] * n_envs, autoreset_mode=AutoresetMode.DISABLED)


def play(env, lengths, seed=0):
    """Running episodes of some lengths, one for each environment, and their last observations."""
    rng = np.random.default_rng(seed)
    running = RunningEpisodes(len(lengths))
    seeds = rng.integers(2**31, size=len(lengths))
    ids = np.arange(len(lengths))
    running.begin(ids, seeds)
    ends = np.zeros((len(lengths), 2))
    for i, length in enumerate(lengths):  # each in an environment of its own
        alone = env.env_fns[i]()
        ends[i], _ = alone.reset(seed=int(seeds[i]))
        for _ in range(length):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            running.add(ids[i : i + 1], action[None])
            ends[i], *_ = alone.step(action)
    return running, ends


@pytest.mark.parametrize("lengths", [(5,), (0,), (0, 0), (4, 4, 4), (7, 0, 3), (0, 1, 12), (1, 12, 11), (2, 2, 0)])
def test_environments_return_to_their_states(lengths):
    env = walks(len(lengths))
    running, ends = play(env, lengths)
    obs, failed = running.play_again(env, lambda actions: actions)
    np.testing.assert_array_equal(obs, ends)
    assert not failed.any()
    # They continue alike, because the generator of the noise has the same state.
    again = walks(len(lengths))
    running.play_again(again, lambda actions: actions)
    step = np.full((len(lengths), 2), 0.1, np.float32)
    np.testing.assert_array_equal(env.step(step)[0], again.step(step)[0])


def test_a_new_episode_replaces_the_old_one():
    running = RunningEpisodes(2)
    running.begin(IDS[:2], np.array([3, 4]))
    running.add(IDS[:2], np.ones((2, 1), np.float32))
    running.begin(IDS[1:2], np.array([5]))
    running.add(IDS[:1], np.zeros((1, 1), np.float32))
    assert running.seeds.tolist() == [3, 5]
    assert [len(actions) for actions in running.actions] == [2, 0]


def test_episodes_with_more_steps_than_are_kept_cannot_be_replayed(monkeypatch):
    """The memory does not grow with an episode without an end; the others are replayed."""
    monkeypatch.setattr(running_episodes, "MAX_STEPS", 100)
    running = RunningEpisodes(3)
    running.begin(IDS, IDS + 3)
    for t in range(1000):
        if t % 100 == 95:
            running.begin(IDS[:2], IDS[:2] + t)
        running.add(IDS, np.full((3, 1), t, np.float32))
        assert running._actions.size <= 300
    assert running.too_long.tolist() == [False, False, True]
    assert [len(actions) for actions in running.actions] == [5, 5, 0]
    np.testing.assert_array_equal(running.actions[1], np.arange(995, 1000)[:, None])
    restored = RunningEpisodes(3)
    restored.load_state_dict(running.state_dict())
    env = SyncVectorEnv([partial(DiaryEnv, 10**6)] * 3, autoreset_mode=AutoresetMode.DISABLED)
    obs, failed = restored.play_again(env, lambda actions: actions)
    assert failed.tolist() == [False, False, True]
    assert obs[:, 0].tolist() == [5, 5, 0]
    running.begin(IDS, IDS)
    assert not running.too_long.any()


def test_an_episode_that_ends_early_is_reported():
    """These count to 3, 6 and 9 steps; the first two are said to be in their fifth."""
    env = SyncVectorEnv([partial(DiaryEnv, n) for n in (3, 6, 9)], autoreset_mode=AutoresetMode.DISABLED)
    for lengths, expected in [
        ((5, 5, 5), [True, False, False]),
        ((3, 5, 8), [True, False, False]),
        ((2, 6, 9), [False, True, True]),
        ((0, 0, 8), [False, False, False]),
    ]:
        running = RunningEpisodes(3)
        running.begin(IDS, IDS)
        for i, length in enumerate(lengths):
            for _ in range(length):
                running.add(IDS[i : i + 1], np.zeros((1, 1), np.float32))
        _, failed = running.play_again(env, lambda actions: actions)
        assert failed.tolist() == expected
        env.step(np.zeros((3, 1), np.float32))  # all of them are in the midst of an episode


def test_a_state_restores_another_object():
    running, ends = play(walks(), (4, 0, 9))
    state = running.state_dict()
    other = RunningEpisodes(3)
    other.load_state_dict(state)
    running.begin(IDS, IDS)  # changes nothing in the state or in the other one
    obs, failed = other.play_again(walks(), lambda actions: actions)
    np.testing.assert_array_equal(obs, ends)
    assert not failed.any()
    assert all(isinstance(tensor, torch.Tensor) for tensor in [state["seeds"], *state["actions"]])


def test_a_state_of_other_environments_is_refused():
    with pytest.raises(ValueError, match="episodes of 3 environments, expected 2"):
        RunningEpisodes(2).load_state_dict(RunningEpisodes(3).state_dict())
