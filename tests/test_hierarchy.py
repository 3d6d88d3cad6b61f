"""Stacked levels against a plain simulation of the semi-MDP, one environment after the other."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tianshou.data import Batch

from layeredrl.collector import Collector
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Decision, Level, RandomLevel
from layeredrl.task import TaskSpec
from tests.envs.counter import CounterEnv
from tests.recording import DiaryEnv, FunctionLevel, leaves, stored

UNIT = spaces.Box(-1.0, 1.0, (1,), np.float32)
TASK = TaskSpec(CounterEnv().observation_space, UNIT)
WIDTHS = (3, 2, 1)
"""Widths of the three levels' actions; all different, so that a mix-up shows."""
SPACES = [spaces.Box(-1.0, 1.0, (width,), np.float32) for width in WIDTHS]
DISCOUNTS = (0.9, 0.5, 1.0)
LENGTHS = (1, 4, 7, 11)


# ------------------------------------------------------------------ a plain simulation


def decide(level, duration, obs, command, n_decisions):
    """Action and duration, which depend on all inputs of a level, so that a mix-up shows."""
    count, episode = (float(x) for x in obs)
    phase = 1.0 + level + 0.7 * count + 1.3 * episode + 0.5 * n_decisions
    phase += 0.0 if command is None else float(np.sum(command))
    if duration == "random":
        rng = np.random.default_rng([level, int(count), int(episode), n_decisions])
        duration = int(rng.integers(1, 7))
    return [float(np.float32(np.sin(phase + i))) for i in range(WIDTHS[level])], duration


class Exhausted(Exception):
    """No environment steps are left."""


class Simulation:
    """The semi-MDP of one environment: every level carries out its action by a call of the level below."""

    def __init__(self, env, durations, n_steps):
        self.env, self.durations, self.n_steps_left = env, durations, n_steps
        self.transitions = [[] for _ in durations]
        try:
            while True:
                self.obs, self.done = env.reset()[0], False
                self.n_decisions = [0] * len(durations)
                self.run(0, None, float("inf"))
        except Exhausted:
            pass

    def run(self, level, command, budget):
        """Let a level act for a number of steps or until the episode ends; returns the rewards."""
        rewards, commanded_at = [], self.obs
        while budget > 0 and not self.done:
            start = self.obs
            given = None if command is None else (command, commanded_at, len(rewards), budget)
            action, duration = decide(level, self.durations[level], start, command, self.n_decisions[level])
            self.n_decisions[level] += 1
            duration = min(duration, budget)
            if level + 1 < len(self.durations):
                parts = self.run(level + 1, action, duration)
            else:
                parts = self.drive(action, duration)
            total = sum(reward * DISCOUNTS[level] ** k for k, reward in enumerate(parts))
            self.transitions[level].append(
                (start, action, total, self.obs, *self.flags, len(parts), given),
            )
            rewards += parts
            budget -= len(parts)
        return rewards

    def drive(self, action, n_steps):
        rewards = []
        while len(rewards) < n_steps and not self.done:
            if self.n_steps_left == 0:
                raise Exhausted
            self.n_steps_left -= 1
            self.obs, reward, *self.flags, _ = self.env.step(action)
            self.done = any(self.flags)
            rewards.append(reward)
        return rewards


# ------------------------------------------------------------------ stacked levels


def make_levels(durations, n_envs=1):
    commands = [None, *SPACES]
    return [
        FunctionLevel(partial(decide, i, duration), SPACES[i], commands[i], n_envs=n_envs, discount=DISCOUNTS[i])
        for i, duration in enumerate(durations)
    ]


def vector_env(lengths=LENGTHS, mode=AutoresetMode.DISABLED):
    return SyncVectorEnv([partial(DiaryEnv, n, "alternate") for n in lengths], autoreset_mode=mode)


