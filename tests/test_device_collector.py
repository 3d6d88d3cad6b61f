"""Collecting on a device against `Collector` in numpy: the same seeds, the same transitions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tianshou.data import Batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import envs  # noqa: F401  registers the tasks
from agents.goals import Goals
from agents.mbpo import MBPO
from agents.pets import PETS
from agents.random import Random
from agents.sac import SAC
from agents.splates import SPlaTESAgent
from envs.on_device import Mazes
from layeredrl.collector import Collector
from layeredrl.device_collector import DeviceCollector, host_only
from layeredrl.environments import TorchStep, make_task, make_torch_vector_env, make_vector_env
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PolicyLevel
from layeredrl.levels.forecasts import Forecasts, TensorForecasts
from layeredrl.metrics import FiniteMeans
from layeredrl.models.normalization import Moments
from layeredrl.randomness import environment_and_acting_seeds, globals_state, restore_globals, seed_globals
from layeredrl.storage import Checkpoints, Replay, TensorReplay
from layeredrl.world_model.transitions import TensorTransitions
from tests.fake_gpu import CUDA, FakeGPU

CPU = torch.device("cpu")
MAZE, MEDIUM = "Maze2D-Simple-v0", "Maze2D-Medium-v0"
SAC_DEBUG = SAC.preset("debug")
SPLATES_DEBUG = SPlaTESAgent.preset("debug")
GOALS_DEBUG = Goals.preset("debug")
PETS_DEBUG = PETS.preset("debug")
PETS_DEBUG = replace(PETS_DEBUG, learning=replace(PETS_DEBUG.learning, n_random_steps=12, fit_every=9, replay_size=91))


class Seeded:
    """Environments on a device whose later resets have the seeds that a `Collector` draws, none of the device."""

    def __init__(self, env: Any, seed: int) -> None:
        self.env = env
        self.num_envs, self.device = env.num_envs, env.device
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self._rng = np.random.default_rng(environment_and_acting_seeds(seed)[0])

    def reset(self, mask: Tensor | None = None, *, seeds: Any = None) -> Tensor:
        drawn = self._rng.integers(2**31, size=self.num_envs).tolist()
        assert seeds is None or seeds == drawn  # the first episodes are those of a `Collector`
        return self.env.reset(mask, seeds=drawn)

    def step(self, actions: Tensor) -> TorchStep:
        return self.env.step(actions)


def make_agent(config: Any, env_id: str, n_envs: int, device: torch.device = CPU) -> Hierarchy:
    seed_globals(0)
    return config.build(make_task(env_id, n_envs), device, seed=0)


def make_pair(config: Any, env_id: str, n_envs: int = 3, **settings: Any) -> list[tuple[Hierarchy, Any]]:
    """An agent with a collector in numpy, and one on a device."""
    agent, other = (make_agent(config, env_id, n_envs) for _ in range(2))
    native = make_vector_env(env_id, n_envs, vectorization="native", device="cpu", **settings)
    there = Seeded(make_torch_vector_env(env_id, n_envs, **settings), 0)
    return [(agent, Collector(native, agent, seed=0)), (other, DeviceCollector(there, other, seed=0))]


def played(agent: Hierarchy, collector: Any, n_steps: int) -> list[Any]:
    """Episodes that end in some steps of collecting and learning."""
    seed_globals(1)
    episodes = []
    for _ in range(n_steps):
        episodes += collector.step(explore=True)
        agent.learn(collector.n_total_env_steps)
    return episodes


def by_environment(rows: Batch, n_envs: int) -> dict[str, np.ndarray]:
    """Columns of a device's replay in the order of `Replay.all`."""
    return {
        key: rows[key].unflatten(0, (-1, n_envs)).transpose(0, 1).flatten(0, 1).numpy()
        for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next")
    }


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [(MAZE, {"max_steps": 7}), ("ContinuousCartPole-v0", {}), ("SwingUpPendulum-v0", {"max_episode_steps": 9})],
    ids=["maze", "cart-pole", "pendulum"],
)
def test_transitions_and_episodes_are_those_in_numpy(env_id: str, settings: dict[str, Any]) -> None:
    never = replace(SAC_DEBUG, learning=replace(SAC_DEBUG.learning, n_random_steps=60, updates_per_transition=0.0))
    (agent, collector), (other, there) = make_pair(never, env_id, **settings)
    expected, found = played(agent, collector, 60), played(other, there, 60)  # random actions, then the policy's
    assert len(expected) > 3
    for a, b in zip(expected, found, strict=True):
        assert replace(a, episode_return=0.0) == replace(b, episode_return=0.0)
        assert a.episode_return == pytest.approx(b.episode_return, rel=1e-5)
    rows = agent.levels[0].replay.all()
    for key, values in by_environment(other.levels[0].replay.all(), 3).items():
        np.testing.assert_allclose(values, rows[key], rtol=1e-6, atol=1e-6)


