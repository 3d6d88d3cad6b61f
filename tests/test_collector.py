"""The collector against the environments' own diaries: no transition is invented, lost, changed or crosses episodes."""

from collections import Counter
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from tianshou.data import Batch

from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.episodes import Episode
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import RandomLevel
from layeredrl.storage import Checkpoints, Replay
from layeredrl.task import TaskSpec
from tests.envs.counter import register_counter
from tests.recording import DiaryEnv, GoalEnv, RecordingRandomLevel, stored

ENDS = ["terminate", "truncate", "alternate"]
MODES = list(AutoresetMode)


def diary_envs(n_envs, kind=SyncVectorEnv, mode=AutoresetMode.DISABLED, length=3, wrapper=None, **kwargs):
    """A vector environment of diaries whose episodes have different lengths, the first one's the shortest."""

    def make(i):
        env = DiaryEnv(length + i if "random_length" not in kwargs else length, **kwargs)
        return env if wrapper is None else wrapper(env)

    return kind([partial(make, i) for i in range(n_envs)], autoreset_mode=mode)


def agent_for(env):
    """An agent that acts at random and the level whose replay holds what it observed."""
    task = TaskSpec(env.single_observation_space, env.single_action_space, n_envs=env.num_envs)
    level = RecordingRandomLevel(env.single_action_space, env.num_envs)
    return Hierarchy([level], task), level


def check_against_diaries(env, replay, collector, finished, flatten=np.array):
    """Compare everything that is stored, counted and reported with the environments' diaries."""
    diaries = env.get_attr("diary")
    for i, diary in enumerate(diaries):
        check_rows(stored(replay, i), [step for episode in diary for step in episode], flatten)
        np.testing.assert_array_equal(stored(replay, i).info.duration, 1)
        # Each episode was begun once, and all but the last were played to their end.
        assert all(episode[-1].terminated or episode[-1].truncated for episode in diary[:-1])
    assert collector.n_total_env_steps == sum(len(e) for diary in diaries for e in diary) == len(replay)
    assert finished == episodes_in(diaries, env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP)


def check_rows(rows, steps, flatten=np.array):
    assert len(rows) == len(steps)
    np.testing.assert_array_equal(rows.obs, [flatten(step.obs) for step in steps])
    np.testing.assert_array_equal(rows.obs_next, [flatten(step.obs_next) for step in steps])
    np.testing.assert_array_equal(rows.act, np.array([step.action for step in steps], rows.act.dtype))
    np.testing.assert_array_equal(rows.rew, [step.reward for step in steps])
    np.testing.assert_array_equal(rows.terminated, [step.terminated for step in steps])
    np.testing.assert_array_equal(rows.truncated, [step.truncated for step in steps])


def episodes_in(diaries, resets_take_a_step):
    """The finished episodes, in the order in which they ended."""
    n_taken, ends = Counter(), []
    for i, diary in enumerate(diaries):
        time = 0
        for episode in diary:
            for step in episode:
                time += 1
                n_taken[time] += 1
                if step.terminated or step.truncated:
                    ends.append((time, i, sum(s.reward for s in episode), len(episode)))
            time += resets_take_a_step
    return [
        Episode(i, total, length, sum(n for t, n in n_taken.items() if t <= time))
        for time, i, total, length in sorted(ends)
    ]


def check_counters(rows):
    """Check the stored numbers by themselves."""
    np.testing.assert_array_equal(rows.obs_next[:, 0], rows.obs[:, 0] + 1)
    np.testing.assert_array_equal(rows.obs_next[:, 1], rows.obs[:, 1])
    assert not (rows.terminated & rows.truncated).any()


def play(env, n_steps=40, seed=0):
    agent, level = agent_for(env)
    collector = Collector(env, agent, seed=seed)
    finished = [episode for _ in range(n_steps) for episode in collector.step(explore=True)]
    return collector, level.replay, finished


def combinations():
    result = []
    for i, mode in enumerate(MODES):
        result += [(SyncVectorEnv, mode, 3, ends) for ends in ENDS]
        result += [(SyncVectorEnv, mode, n_envs, "alternate") for n_envs in (1, 8)]
        for j, (n_envs, ends) in enumerate([(1, "terminate"), (3, "alternate"), (8, "truncate")]):
            marks = [] if i == j else [pytest.mark.slow]  # each mode and each number once with processes
            result.append(pytest.param(AsyncVectorEnv, mode, n_envs, ends, marks=marks))
    return result