def collect(levels, n_steps, lengths=LENGTHS, mode=AutoresetMode.DISABLED):
    task = replace(TASK, n_envs=len(lengths))
    collector = Collector(vector_env(lengths, mode), Hierarchy(levels, task), seed=0)
    for _ in range(n_steps):
        collector.step(explore=True)
    return collector


def check_transitions(rows, expected):
    assert len(rows) == len(expected) > 0
    columns = [np.array(column) for column in list(zip(*expected, strict=True))[:7]]
    for key, column in zip(("obs", "act", "rew", "obs_next", "terminated", "truncated"), columns, strict=False):
        np.testing.assert_allclose(rows[key], column, atol=1e-5, err_msg=key)
    np.testing.assert_array_equal(rows.info.duration, columns[6])
    if expected[0][7] is None:
        assert "command" not in rows.info
        return
    for key, column in zip(
        ("action", "obs", "elapsed", "remaining"), zip(*(row[7] for row in expected), strict=True), strict=True
    ):
        np.testing.assert_allclose(rows.info.command[key], np.array(column), atol=1e-5, err_msg=key)


def check_simulation(simulation, levels, env, i):
    """Check the transitions of all levels in environment i, and its actions."""
    for level, expected in zip(levels, simulation.transitions, strict=True):
        check_transitions(stored(level.replay, i), expected)
    ours, theirs = ([step for episode in e.diary for step in episode] for e in (env.envs[i], simulation.env))
    np.testing.assert_allclose([step.action for step in ours], [step.action for step in theirs], atol=1e-5)


@pytest.mark.parametrize(
    ("durations", "mode"),
    [
        ((1, 3, "random"), AutoresetMode.DISABLED),
        (("random", 3, 1), AutoresetMode.NEXT_STEP),
        ((3, "random", 1), AutoresetMode.SAME_STEP),
        (("random",) * 3, AutoresetMode.DISABLED),
    ],
)
def test_transitions_are_those_of_the_semi_mdp(durations, mode):
    """Also in environments that reset themselves."""
    levels = make_levels(durations, n_envs=4)
    env = collect(levels, 60, mode=mode).env
    for i, length in enumerate(LENGTHS):
        n_steps = 60
        if mode == AutoresetMode.NEXT_STEP:  # after every episode one step is spent on the reset
            n_steps = sum(t % (length + 1) < length for t in range(60))
        check_simulation(Simulation(DiaryEnv(length, "alternate"), durations, n_steps), levels, env, i)


def test_commands_may_be_discrete():
    choices = spaces.Discrete(3, start=4)
    top = FunctionLevel(lambda obs, command, n: ([4 + int(obs[0]) % 3], 2), choices)
    low = FunctionLevel(lambda obs, command, n: ([float(command[0]) / 10], 1), UNIT, choices)
    collect([top, low], 10, lengths=(5,))
    np.testing.assert_array_equal(top.replay.all().act, [[4], [6], [5]] * 2)
    np.testing.assert_array_equal(low.replay.all().info.command.action, [[4], [4], [6], [6], [5]] * 2)
    np.testing.assert_allclose(low.replay.all().act, np.array([[4], [4], [6], [6], [5]] * 2) / 10)
    assert top.replay.all().act.dtype == low.replay.all().info.command.action.dtype == np.int64


# ------------------------------------------------------------------ carry


def test_acting_in_other_environments_changes_nothing():
    def transitions(disturb):
        levels = make_levels(("random", 3, 1), n_envs=4)
        agent = Hierarchy(levels, replace(TASK, n_envs=4))
        collector = Collector(vector_env(), agent, seed=0)
        other = Collector(vector_env((2, 5)), agent, seed=9, learn=False) if disturb else None
        for t in range(24):
            collector.step(explore=True)
            for _ in range(t % 4 if other else 0):
                other.step(explore=False)
        return [level.replay.all() for level in levels]

    for alone, disturbed in zip(transitions(False), transitions(True), strict=True):
        assert_same(alone, disturbed)