def test_discounted_rewards_of_actions_that_last_several_steps() -> None:
    config = replace(SAC_DEBUG, learning=replace(SAC_DEBUG.learning, updates_per_transition=0.0))
    (agent, collector), (other, there) = make_pair(config, MAZE, max_steps=7)
    agent.levels[0].duration = other.levels[0].duration = 3
    for _ in range(15):
        collector.step(explore=True)
        there.step(explore=True)
    rows, found = agent.levels[0].replay.all(), other.levels[0].replay.all()
    assert set(rows.info.duration.tolist()) == {1, 3}
    stored = by_environment(found, 3)
    for key, values in stored.items():
        np.testing.assert_allclose(values, rows[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "env_id", "settings"),
    [
        (SAC_DEBUG, "SwingUpPendulum-v0", {"max_episode_steps": 8}),
        (SPLATES_DEBUG, MEDIUM, {"max_steps": 8}),
        (GOALS_DEBUG, MEDIUM, {"max_steps": 8}),
        (PETS_DEBUG, MAZE, {"max_steps": 8}),
    ],
    ids=["sac", "splates", "goals", "pets"],
)
def test_a_learning_run_resumes_bit_for_bit(
    config: Any, env_id: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layeredrl.world_model.transitions.CHUNK", 16)  # several blocks of transitions

    def make() -> tuple[Hierarchy, DeviceCollector]:
        agent = make_agent(config, env_id, 3)
        return agent, DeviceCollector(make_torch_vector_env(env_id, 3, **settings), agent, seed=0)

    def run(agent: Hierarchy, collector: DeviceCollector, n: int) -> list[Any]:
        seen: list[Any] = []
        for _ in range(n):
            seen += collector.step(explore=True)
            agent.learn(collector.n_total_env_steps)
            seen.append((collector._obs.tolist(), collector.take_metrics()))
        return seen

    agent, collector = make()
    run(agent, collector, 14)
    state = {
        "agent": agent.state_dict(),
        "experience": agent.experience(),
        "collector": collector.state_dict(),
        "globals": globals_state(),
    }
    Checkpoints(tmp_path).save(state, collector.n_total_env_steps)
    expected = run(agent, collector, 20)
    level = agent.levels[-1]
    assert (level.n_updates if isinstance(level, PolicyLevel) else level.learner.last_fit) > 20

    agent, collector = make()
    state = Checkpoints(tmp_path).load(CPU)
    agent.load_state_dict(state["agent"])
    agent.load_experience(state["experience"])
    collector.load_state_dict(state["collector"])
    restore_globals(state["globals"])
    assert run(agent, collector, 20) == expected


def test_nothing_waits_and_nothing_is_copied_but_once_in_some_steps() -> None:
    with FakeGPU() as gpu:
        agent = make_agent(SAC_DEBUG, MAZE, 3, CUDA)
        collector = DeviceCollector(make_torch_vector_env(MAZE, 3, CUDA, max_steps=9), agent, seed=0)
        for _ in range(15):
            collector.step(explore=True)
            agent.learn(collector.n_total_env_steps)
        collector.step(explore=True)
        with gpu.counting() as events:
            for _ in range(15):  # episodes end in some of them
                collector.step(explore=True)
        assert (events.syncs, events.copies) == ([], []), str(events)
        with gpu.counting() as events:
            episodes = collector.step(explore=True)
        assert (len(events.syncs), events.copies) == (1, []), str(events)
        assert [(e.env_id, e.length, e.n_total_env_steps) for e in episodes] == [
            (i, 9, n) for n in (54, 81) for i in range(3)
        ]
        level = agent.levels[0]
        with gpu.counting() as events:
            level._updates(2)
        assert (events.syncs, events.copies) == ([], []), str(events)


class Count(TorchDispatchMode):
    """Counts operations."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def test_a_step_is_as_many_operations_with_any_number_of_environments() -> None:
    counts = []
    for n_envs in (4, 64):
        agent = make_agent(replace(SAC_DEBUG, learning=replace(SAC_DEBUG.learning, n_random_steps=0)), MAZE, n_envs)
        collector = DeviceCollector(make_torch_vector_env(MAZE, n_envs, max_steps=4), agent, seed=0)
        for _ in range(3):
            collector.step(explore=True)
        with Count() as count:
            for _ in range(6):  # with an end, and a reset
                collector.step(explore=True)
            agent.levels[0].replay.sample(8)
        counts.append(count.n)
    assert counts[0] == counts[1]


def test_episodes_are_played_from_their_beginning_and_cut_off() -> None:
    agent = make_agent(Random(), MAZE, 2)
    collector = DeviceCollector(make_torch_vector_env(MAZE, 2, max_steps=6), agent, seed=0, learn=False)
    collector.step(explore=False)
    assert [e.length for e in collector.collect_episodes(3)] == [6, 6, 6]
    with pytest.warns(RuntimeWarning, match="had not ended after 4 steps"):
        assert [e.length for e in collector.collect_episodes(3, max_steps=4)] == [4, 4, 4]
    assert collector.collect_episodes(3, stop=lambda: True) == []


def test_episodes_that_ended_before_are_not_counted() -> None:
    agent = make_agent(Random(), MAZE, 2)
    env = make_torch_vector_env(MAZE, 2, max_steps=6)
    collector = DeviceCollector(env, agent, seed=0, learn=False, read_every=16)
    for _ in range(7):
        assert collector.step(explore=False) == []
    assert all(episode.n_total_env_steps > 14 for episode in collector.collect_episodes(4))
    with pytest.raises(ValueError, match="read_every is 0"):
        DeviceCollector(env, agent, seed=0, read_every=0)


class Broken(Mazes):
    """Mazes that return another observation or reward at some step."""

    wrong: dict[str, float]

    def step(self, actions: Tensor) -> Any:
        step = super().step(actions)
        values = {name: getattr(step, name).clone() for name in self.wrong}
        for name, value in self.wrong.items():
            values[name][1] = value
        return step._replace(**values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"obs": np.nan}, r"the observation of environment 1 is .*nan.*, expected finite numbers in float32"),
        ({"reward": np.inf}, r"the reward of environment 1 is .*inf.*, expected finite numbers"),
    ],
    ids=["observation", "reward"],
)
def test_numbers_that_are_not_finite_are_faults(wrong: dict[str, float], message: str) -> None:
    env = Broken(2, "simple")
    collector = DeviceCollector(env, make_agent(Random(), MAZE, 2), seed=0)
    env.wrong = {}
    collector.step(explore=True)
    env.wrong = wrong
    with pytest.raises(Fault, match=message):
        collector.step(explore=True)
    with pytest.raises(Fault, match=message):  # what came after the last checkpoint is not to be kept
        collector.state_dict()


def test_a_reset_that_is_not_finite_is_a_fault() -> None:
    class Unknown(Mazes):
        def reset(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().reset(*args, **kwargs) * torch.tensor([[1.0], [np.nan]])

    with pytest.raises(Fault, match=r"the first observation of environment 1 is .*nan"):
        DeviceCollector(Unknown(2, "simple"), make_agent(Random(), MAZE, 2), seed=0)


def test_a_step_that_failed_is_tried_again_with_the_same_actions() -> None:
    class Failing(Mazes):
        fails = False

        def step(self, actions: Tensor) -> Any:
            if self.fails:
                raise OSError("the simulator is gone")
            return super().step(actions)

    collectors = []
    for fails in (False, True):
        agent = make_agent(SPLATES_DEBUG, MAZE, 4)
        env = Failing(4, "simple")
        collector = DeviceCollector(env, agent, seed=0)
        collector._levels.reset(collector._carry, torch.tensor([True, False, True, False]))
        seed_globals(1)
        for i in range(6):
            if i == 2:  # skills have begun at different steps
                over = torch.tensor([True, False, False, False])
                collector._levels.reset(collector._carry, over)
                collector._carry.n_due = [int((own.remaining == 0).sum()) for own in collector._carry.levels]
            env.fails = fails and i == 3
            if env.fails:
                with pytest.raises(Fault, match="the simulator is gone"):
                    collector.step(explore=True)
                env.fails = False
            collector.step(explore=True)
        collectors.append(collector)
    for own, other in zip(*(collector._carry.levels for collector in collectors), strict=True):
        assert torch.equal(own.remaining, other.remaining)
        assert torch.equal(own.action, other.action)
    assert torch.equal(collectors[0]._obs, collectors[1]._obs)


def test_what_cannot_be_on_a_device_is_named() -> None:
    env = make_torch_vector_env("SwingUpPendulum-v0", 2)
    imagining = make_agent(MBPO.preset("debug"), "SwingUpPendulum-v0", 2)
    with pytest.raises(TypeError, match=r"ImaginingLevel reads its replay .* use HostVector"):
        DeviceCollector(env, imagining, seed=0)
    assert host_only(make_agent(SAC_DEBUG, MAZE, 2)) is None

    class Own(PolicyLevel):
        def observe(self, transitions: Batch, env_ids: Any) -> None:
            super().observe(transitions, env_ids)

    own = make_agent(SAC_DEBUG, MAZE, 2)
    own.levels[0].__class__ = Own
    assert host_only(own) == "Own keeps its transitions in the memory of the host"
    slow = make_agent(GOALS_DEBUG, MAZE, 2)
    slow.levels[-1].duration = 2
    assert "actions of PolicyLevel last for 2 steps" in str(host_only(slow))
    with pytest.raises(ValueError, match="action space is Box"):
        DeviceCollector(env, make_agent(SAC_DEBUG, MAZE, 2), seed=0)
    with pytest.raises(ValueError, match="there are 2 environments, expected 3"):
        DeviceCollector(env, make_agent(SAC_DEBUG, "SwingUpPendulum-v0", 3), seed=0)


# ------------------------------------------------------------------ several levels


def stored(rows: Batch) -> set[tuple[float, ...]]:
    """Transitions with their commands, as numbers."""
    info = rows.info
    parts = [rows.obs, rows.act, rows.rew, rows.terminated, rows.truncated, rows.obs_next, info.duration]
    if "command" in info:
        parts += [info.command[name] for name in ("action", "obs", "elapsed", "remaining")]
    return as_set([np.asarray(part, np.float64).reshape(len(rows.obs), -1) for part in parts])


def as_set(columns: list[np.ndarray]) -> set[tuple[float, ...]]:
    return {tuple(row) for row in np.concatenate(columns, 1).round(4).tolist()}


def at_random(config: Any) -> Any:
    """The settings with random actions and skills, and without learning."""
    exploration = replace(config.exploration, n_random_steps=10**6)
    policy = replace(config.policy, n_random_steps=10**6)
    return replace(config, exploration=exploration, policy=policy)


@pytest.mark.parametrize("skills", [{}, {"n_skills": 3, "state": ("observation",)}], ids=["continuous", "discrete"])
def test_skills_are_stored_and_read_as_in_numpy(skills: dict[str, Any]) -> None:
    """Skills of 4 steps, some of which the end of an episode of 7 cuts short."""
    model = replace(SPLATES_DEBUG.skills, newest=1.0, n_first=10**6)
    config = replace(at_random(SPLATES_DEBUG), skills=model, **skills)
    (agent, collector), (other, there) = make_pair(config, MAZE, max_steps=7)
    played(agent, collector, 24)
    played(other, there, 24)
    level, on_device = agent.levels[1], other.levels[1]
    rows = stored(level.replay.all())
    assert len(rows) == 72
    assert stored(on_device.replay.all()) == rows

    drawn = []
    for one in (level, on_device):
        segments = one.method.segments(one.replay, 3000, one.log_prob)
        names = [name for name in ("obs", "act", "obs_next", "rew") if name in segments]
        drawn.append(as_set([segments[name].double().reshape(len(segments.obs), -1).numpy() for name in names]))
    assert ("rew" in segments) == bool(skills)
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3 * 3  # one whole skill in each episode


def test_goals_of_hindsight_are_reached_later_under_the_same_command() -> None:
    (_, _), (agent, collector) = make_pair(at_random(GOALS_DEBUG), MAZE, max_steps=7)
    played(agent, collector, 24)
    level = agent.levels[1]
    hindsight, replay = level.relabel, level.replay
    rows, index = replay.sample(500)
    batch = Batch(rew=rows.rew, index=index, command=rows.info.command)
    goals = hindsight._reached(batch, replay)
    everything = replay.all()
    reached = hindsight.goals.achieved(everything.obs_next)
    later = set()
    for i, goal in enumerate(goals):
        (place,) = (replay.indices() == index[i]).nonzero()[:, 0].tolist()
        steps, here = [], place
        while here < len(everything.obs) and len(steps) < batch.command.remaining[i]:
            steps.append(reached[here])
            if everything.truncated[here]:
                break
            here += 3
        (which,) = ((torch.stack(steps) - goal).abs().amax(1) < 1e-6).nonzero()[:1, 0].tolist()
        later.add(which)
    assert later == set(range(GOALS_DEBUG.duration))


def test_transitions_of_a_fit_are_those_in_numpy() -> None:
    config = PETS.preset("debug")
    config = replace(config, learning=replace(config.learning, n_random_steps=10**6))
    (agent, collector), (other, there) = make_pair(config, MAZE, max_steps=7)
    played(agent, collector, 20)
    played(other, there, 20)
    host, found = (x.levels[0].learner.transitions(x.levels[0].replay) for x in (agent, other))
    everything = torch.arange(60)
    assert len(found) == len(host) == 60
    names = ("obs", "act", "rew", "obs_next", "terminated", "last")
    sets = [as_set([x.take(everything)[k].double().reshape(60, -1).numpy() for k in names]) for x in (host, found)]
    assert sets[0] == sets[1]
    ahead, follows = found.ahead(everything, 4)
    rows = found.take(everything)
    for i in range(60):
        for k in range(1, 4):
            inside = i + 3 * k < 60 and not any(rows.last[i + 3 * j] for j in range(k))
            assert bool(follows[i, k]) == inside
            assert not inside or int(ahead[i, k]) == i + 3 * k
    for moments in (x.moments(lambda data: {"obs": Moments.of(data.obs)})["obs"] for x in (host, found)):
        torch.testing.assert_close(moments.mean, rows.obs.double().mean(0), check_dtype=False)


def learning(device: torch.device, n_steps: int) -> tuple[Hierarchy, DeviceCollector, list[Any]]:
    """SPlaTES after some steps, and its actions."""
    agent = make_agent(SPLATES_DEBUG, MAZE, 3, device)
    env = make_torch_vector_env(MAZE, 3, device, max_steps=9)
    collector, actions = DeviceCollector(env, agent, seed=0, read_every=50), []
    for _ in range(n_steps):
        collector.step(explore=True)
        actions.append(collector._carry.levels[-1].action.tolist())
        agent.learn(collector.n_total_env_steps)
    return agent, collector, actions


def test_several_levels_on_a_gpu() -> None:
    """They do what they do on a CPU; a step waits for the numbers of actions that ended, and twice in planning."""
    _, _, expected = learning(CPU, 14)
    with FakeGPU() as gpu:
        agent, collector, actions = learning(CUDA, 14)
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-4)
        counts = []
        for _ in range(6):
            with gpu.counting() as events:
                collector.step(explore=True)
            counts.append(sum("stacked/graphs.py" not in event for event in events.syncs))  # captures happen once
            assert events.copies == [], str(events)
        assert min(counts) == 1
        assert max(counts) <= 3
        skills = agent.levels[1]
        learner = skills.method.learner
        learner.config = replace(learner.config, report_every=10**6, refresh_every=10**6)
        n_updates = learner.n_updates
        with gpu.counting() as events:
            skills.method.learn(skills.replay, collector.n_total_env_steps + 24, skills.log_prob)
        assert learner.n_updates > n_updates
        assert events.copies == [], str(events)
        assert all("_linalg_eigh" in event for event in events.syncs), str(events)


def test_predicted_returns_are_settled_as_in_numpy() -> None:
    host, there = Forecasts(5, 0.9), TensorForecasts(5, 0.9, CPU)
    rng = np.random.default_rng(0)
    for _ in range(60):
        ids = np.flatnonzero(rng.random(5) < 0.5)
        predicted = np.where(rng.random(len(ids)) < 0.3, np.nan, rng.normal(size=len(ids))).astype(np.float32)
        host.open(ids, predicted, 3)
        there.open(torch.as_tensor(ids), torch.as_tensor(predicted), 3)
        rewards, terminated, truncated = rng.normal(size=5), rng.random(5) < 0.1, rng.random(5) < 0.1
        settled, *expected = host.step(np.arange(5), rewards, terminated, truncated)
        done = torch.as_tensor(terminated | truncated)
        found = there.step(torch.as_tensor(rewards), torch.as_tensor(terminated), done)
        for a, b in zip(expected, found, strict=True):
            assert b.isfinite().nonzero()[:, 0].tolist() == settled.tolist()
            np.testing.assert_allclose(b[settled], a)


def test_means_are_over_finite_values() -> None:
    means = FiniteMeans()
    means.add({"a": torch.tensor([1.0, torch.nan, 3.0]), "b": torch.full((2,), torch.nan)})
    again = FiniteMeans()
    again.load_state_dict(means.state_dict())
    again.add({"a": torch.tensor([8.0])})
    assert again.take() == {"a": 4.0}
    assert again.take() == {}


# ------------------------------------------------------------------ replay


def rows_of(t: int, n_envs: int, done: bool = False) -> Batch:
    """Transitions in which everything is the number of the step, or ten times that of the environment and the step."""
    value = torch.arange(n_envs) * 10.0 + t
    return Batch(
        obs=value[:, None],
        act=value[:, None],
        rew=value.double(),
        terminated=torch.zeros(n_envs, dtype=torch.bool),
        truncated=torch.full((n_envs,), done),
        obs_next=value[:, None] + 1,
        info=Batch(duration=torch.ones(n_envs, dtype=torch.int64), command=Batch(action=value[:, None].repeat(1, 2))),
    )


def test_a_replay_keeps_the_newest_and_knows_what_follows() -> None:
    replay = TensorReplay(9, 2, device=CPU)  # four for each
    for t in range(6):
        replay.add(rows_of(t, 2, done=t == 4), torch.arange(2))
    assert (len(replay), replay.n_added) == (8, 12)
    rows = replay.all()
    assert rows.rew.tolist() == [2, 12, 3, 13, 4, 14, 5, 15]
    assert (rows.obs.dtype, rows.info.duration.dtype, rows.truncated.dtype) == (torch.float32, torch.int64, torch.bool)
    assert rows.info.command.action.shape == (8, 2)
    index = replay.indices()
    one = torch.ones(8, dtype=torch.int64)
    follows = replay.follows(index, one)
    assert follows.tolist() == [True] * 4 + [False] * 4  # the episode ended at 4, nothing follows 5
    later = replay.later(index, one)[follows]
    assert replay.column("rew", later).tolist() == [3, 13, 4, 14]
    assert replay.follows(index, -one).tolist() == [False] * 2 + [True] * 4 + [False] * 2
    batch, drawn = replay.sample(200)
    assert set(batch.rew.tolist()) == {2, 12, 3, 13, 4, 14, 5, 15}
    assert torch.equal(batch.obs_next, replay.column("obs_next", drawn))
    assert set(replay.rows(replay.newest(100, 0.5)).rew.tolist()) == {4, 14, 5, 15}
    assert replay.steps_left(index, 5).tolist() == [2, 2, 1, 1, 0, 0, 0, 0]
    assert replay.steps_left(index, 1).tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    replay.truncate(torch.tensor([True, False]))
    last = rows_of(6, 2)
    last.terminated[1] = True
    replay.add(last, torch.arange(2))
    transitions = TensorTransitions(replay, 1)
    transitions.update()
    assert transitions.terminated().tolist() == [7]
    assert transitions.take(torch.arange(8)).last.tolist() == [False, False, True, True, True, False, False, True]
    assert replay.follows(replay.indices()[-4:-2], one[:2]).tolist() == [False, True]


def test_columns_are_those_of_the_rows_and_read_alone() -> None:
    replay = TensorReplay(8, 2, device=CPU)
    for t in range(6):
        replay.add(rows_of(t, 2, done=t == 4), torch.arange(2))
    rows, index = replay.all(), torch.tensor([[3, 1, 7], [0, 0, 2]])
    for name in ("obs", "rew", "terminated", "truncated", "obs_next"):
        assert torch.equal(replay.column(name), rows[name])
        assert torch.equal(replay.column(name, index), replay.rows(index)[name])
        assert replay.column(name).dtype == rows[name].dtype
    action, duration, terminated = replay.columns(("info.command.action", "info.duration", "terminated"), index)
    assert torch.equal(action, replay.rows(index).info.command.action)
    assert torch.equal(duration, replay.rows(index).info.duration)
    assert torch.equal(terminated, replay.rows(index).terminated)
    info = replay.column("info", index)
    assert list(info.get_keys()) == ["duration", "command"]
    assert torch.equal(info.command.action, action)
    assert replay.column("rew", index).untyped_storage().nbytes() == 6 * 4
    assert action.untyped_storage().nbytes() == 6 * 2 * 4
    with pytest.raises(KeyError):
        replay.column("infos", index)


def ends(replay: Any) -> dict[float, tuple[bool, bool]]:
    """Flags `terminated` and `truncated` of stored transitions by their rewards."""
    rows = replay.all()
    flags = zip(rows.terminated.tolist(), rows.truncated.tolist(), strict=True)
    return dict(zip(rows.rew.tolist(), flags, strict=True))


@pytest.mark.parametrize("size", [12, 30, 400])
@pytest.mark.parametrize("together", [True, False], ids=["together", "some alone"])
def test_truncated_transitions_are_those_of_a_replay_on_the_host(size: int, together: bool, tmp_path: Path) -> None:
    """Truncations before the first transition, after a last one, twice, and of saved transitions; with restarts."""
    rng, checkpoints = np.random.default_rng(size), Checkpoints(tmp_path)
    host, there = Replay(size, 3), TensorReplay(size, 3, device=CPU)
    n_marked = 0
    for t in range(120):
        ids = np.flatnonzero(np.repeat(rng.random(1), 3) < 0.7 if together else rng.random(3) < 0.6)
        if t > 2 and len(ids):
            value = np.zeros((len(ids), 1), np.float32)
            terminated, truncated = rng.random((2, len(ids))) < 0.1
            row = Batch(obs=value, act=value, obs_next=value, info=Batch(duration=ids), rew=3.0 * t + ids)
            row.terminated, row.truncated = terminated, truncated
            host.add(row, ids)
            there.add(row.to_torch(), torch.from_numpy(ids))
        if rng.random() < 0.5:
            over = rng.random(3) < 0.4
            host.truncate(np.flatnonzero(over).tolist())
            there.truncate(torch.from_numpy(over))
        if t % 9 == 0:
            checkpoints.save(there.state_dict(), t)
        if t % 18 == 0:
            there = TensorReplay(size, 3, device=CPU)
            there.load_state_dict(checkpoints.load(CPU))
        if len(there):
            expected, found = ends(host), ends(there)
            both = expected.keys() & found.keys()  # where only some are added, the rings keep others
            assert both == found.keys() if together else both
            assert {key: expected[key] for key in both} == {key: found[key] for key in both}
            assert len(there.marked) <= len(there)
            n_marked += len(there.marked)
    assert n_marked > 20


def test_a_truncation_is_of_no_transition_that_was_overwritten() -> None:
    replay = TensorReplay(4, 2, device=CPU)
    replay.add(rows_of(0, 2), torch.arange(2))
    for t in range(1, 5):
        replay.add(rows_of(t, 2)[:1], torch.arange(1))
    replay.truncate(torch.tensor([False, True]))
    assert not replay.all().truncated.any()
    replay.truncate(torch.tensor([True, True]))
    assert replay.all().truncated.tolist() == [False, False, False, True]


@pytest.mark.parametrize("duration", [1, 3])
def test_a_gpu_waits_as_often_for_transitions_whatever_their_number(
    duration: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never if all count; else for their numbers, in all and by block. Terminations are counted in any case."""
    monkeypatch.setattr("layeredrl.world_model.transitions.CHUNK", 16)
    with FakeGPU() as gpu:
        for n in (10, 40, 100):
            replay = TensorReplay(150, 2, device=CUDA)
            for t in range(n):
                replay.add(rows_of(t, 2, done=True).to_torch(device=CUDA), torch.arange(2, device=CUDA))
            found = TensorTransitions(replay, duration)
            replay.ring.column("integers")[:, replay._spans["terminated"][1]] = 1
            with gpu.counting() as events:
                found.update()
                found.moments(lambda rows: {"obs": Moments.of(rows.obs)})
            assert len(found) == min(2 * n, 150)
            assert len(events.syncs) == (0 if duration == 1 else 2), str(events)
            with gpu.counting() as events:
                assert len(found.terminated()) == len(found)
            assert len(events.syncs) == 1, str(events)


def test_a_truncation_waits_for_a_gpu_once() -> None:
    with FakeGPU() as gpu:
        replay = TensorReplay(8, 2, device=CUDA)
        for _ in range(3):
            replay.add(rows_of(0, 2).to_torch(device=CUDA), torch.arange(2, device=CUDA))
        over = torch.tensor([True, False], device=CUDA)
        with gpu.counting() as events:
            replay.truncate(over)
        assert (len(events.syncs), events.copies) == (1, []), str(events)
        with gpu.counting() as events:
            replay.add(replay.rows(torch.arange(1, device=CUDA)), torch.arange(1, device=CUDA))
        assert (events.syncs, events.copies) == ([], []), str(events)


def test_rows_of_some_environments_have_no_known_successors() -> None:
    replay = TensorReplay(8, 2, device=CPU)
    replay.add(rows_of(0, 2)[1:], torch.tensor([1]))
    assert replay.all().rew.tolist() == [10]
    with pytest.raises(ValueError, match="for some environments alone, expected all at once"):
        replay.follows(replay.indices(), torch.ones(1, dtype=torch.int64))


def test_a_replay_takes_the_place_of_an_empty_one() -> None:
    host = Replay(8, 2, seed=3)
    there = TensorReplay.like(host, CPU)
    assert (there.ring.size, there.n_envs) == (8, 2)
    assert TensorReplay.like(there, CPU) is there
    row = {name: np.zeros((1, 1), np.float32) for name in ("obs", "act", "obs_next")}
    over = {name: np.zeros(1, bool) for name in ("terminated", "truncated")}
    host.add(Batch(**row, **over, rew=np.zeros(1), info=Batch()), np.arange(1))
    with pytest.raises(ValueError, match="has 1 transitions, expected none"):
        TensorReplay.like(host, CPU)


def test_a_state_of_another_replay_is_refused() -> None:
    host = make_agent(SAC_DEBUG, MAZE, 2).levels[0].replay
    with pytest.raises(ValueError, match="in the memory of the host, expected one on a device"):
        TensorReplay(8, 2, device=CPU).load_state_dict(host.state_dict())
    state = TensorReplay(8, 2, device=CPU).state_dict()
    del state["marked"]
    with pytest.raises(ValueError, match=r"the replay's state has the keys device, .*, expected device, .*, marked, "):
        TensorReplay(8, 2, device=CPU).load_state_dict(state)
    with pytest.raises(ValueError, match="size is 1, expected at least one transition for each of 2"):
        TensorReplay(1, 2, device=CPU)
