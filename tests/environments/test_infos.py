"""Infos of several environments: entries of any kind, and each environment's success by itself."""

import pickle
import threading
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from layeredrl.collector import Collector
from layeredrl.environments import EnvPool
from layeredrl.environments.infos import add_info, successes
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.task import TaskSpec


class Unreadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return pickle.loads, (b"",)


VALUES = [
    1.0,
    np.zeros((2, 3)),
    np.zeros((1, 3)),
    "fell",
    {"fell": True},
    {"fell": {"deep": [1]}},
    None,
    10**30,
    True,
    [1, [2]],
    np.array("text"),
    threading.Lock(),
    Unreadable(),
    np.float32(2),
    {},
]
"""Kinds of values of one entry."""


def collate(values):
    infos = {}
    for i, value in enumerate(values):
        infos = infos if value is Ellipsis else add_info(infos, {"x": value}, i, len(values))
    return infos


def test_uniform_infos_are_those_of_gymnasium():
    env = SyncVectorEnv([partial(gym.make, "Pendulum-v1")] * 3)
    rows = [
        {"a": 1.5, "b": np.ones(2, np.float32), "c": {"d": 3}, "e": "x", "f": True, "final_obs": np.zeros(2)},
        {},
        {"a": 2.5, "b": np.zeros(2, np.float32), "c": {"d": 4, "g": np.int8(1)}, "e": None, "f": False},
    ]
    ours, theirs = {}, {}
    for i, row in enumerate(rows):
        ours, theirs = add_info(ours, row, i, 3), env._add_info(theirs, row, i)

    def check(mine, other):
        assert mine.keys() == other.keys()
        for key, value in other.items():
            if isinstance(value, dict):
                check(mine[key], value)
            else:
                assert (mine[key].dtype, repr(mine[key])) == (value.dtype, repr(value))

    check(ours, theirs)


def test_values_of_any_two_kinds_are_kept_unchanged():
    for first in VALUES:
        for second in VALUES:
            infos = collate([first, ..., second])
            column, mask = infos["x"], infos["_x"]
            assert mask.tolist() == [True, False, True]
            if isinstance(column, dict):
                assert isinstance(first, dict)
                assert isinstance(second, dict)
                continue
            if column.dtype == object:
                assert column[1] is None
            for value, kept in ((first, column[0]), (second, column[2])):
                assert type(kept) is type(value) or isinstance(kept, np.generic | np.ndarray)
                assert kept is value or np.array_equal(kept, value)


class Talker(gym.Env):
    """Ends after 4 steps; its info's entry is of another kind at every step and reset, or a verdict."""

    observation_space, action_space = spaces.Box(0.0, 9.0, (1,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, i=0, verdicts=None):
        self.i, self.verdicts, self.n_calls, self.t = i, verdicts, 3 * i, 0

    def _info(self):
        self.n_calls += 1
        if self.verdicts is not None:
            return {"is_success": self.verdicts[self.t]} if self.t in self.verdicts else {}
        value = VALUES[self.n_calls % len(VALUES)]
        return {"x": value, "_x": "mine", "fault": [True] * 9, "fault_message": ["no fault"] * 9, "final_info": value}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), self._info()

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, False, self.t >= 4, self._info()


def vectors(makers):
    """Vector environments of all kinds in this process."""
    yield EnvPool(makers)
    for mode in AutoresetMode:
        yield SyncVectorEnv(makers, autoreset_mode=mode)


def collector_of(env):
    task = TaskSpec(env.single_observation_space, env.single_action_space, n_envs=env.num_envs)
    return Collector(env, Hierarchy([RandomLevel(task.action_space)], task), seed=0, learn=False)


@pytest.mark.filterwarnings("ignore:entry .* of an environment's info:RuntimeWarning")
def test_entries_of_any_kind_do_not_end_a_run():
    makers = [partial(Talker, i) for i in range(3)]
    for env in (*vectors(makers), EnvPool(makers, asynchronous=True)):
        collector = collector_of(env)
        episodes = [episode for _ in range(50) for episode in collector.step(explore=True)]
        assert len(episodes) >= 30
        assert {(episode.length, episode.success) for episode in episodes} == {(4, None)}
        assert collector.n_faults == 0
        env.close()


class Hoarder(Talker):
    """Its info has a lock and an object that cannot be read beside its success."""

    def _info(self):
        return {"lock": threading.Lock(), "is_success": self.t == 4, "odd": Unreadable(), "t": self.t}


def test_entries_that_cannot_pass_between_processes_are_named_and_leave_the_others():
    env = EnvPool([Hoarder], asynchronous=True)
    try:
        with pytest.warns(RuntimeWarning) as caught:
            _, infos = env.reset(seed=0)
        names = {str(warning.message).split("'")[1] for warning in caught}
        assert names == {"lock", "odd"}
        assert infos.keys() - {"_is_success", "_t"} == {"is_success", "t"}
        left_out = partial(pytest.warns, RuntimeWarning, match=r"'(lock|odd)' of an environment's info")
        with left_out():
            collector = collector_of(env)
        with left_out():
            episodes = [episode for _ in range(9) for episode in collector.step(explore=True)]
        assert [episode.success for episode in episodes] == [True, True]
    finally:
        env.close()


YES, NO = 1.0, np.float32(0)
STORIES = {  # verdicts by step, and success of the episode
    "never": ({}, None),
    "last": ({1: False, 4: True}, True),
    "numpy": ({2: np.bool_(True)}, True),
    "failed": ({3: np.bool_(False), 4: NO}, False),
    "half": ({2: 0.5, 4: 0}, False),  # 0.5 is neither
    "share": ({4: 0.25}, None),
    "text": ({4: "yes"}, None),
    "number": ({4: YES}, True),
}


def test_success_does_not_depend_on_the_environments_beside():
    names = list(STORIES)
    for n in (1, 2, 4, 8):
        for start in range(0, 8, n):
            for order in (1, -1):
                chosen = names[start : start + n][::order]
                for env in vectors([partial(Talker, 0, STORIES[name][0]) for name in chosen]):
                    collector = collector_of(env)
                    episodes = [episode for _ in range(11) for episode in collector.step(explore=True)]
                    assert len(episodes) >= 2 * n
                    for episode in episodes:
                        assert (episode.length, episode.episode_return) == (4, 4.0)
                        assert episode.success is STORIES[chosen[episode.env_id]][1]


@pytest.mark.parametrize(
    ("infos", "same_step", "expected"),
    [
        ({"success": np.array([1, 0])}, False, [1, 0]),  # a native vector may have no mask
        ({"success": [True, 7]}, False, [1, np.nan]),
        ({"success": "yes"}, False, [np.nan, np.nan]),
        ({"success": np.array([1, 0]), "_success": np.array(["a", "b"])}, False, [1, 0]),
        ({"is_success": np.array([1, 1]), "success": np.array([0, 3])}, False, [0, 1]),
        # of another kind of vector: one info for each environment
        (
            {"final_info": np.array([{"is_success": True}, None]), "_final_info": np.array([True, False])},
            True,
            [1, np.nan],
        ),
        ({"final_info": {"is_success": np.array([1, 1])}, "is_success": np.array([0, 0])}, False, [0, 0]),
        (
            {
                "final_info": {"is_success": np.array([1, 0])},
                "_final_info": np.array([True, False]),
                "is_success": np.array([0, 1]),
            },
            True,
            [1, 1],
        ),
    ],
)
def test_successes_of_odd_infos(infos, same_step, expected):
    np.testing.assert_array_equal(successes(infos, 2, same_step=same_step), expected)