@pytest.mark.parametrize(("kind", "mode", "n_envs", "ends"), combinations())
def test_every_step_is_stored_unchanged(kind, mode, n_envs, ends):
    env = diary_envs(n_envs, kind, mode, ends=ends)
    try:
        collector, replay, finished = play(env)
        check_against_diaries(env, replay, collector, finished)
        check_counters(replay.all())
        assert {episode.env_id for episode in finished} == set(range(n_envs))
        kinds = {"terminate": (True, False), "truncate": (False, True), "alternate": (True, True)}[ends]
        assert (replay.all().terminated.any(), replay.all().truncated.any()) == kinds
    finally:
        env.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("random_length", [False, True])
def test_episodes_of_one_step_and_of_random_length(mode, random_length):
    settings = {"length": 4, "random_length": True} if random_length else {"length": 1}
    env = diary_envs(3, mode=mode, ends="alternate", **settings)
    collector, replay, finished = play(env, 60)
    check_against_diaries(env, replay, collector, finished)
    check_counters(replay.all())
    assert {episode.length for episode in finished} == ({1, 2, 3, 4} if random_length else {1, 2, 3})


@pytest.mark.parametrize(
    ("kind", "mode"), [*((SyncVectorEnv, mode) for mode in MODES), (AsyncVectorEnv, AutoresetMode.SAME_STEP)]
)
def test_dict_observations(kind, mode):
    env = diary_envs(2, kind, mode, wrapper=GoalEnv, ends="alternate")
    single = GoalEnv(DiaryEnv())

    def flatten(obs):
        return gym.spaces.flatten(single.observation_space, single.observation(np.array(obs)))

    try:
        collector, replay, finished = play(env)
        check_against_diaries(env, replay, collector, finished, flatten)
    finally:
        env.close()


@pytest.mark.parametrize("mode", MODES)
def test_on_step_sees_the_same_steps(mode):
    """With copy=False the environments' next step overwrites the observations that the last one returned."""
    env = SyncVectorEnv([partial(DiaryEnv, n, "alternate") for n in (1, 2, 5)], copy=False, autoreset_mode=mode)
    agent, level = agent_for(env)
    seen = [[], [], []]

    def look(step, env_ids):
        for row, i in enumerate(env_ids):
            seen[i].append(Batch(step[row : row + 1], copy=True))

    collector = Collector(env, agent, seed=0, on_step=look)
    finished = [episode for _ in range(20) for episode in collector.step(explore=True)]
    check_against_diaries(env, level.replay, collector, finished)
    for rows, diary in zip(seen, env.get_attr("diary"), strict=True):
        check_rows(Batch.cat(rows), [step for episode in diary for step in episode])