def test_a_reset_leaves_the_other_environments():
    agent = Hierarchy(make_levels(("random", 3, 1)), TASK)
    carry = agent.initial_carry(3, seed=0)
    obs = np.array([[0, 0], [1, 0], [2, 5]], np.float32)
    for _ in range(4):
        agent.act(obs, carry, explore=True)
        agent.observe(one_step(obs), np.arange(3), carry, learn=False)
    before = snapshot(carry)
    agent.reset(carry, np.array([1]))
    for old, new in zip(before, snapshot(carry), strict=True):
        for name in old:
            np.testing.assert_array_equal(new[name][[0, 2]], old[name][[0, 2]], err_msg=name)
        assert new["remaining"][1] == new["elapsed"][1] == new["reward"][1] == new["n_decisions"][1] == 0
    agent.act(obs, carry, explore=True)  # all three levels decide anew there, as at an episode's start
    fresh = agent.initial_carry(1, seed=0)
    agent.act(obs[[1]], fresh, explore=True)
    for level, expected in zip(snapshot(carry), snapshot(fresh), strict=True):
        for name in level:
            np.testing.assert_array_equal(level[name][1], expected[name][0], err_msg=name)


def test_actions_that_were_not_observed_are_not_repeated():
    agent = Hierarchy(make_levels((4, 2, 1)), TASK)
    carry, obs = agent.initial_carry(5, seed=0), np.zeros((5, 2), np.float32)
    agent.act(obs, carry, explore=False)
    with pytest.raises(RuntimeError, match="not observed yet in environments 0, 1, 2 and 2 more, expected `observe`"):
        agent.act(obs, carry, explore=False)
    agent.observe(one_step(obs[1:]), np.arange(1, 5), carry, learn=False)
    with pytest.raises(RuntimeError, match="not observed yet in environment 0, expected"):
        agent.act(obs, carry, explore=False)
    state = carry.state_dict()
    agent.reset(carry, np.array([0]))
    agent.act(obs, carry, explore=False)
    carry.load_state_dict(state)  # the step will be taken again
    agent.act(obs, carry, explore=False)


class Reporting(RandomLevel):
    """Decides for one or two steps, and reports its observations and a forecast of one step."""

    def act(self, obs, command, memory, *, explore, generator):
        decision = super().act(obs, command, memory, explore=explore, generator=generator)
        durations = np.array([1, 2])[: len(obs)]
        forecast = torch.full((len(obs),), 7.0)
        return Decision(decision.action, durations, memory, {"plan/x": obs[:, 0]}, forecast, forecast_steps=1)

    def learn(self, n_total_env_steps):
        return {"plan/steps": float(n_total_env_steps)}


def test_metrics_are_nan_in_environments_without_a_decision():
    agent = Hierarchy([Reporting(UNIT)], TASK)
    carry = agent.initial_carry(2, seed=0)
    obs = np.array([[3, 0], [4, 0]], np.float32)
    agent.act(obs, carry, explore=True)
    np.testing.assert_array_equal(carry.last_metrics()["plan/x"], [3, 4])
    agent.observe(one_step(obs), np.arange(2), carry, learn=False)
    agent.act(obs, carry, explore=True)
    np.testing.assert_array_equal(carry.last_metrics()["plan/x"], [3, np.nan])


def assert_same(a, b):
    for key in ("obs", "act", "rew", "obs_next", "terminated", "truncated"):
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    np.testing.assert_array_equal(a.info.duration, b.info.duration)


def one_step(obs_next):
    n = len(obs_next)
    flags = np.zeros(n, bool)
    return Batch(rew=np.arange(n) + 1.0, terminated=flags, truncated=flags.copy(), obs_next=obs_next)


def snapshot(carry):
    names = ("action", "obs", "remaining", "elapsed", "reward")
    return [
        {name: getattr(level, name).copy() for name in names} | {"n_decisions": level.memory.n_decisions.numpy().copy()}
        for level in carry.levels
    ]