@pytest.mark.parametrize("mode", MODES)
def test_environments_of_make_vec_and_a_time_limit(mode):
    limit = partial(gym.wrappers.TimeLimit, max_episode_steps=4)
    settings = {} if mode == AutoresetMode.NEXT_STEP else {"autoreset_mode": mode}  # the default of make_vec
    env = gym.make_vec(register_counter(), 2, "sync", settings, wrappers=[limit], episode_length=9)
    collector, replay, finished = play(env)
    check_counters(replay.all())
    assert {(episode.length, episode.episode_return) for episode in finished} == {(4, 1.0 + 2 + 3 + 4)}
    assert not replay.all().terminated.any()
    np.testing.assert_array_equal(replay.all().obs_next[replay.all().truncated, 0], 4)
    resets = (40 // 5) * 2 if mode == AutoresetMode.NEXT_STEP else 0  # every fifth step of 40, in 2 environments
    assert len(replay) == collector.n_total_env_steps == 2 * 40 - resets


def test_environments_of_the_factory():
    env = make_vector_env(register_counter(), 3, episode_length=4, ends="alternate")
    assert env.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    collector, replay, finished = play(env, 20)
    check_counters(replay.all())
    assert len(replay) == collector.n_total_env_steps == 60
    assert finished == [Episode(i, 10.0, 4, 12 * (k + 1)) for k in range(5) for i in range(3)]


@pytest.mark.parametrize("restored", [False, True])
def test_sequences_of_what_was_collected_stay_within_episodes(restored, tmp_path):
    """Rings that have wrapped, environments out of step, and an episode that was cut off from outside."""
    env = make_vector_env(register_counter(), 3, episode_length=6, ends="alternate", random_length=True)
    agent, level = agent_for(env)
    replay, checkpoints = Replay(3 * 40, 3, seed=1), Checkpoints(tmp_path)
    level.replay = replay
    for seed, n_steps in ((4, 70), (5, 10)):
        collector = Collector(env, agent, seed=seed)  # begins new episodes
        for _ in range(n_steps):
            collector.step(explore=True)
        replay.truncate([0, 1])
        if restored:
            checkpoints.save({"replay": replay.state_dict()}, seed)
            replay = level.replay = Replay(3 * 40, 3)
            replay.load_state_dict(checkpoints.load()["replay"])
    replay.truncate([2])
    rows, valid = replay.sequences(6000, 4)
    assert valid[0].all()
    assert not (~valid[:-1] & valid[1:]).any()
    after = valid[1:]
    np.testing.assert_array_equal(rows.obs[1:][after], rows.obs_next[:-1][after])
    np.testing.assert_array_equal(rows.obs_next[..., 0], rows.obs[..., 0] + 1)
    np.testing.assert_array_equal((rows.terminated | rows.truncated)[:-1][after], False)
    assert (rows.terminated | rows.truncated)[-1][~valid[-1]].all()  # shorter ones end with their episode
    everything = np.concatenate([stored(replay, i).obs for i in range(3)])
    counts = Counter(map(tuple, rows.obs[0].tolist()))
    several = Counter(map(tuple, everything.tolist()))
    assert counts.keys() == several.keys()
    expected = np.array([6000 * several[key] / 120 for key in several])
    found = np.array([counts[key] for key in several])
    assert (np.square(found - expected) / expected).sum() < len(expected) + 5 * (2 * len(expected)) ** 0.5


@pytest.mark.parametrize("mode", MODES)
def test_discrete_actions(mode):
    def make(i):
        env = DiaryEnv(2 + i)
        env.action_space = gym.spaces.Discrete(3, start=5)
        return env

    env = SyncVectorEnv([partial(make, i) for i in range(3)], autoreset_mode=mode)
    collector, replay, finished = play(env)
    check_against_diaries(env, replay, collector, finished)
    assert set(replay.all().act.ravel()) == {5, 6, 7}


def test_each_episode_gets_a_seed_of_its_own():
    def seeds(seed):
        env = diary_envs(3)
        play(env, seed=seed)
        return env.get_attr("seeds")

    first = seeds(0)
    drawn = [seed for row in first for seed in row]
    assert None not in drawn
    assert len(set(drawn)) == len(drawn) > 20
    assert seeds(0) == first
    assert not {seed for row in seeds(1) for seed in row} & set(drawn)


def test_the_same_seed_gives_the_same_run():
    def actions(seed, mode):
        return play(diary_envs(2, mode=mode, length=4, random_length=True), seed=seed)[1].all()

    for mode in (AutoresetMode.DISABLED, AutoresetMode.SAME_STEP):
        first, again, other = actions(3, mode), actions(3, mode), actions(4, mode)
        for key in ("obs", "act", "rew", "obs_next", "terminated", "truncated"):
            np.testing.assert_array_equal(first[key], again[key])
        assert not np.array_equal(first.act, other.act)


def test_nothing_is_stored_without_learn():
    env = diary_envs(2)
    agent, level = agent_for(env)
    collector = Collector(env, agent, seed=0, learn=False)
    for _ in range(10):
        collector.step(explore=False)
    assert len(level.replay) == 0
    assert collector.n_total_env_steps == 20


class SucceedingEnv(DiaryEnv):
    """Reports the infos of some steps."""

    def __init__(self, infos):
        super().__init__(4)
        self.infos = infos

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], {"is_success": True}  # of the reset, which is no step

    def step(self, action):
        obs, *rest, _ = super().step(action)
        return obs, *rest, self.infos.get(int(obs[0]), {})


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_succeeds_if_any_step_does(mode):
    infos = [
        {1: {"is_success": False}, 4: {"is_success": True}},  # in the last step
        {2: {"success": True}, 3: {"success": False}, 4: {"success": False}},
        {n: {"is_success": True, "success": False} for n in (1, 2, 3, 4)},  # "success" has priority
        {},
    ]
    env = SyncVectorEnv([partial(SucceedingEnv, i) for i in infos], autoreset_mode=mode)
    collector = Collector(env, agent_for(env)[0], seed=0)
    episodes = [episode for _ in range(9) for episode in collector.step(explore=True)]
    assert len(episodes) >= 4
    for episode in episodes:
        assert episode.success is (True, True, False, None)[episode.env_id]