# ------------------------------------------------------------------ what does not fit, and state


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "levels is empty"),
        ([RandomLevel(UNIT, SPACES[0])], r"the top level takes commands .*, but there is no level above it"),
        (
            [FunctionLevel(decide, SPACES[0]), RandomLevel(UNIT, SPACES[1])],
            r"FunctionLevel emits Box.*\(3,\).*RandomLevel below it takes commands of Box.*\(2,\)",
        ),
        (
            [RandomLevel(spaces.Discrete(4)), FunctionLevel(decide, UNIT, spaces.Discrete(5))],
            r"RandomLevel emits Discrete\(4\).*FunctionLevel below it takes commands of Discrete\(5\)",
        ),
        ([RandomLevel(UNIT), RandomLevel(UNIT)], r"RandomLevel emits Box.*RandomLevel below it .* None"),
        ([RandomLevel(SPACES[1])], r"RandomLevel emits Box.*\(2,\).*environment takes.*\(1,\)"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        Hierarchy(levels, TASK)


@pytest.mark.parametrize("duration", [0, -1])
def test_durations_below_one_step_are_refused(duration):
    with pytest.raises(ValueError, match=f"duration is {duration}"):
        RandomLevel(UNIT, duration=duration)
    agent = Hierarchy([FunctionLevel(lambda *_: ([0.0], duration), UNIT)], TASK)
    with pytest.raises(ValueError, match=f"FunctionLevel.*duration.*{duration}"):
        agent.act(np.zeros((1, 2), np.float32), agent.initial_carry(1, seed=0), explore=True)


class Learner(Level):
    """Learns one number."""

    def __init__(self, command_space, name):
        self.action_space, self.command_space, self.name, self.value = UNIT, command_space, name, 0.0

    def initial_memory(self, n_envs):
        return Batch()

    def act(self, obs, command, memory, *, explore, generator):
        return Decision(torch.zeros(len(obs), 1), np.ones(len(obs), np.int64), memory)

    def learn(self, n_total_env_steps):
        self.value = float(n_total_env_steps)
        return {f"{self.name}/value": self.value}

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def learners(*names):
    return Hierarchy([Learner(None if i == 0 else UNIT, name) for i, name in enumerate(names)], TASK)


def test_states_are_keyed_by_the_names_of_levels():
    agent = learners("top", "low")
    agent.learn(7)
    agent.levels[1].value = 3.0
    assert agent.state_dict() == {"top": {"value": 7.0}, "low": {"value": 3.0}}
    other = learners("top", "low")
    other.load_state_dict(agent.state_dict())
    assert [level.value for level in other.levels] == [7.0, 3.0]
    with pytest.raises(ValueError, match=r"the state has the levels top, low, expected top$"):
        learners("top").load_state_dict(agent.state_dict())
    with pytest.raises(ValueError, match="RandomLevel has no state, but was given value"):
        Hierarchy([RandomLevel(UNIT)], TASK).load_state_dict({"random": {"value": 1}})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["top", "low"], ["top", "low"]),
        (["same", "same"], ["same0", "same1"]),
        (["a", "b", "a"], ["a0", "b", "a2"]),
    ],
)
def test_names_of_levels_are_unique(names, expected):
    agent = learners(*names)
    assert agent.names == expected == list(agent.state_dict())
    assert agent.learn(7) == {f"{own}/{name}/value": 7.0 for own, name in zip(expected, names, strict=True)}


def test_metrics_begin_with_the_level_s_name_where_levels_are_of_the_same_kind():
    """When acting, when forecasts are settled, and when learning; a subclass has the metrics of its parent."""

    class Special(Reporting):
        pass

    levels = [Reporting(UNIT), Special(UNIT, UNIT)]
    levels[0].name, levels[1].name = "far", "near"
    agent = Hierarchy(levels, TASK)
    carry, obs = agent.initial_carry(1, seed=0), np.array([[3, 0]], np.float32)
    agent.act(obs, carry, explore=True)
    assert carry.last_metrics() == {"far/plan/x": [3.0], "near/plan/x": [3.0]}
    agent.observe(one_step(obs), np.arange(1), carry, learn=False)
    returns = {"plan/predicted_return": [7.0], "plan/achieved_return": [1.0]}
    expected = {f"{level}/{name}": value for level in ("far", "near") for name, value in returns.items()}
    assert carry.last_metrics().items() >= expected.items()
    assert agent.learn(5) == {"far/plan/steps": 5.0, "near/plan/steps": 5.0}
    other = Hierarchy([Reporting(UNIT), Learner(UNIT, "low")], TASK)
    assert other.learn(5) == {"plan/steps": 5.0, "low/value": 5.0}


# ------------------------------------------------------------------ nested memories


class Nested(FunctionLevel):
    """Counts decisions in a memory inside its memory, which acting replaces."""

    def initial_memory(self, n_envs):
        inner = Batch(count=torch.zeros(n_envs, 2), empty=Batch())
        return Batch(inner=inner, age=torch.zeros(n_envs, dtype=torch.int64))

    def act(self, obs, command, memory, *, explore, generator):
        n = memory.inner.count[:, 0].long() + 1
        inner = Batch(count=memory.inner.count + torch.tensor([1.0, 10.0]), empty=Batch())
        actions = (n[:, None] / 100).float()
        durations = 1 + (obs[:, 0] > 0).numpy().astype(np.int64)
        return Decision(actions, durations, Batch(inner=inner, age=memory.age + 1))


def nested():
    agent = Hierarchy([Nested(decide, UNIT)], TASK)
    carry, obs = agent.initial_carry(3, seed=0), np.array([[0, 0], [1, 0], [0, 0]], np.float32)
    for _ in range(3):
        agent.act(obs, carry, explore=True)
        agent.observe(one_step(obs), np.arange(3), carry, learn=False)
    return agent, carry, obs


def test_nested_memories_are_written_where_a_decision_was_due():
    """The second environment decides every other step."""
    agent, carry, _ = nested()
    memory = carry.levels[0].memory
    assert memory.inner.count.tolist() == [[3, 30], [2, 20], [3, 30]]
    assert memory.age.tolist() == [3, 2, 3]
    agent.reset(carry, np.array([0]))
    assert memory.inner.count.tolist() == [[0, 0], [2, 20], [3, 30]]
    assert memory.age.tolist() == [0, 2, 3]


def test_a_carry_with_nested_memories_resumes():
    agent, carry, obs = nested()
    state = copy.deepcopy(carry.state_dict())
    assert type(state["levels"][0]["memory"]["inner"]) is dict  # a checkpoint holds no Batch
    other = agent.initial_carry(3, seed=5)
    other.load_state_dict(state)
    for one in (carry, other):
        agent.act(obs, one, explore=True)
    assert leaves(other.state_dict()) == leaves(carry.state_dict())
    np.testing.assert_array_equal(other.levels[0].action, carry.levels[0].action)


def test_the_state_of_another_carry_is_refused():
    agent, carry, _ = nested()
    state = carry.state_dict()
    with pytest.raises(ValueError, match=r"the carry's action has shape \(3, 1\), expected \(2, 1\)|memory.* \(3"):
        agent.initial_carry(2, seed=0).load_state_dict(state)
    with pytest.raises(ValueError, match="the carry has 1 levels, expected 3"):
        Hierarchy(make_levels((1, 1, 1)), TASK).initial_carry(3, 0).load_state_dict(state)
    del state["levels"][0]["memory"]["inner"]["count"]
    with pytest.raises(ValueError, match=r"the carry's memory.inner holds \['empty'\], expected \['count', 'empty'\]"):
        agent.initial_carry(3, seed=0).load_state_dict(state)