def test_each_environment_plays_its_share_of_the_episodes():
    """Four of the first five to end would be short ones."""
    env = SyncVectorEnv([partial(DiaryEnv, n) for n in (2, 20)], autoreset_mode=AutoresetMode.DISABLED)
    episodes = Collector(env, agent_for(env)[0], seed=0, learn=False).collect_episodes(5)
    assert [(e.env_id, e.episode_return, e.length) for e in episodes] == [(0, 3.0, 2)] * 3 + [(1, 210.0, 20)] * 2


@pytest.mark.parametrize("mode", MODES)
def test_episodes_without_an_end_are_cut_off(mode):
    env = SyncVectorEnv([partial(DiaryEnv, n) for n in (3, 10**9)], autoreset_mode=mode)
    agent, level = agent_for(env)
    collector = Collector(env, agent, seed=0)
    with pytest.warns(RuntimeWarning, match="an episode of an evaluation had not ended after 7 steps"):
        episodes = collector.collect_episodes(4, max_steps=7)
    assert [(e.env_id, e.length, e.episode_return) for e in sorted(episodes, key=lambda e: e.env_id)] == [
        *[(0, 3, 6.0)] * 2,
        *[(1, 7, 28.0)] * 2,
    ]
    rows = stored(level.replay, 1)
    assert rows.truncated.sum() == 2
    check_counters(level.replay.all())


def test_playing_episodes_can_be_stopped():
    collector = Collector(diary_envs(2), agent_for(diary_envs(2))[0], seed=0, learn=False)
    n_left = iter(range(5, -1, -1))
    assert collector.collect_episodes(100, stop=lambda: next(n_left) == 0) == []
    assert collector.n_total_env_steps == 2 * 5


class BrokenEnv(DiaryEnv):
    """Returns a bad number in its fourth step."""

    def __init__(self, where, value):
        super().__init__(9)
        self.where, self.value = where, value

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if obs[0] == 4 and self.where == "observation":
            obs[1] = self.value
        return obs, self.value if obs[0] == 4 and self.where == "reward" else reward, *rest


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("observation", np.nan, "observation of environment 1 is .*nan.*finite"),
        ("observation", -np.inf, "observation of environment 1 is .*-inf.*finite"),
        ("reward", np.nan, "reward of environment 1 is .*nan.*finite"),
        ("reward", np.inf, "reward of environment 1 is .*inf.*finite"),
        ("reward", 1e39, r"reward of environment 1 is 1e\+39, in step 4 of its episode, .*float32"),
    ],
)
def test_non_finite_numbers_are_refused(where, value, message):
    env = SyncVectorEnv([DiaryEnv, lambda: BrokenEnv(where, value)], autoreset_mode=AutoresetMode.DISABLED)
    agent, level = agent_for(env)
    collector = Collector(env, agent, seed=0)
    for _ in range(3):
        collector.step(explore=True)
    with pytest.raises(Fault, match=message):
        collector.step(explore=True)
    assert len(level.replay) == 6


def test_environments_that_do_not_fit_are_refused():
    agent = Hierarchy([RandomLevel(make_task("Pendulum-v1").action_space)], make_task("Pendulum-v1"))
    unscaled = gym.make_vec("Pendulum-v1", 2, "sync")
    with pytest.raises(ValueError, match=r"action space .*-2\.0, 2\.0.*-1\.0, 1\.0"):
        Collector(unscaled, agent, seed=0)
    unscaled.close()
    env = diary_envs(3)
    with pytest.raises(ValueError, match=r"observation space .*\(2,\).*\(3,\)"):
        Collector(env, agent, seed=0)
    task = TaskSpec(env.single_observation_space, env.single_action_space, n_envs=2)
    agent = Hierarchy([RecordingRandomLevel(env.single_action_space, 2)], task)
    Collector(env, agent, seed=0, learn=False).step(explore=True)  # acting needs no replay for each environment
    with pytest.raises(ValueError, match=r"3 environments.* 2"):
        Collector(env, agent, seed=0)
    env.metadata = {}
    with pytest.raises(ValueError, match=r"autoreset_mode'\] is None"):
        Collector(env, agent, seed=0)


class OneBadAction(RandomLevel):
    """Acts at random, but once with a bad action in the second environment."""

    bad: float | None = None

    def act(self, *args, **kwargs):
        decision = super().act(*args, **kwargs)
        if self.bad is not None:
            decision.action[1] = self.bad
            self.bad = None
        return decision


@pytest.mark.parametrize("bad", [1.5, -1.001, np.nan])
def test_actions_out_of_bounds_do_not_reach_the_environments(bad):
    env = diary_envs(2, length=9)
    task = TaskSpec(env.single_observation_space, env.single_action_space, n_envs=2)
    level = OneBadAction(env.single_action_space)
    collector = Collector(env, Hierarchy([level], task), seed=0)
    collector.step(explore=True)
    level.bad = bad
    with pytest.raises(Fault, match=r"the action of environment 1 is \[.*\], expected one of Box\(-1.0, 1.0"):
        collector.step(explore=True)
    assert [len(episodes[0]) for episodes in env.get_attr("diary")] == [1, 1]
    collector.step(explore=True)  # decides again
    assert [len(episodes[0]) for episodes in env.get_attr("diary")] == [2, 2]
    assert collector.n_total_env_steps == 4


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_spaces_that_differ_in_dtype_alone_fit(dtype):
    """The environment gets its own dtype."""

    class Strict(DiaryEnv):
        def __init__(self):
            super().__init__()
            self.action_space = gym.spaces.Box(-1, 1, (1,), dtype)
            self.observation_space = gym.spaces.Box(-1000, 1000, (2,), np.float64)

        def step(self, action):
            assert self.action_space.contains(action)
            return super().step(action)

    env = SyncVectorEnv([Strict] * 2, autoreset_mode=AutoresetMode.DISABLED)
    task = TaskSpec(
        gym.spaces.Box(-1000, 1000, (2,), np.float32), gym.spaces.Box(-1.0, 1.0, (1,), np.float32), n_envs=2
    )
    level = RecordingRandomLevel(gym.spaces.Box(-1.0, 1.0, (1,), np.float64), 2)
    collector = Collector(env, Hierarchy([level], task), seed=0)
    for _ in range(5):
        collector.step(explore=True)
    assert len(level.replay) == 10


@pytest.mark.parametrize(
    ("mode", "at"),
    [
        *((AutoresetMode.DISABLED, at) for at in (0, 1, 7, 23)),
        *((AutoresetMode.NEXT_STEP, at) for at in (0, 7)),
        (AutoresetMode.SAME_STEP, 23),
    ],
)
def test_a_restored_collector_continues(mode, at):
    """Episodes of environments that reset themselves cannot be replayed: they end as truncated."""
    replays = mode == AutoresetMode.DISABLED

    def make(n_steps):
        env = make_vector_env("Pendulum-v1", 2) if replays else diary_envs(2, mode=mode, length=9)
        agent, level = agent_for(env)
        collector = Collector(env, agent, seed=5)
        for _ in range(n_steps):
            collector.step(explore=True)
        return collector, level

    whole_level = make(40)[1]
    first, first_level = make(at)
    state, n_before = first.state_dict(), [len(ring) for ring in first_level.replay.buffer.buffers]
    if at == 1:
        del state["metrics"]  # as in older checkpoints
    second, level = make(0)
    level.replay = first_level.replay
    if replays:
        second.load_state_dict(state)
    else:
        with pytest.warns(RuntimeWarning, match="environment [01] resets itself"):
            second.load_state_dict(state)
    for _ in range(40 - at):
        second.step(explore=True)
    assert second.n_total_env_steps == len(level.replay)
    assert second.n_abandoned == (0 if replays else 2)
    for i in range(2):
        rows, expected = stored(level.replay, i), stored(whole_level.replay, i)
        if replays:
            for key in ("obs", "act", "rew", "obs_next", "terminated", "truncated"):
                np.testing.assert_array_equal(rows[key], expected[key])
        else:
            over = rows.terminated | rows.truncated
            assert at == 0 or over[n_before[i] - 1]
            assert (over[:-1] | (rows.obs[1:] == rows.obs_next[:-1]).all(1)).all()


def test_a_state_of_other_environments_is_refused():
    env = diary_envs(2)
    state = Collector(env, agent_for(env)[0], seed=0).state_dict()
    other = diary_envs(3)
    with pytest.raises(ValueError, match=r"obs has shape \(2, 2\), expected \(3, 2\)"):
        Collector(other, agent_for(other)[0], seed=0).load_state_dict(state)
