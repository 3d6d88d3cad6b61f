"""The trainer: its logs and schedules, determinism, and evaluation and pictures that do not change training."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import envs  # noqa: F401  registers the tasks
from agents.pets import PETS
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.storage import Checkpoints
from layeredrl.task import TaskSpec
from layeredrl.trainer import Trainer, TrainerConfig
from tests.envs.counter import CounterEnv
from tests.recording import RecordingLogger, RecordingRandomLevel

PREFIXES = ("env/", "model/", "plan/", "skill/", "time/", "eval/")


class GlobalLevel(RecordingRandomLevel):
    """Draws from the global generators and learns a random number, as parts from dependencies do."""

    def act(self, obs, command, memory, *, explore, generator):
        decision = super().act(obs, command, memory, explore=explore, generator=generator)
        decision.action.copy_(torch.rand_like(decision.action) * np.random.rand())  # noqa: NPY002
        return decision

    def learn(self, n_total_env_steps):
        return {"model/draw": float(torch.rand(()))} if n_total_env_steps % 12 == 0 else {}


def counters(n_envs=3):
    make = partial(CounterEnv, 7, "alternate", random_length=True)
    return SyncVectorEnv([make] * n_envs, autoreset_mode=AutoresetMode.DISABLED)


def train(seed=0, n_envs=3, level=RecordingRandomLevel, save=None, evaluating=True, draw=None, **settings):
    """Return the trainer after its run."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    env = counters(n_envs)
    task = TaskSpec(env.single_observation_space, env.single_action_space, n_envs)
    agent = Hierarchy([level(env.single_action_space, n_envs)], task)

    def evaluate(n):
        return Collector(counters(2), agent, seed=99, learn=False).collect_episodes(n)

    config = TrainerConfig(**{"n_total_env_steps": 200, "eval_every": 30, "eval_episodes": 4} | settings)
    trainer = Trainer(
        agent,
        Collector(env, agent, seed=seed),
        RecordingLogger(),
        config,
        evaluate=evaluate if evaluating else None,
        save=save,
        draw=draw,
    )
    trainer.run()
    return trainer


def records(trainer, prefixes=PREFIXES):
    """Records under some prefixes, without clocks."""
    result = []
    for n, metrics in trainer.logger.records:
        kept = {k: v for k, v in metrics.items() if k.startswith(prefixes) and not k.startswith("time/")}
        if kept:
            result.append((n, kept))
    return result


def assert_same_trajectory(a, b):
    assert len(a) == len(b) > 0
    for key in ("obs", "act", "rew", "obs_next", "terminated", "truncated"):
        np.testing.assert_array_equal(a.all()[key], b.all()[key])


def test_episodes_are_logged_at_the_step_of_their_end():
    trainer = train(evaluating=False)
    assert trainer.collector.n_total_env_steps == 201  # the first multiple of 3 from 200 on
    assert len(trainer.logger.records) == len(trainer.episodes) > 20
    for (n, metrics), episode in zip(trainer.logger.records, trainer.episodes, strict=True):
        assert set(metrics) == {"env/episode_return", "env/episode_length", "time/seconds", "time/cpu_seconds"}
        assert n == episode.n_total_env_steps
        assert metrics["env/episode_length"] == episode.length
        assert metrics["env/episode_return"] == episode.episode_return == sum(range(1, episode.length + 1))
    steps = [n for n, _ in trainer.logger.records]
    assert steps == sorted(steps)
    assert all(n % 3 == 0 for n in steps)
    clock = [metrics["time/seconds"] for _, metrics in trainer.logger.records]
    assert clock == sorted(clock)
    for i in range(3):  # an environment has taken a third of all steps, and they are those of its episodes
        ends = [(episode.n_total_env_steps, episode.length) for episode in trainer.episodes if episode.env_id == i]
        np.testing.assert_array_equal([n for n, _ in ends], 3 * np.cumsum([length for _, length in ends]))


def test_the_same_seed_gives_the_same_metrics():
    first, again, other = train(0), train(0), train(1)
    assert records(first) == records(again)
    assert records(first) != records(other)
    assert_same_trajectory(first.agent.levels[0].replay, again.agent.levels[0].replay)
    assert first.episodes == again.episodes


@pytest.mark.parametrize("level", [RecordingRandomLevel, GlobalLevel])
def test_evaluation_and_pictures_do_not_change_training(level):
    def draw(n):
        torch.rand(3), np.random.rand()  # noqa: NPY002

    plain = train(level=level, evaluating=False)
    evaluated, drawn = train(level=level), train(level=level, evaluating=False, draw=draw, pictures_every=20)
    assert len(records(evaluated, "eval/")) == 6
    for other in (evaluated, drawn):
        assert_same_trajectory(other.agent.levels[0].replay, plain.agent.levels[0].replay)
        assert records(other, ("env/", "model/")) == records(plain)
        assert other.episodes == plain.episodes


@pytest.mark.parametrize(("n_envs", "every"), [(1, 30), (3, 20), (4, 1), (8, 1000)])
def test_evaluations_and_checkpoints_come_in_time(n_envs, every):
    saved = []
    trainer = train(
        n_envs=n_envs,
        save=lambda trainer: saved.append(trainer.collector.n_total_env_steps) or True,
        n_total_env_steps=100,
        eval_every=every,
        checkpoint_every=every,
        eval_episodes=2,
    )
    due, last = [], 0
    total = -(-100 // n_envs) * n_envs
    for n in range(n_envs, total + 1, n_envs):
        if n >= last + every:
            due.append(n)
            last = n
    assert [n for n, _ in records(trainer, "eval/")] == due
    assert saved == due + ([] if due and due[-1] == total else [total])
    assert all(metrics.keys() == {"eval/episode_return"} for _, metrics in records(trainer, "eval/"))


@pytest.mark.parametrize(("n_envs", "every"), [(1, 30), (3, 20), (4, 1), (8, 1000), (3, 0)])
def test_pictures_come_in_time_and_at_the_end(n_envs, every):
    drawn = []
    trainer = train(n_envs=n_envs, draw=drawn.append, n_total_env_steps=100, pictures_every=every, evaluating=False)
    total = trainer.collector.n_total_env_steps
    crossed = [n for n in range(n_envs, total + 1, n_envs) if every and n // every > (n - n_envs) // every]
    assert drawn == (sorted({*crossed, total}) if every else [])


def test_a_longer_run_draws_at_the_same_steps():
    whole, parts = [], []
    train(draw=whole.append, n_total_env_steps=100, pictures_every=40)
    trainer = train(draw=parts.append, n_total_env_steps=50, pictures_every=40)
    trainer.run()  # it is finished
    trainer.config = TrainerConfig(n_total_env_steps=100, pictures_every=40)
    trainer.run()
    assert whole == [42, 81, 102]
    assert parts == [42, 51, 81, 102]


def test_evaluation_is_the_mean_return():
    trainer = train(eval_every=150, eval_episodes=6)
    ((_, logged),) = records(trainer, "eval/")
    episodes = Collector(counters(2), trainer.agent, seed=99, learn=False).collect_episodes(6)
    assert logged["eval/episode_return"] == pytest.approx(np.mean([episode.episode_return for episode in episodes]))


@pytest.mark.parametrize(
    "name",
    ["n_total_env_steps", "eval_every", "eval_episodes", "eval_max_steps", "checkpoint_every", "pictures_every"],
)
def test_settings_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} is -1, expected at least"):
        TrainerConfig(**{name: -1})


def test_a_fault_is_raised_after_saving():
    saved = []
    with pytest.raises(Fault):
        train(level=Failing, save=lambda trainer: saved.append(trainer.collector.n_total_env_steps) or True)
    assert saved == [60]


class Failing(RecordingRandomLevel):
    def learn(self, n_total_env_steps):
        if n_total_env_steps >= 60:
            raise Fault
        return {}


def test_training_stops_after_the_step_of_the_request():
    saved, stop = [], iter([False] * 10 + [True])
    env = counters(3)
    task = TaskSpec(env.single_observation_space, env.single_action_space, 3)
    agent = Hierarchy([RecordingRandomLevel(env.single_action_space, 3)], task)
    trainer = Trainer(
        agent,
        Collector(env, agent, seed=0),
        RecordingLogger(),
        TrainerConfig(n_total_env_steps=200),
        save=lambda trainer: saved.append(trainer.collector.n_total_env_steps) or True,
        stop=lambda: next(stop),
    )
    trainer.run()
    assert not trainer.finished
    assert saved == [trainer.collector.n_total_env_steps] == [30]


@pytest.mark.filterwarnings("ignore:an episode is closed")  # counters that alternate do not repeat themselves
@pytest.mark.parametrize("evaluating", [False, True])
def test_training_ends_early_at_a_return_and_stays_ended_after_resuming(evaluating, tmp_path):
    whole = train(evaluating=evaluating)
    scores = [(n, m["eval/episode_return"]) for n, m in records(whole, "eval/")]
    if not evaluating:
        scores = [(episode.n_total_env_steps, episode.episode_return) for episode in whole.episodes]
    goal = max(score for _, score in scores)
    first = next(n for n, score in scores if score >= goal)
    drawn, saved = [], []
    stopped = train(
        evaluating=evaluating,
        stop_at_return=goal,
        draw=drawn.append,
        save=lambda trainer: saved.append(trainer.collector.n_total_env_steps) or True,
    )
    assert stopped.finished
    assert drawn[-1] == saved[-1] == stopped.collector.n_total_env_steps == first < 201
    assert records(stopped) == [record for record in records(whole) if record[0] <= first]
    resumed = train(evaluating=evaluating, n_total_env_steps=1, stop_at_return=goal)
    assert not resumed.goal_reached
    resumed.config = stopped.config
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(stopped.state_dict(), first)
    resumed.load_state_dict(checkpoints.load())
    resumed.run()
    assert resumed.finished
    assert resumed.collector.n_total_env_steps == first


def test_an_evaluation_that_was_stopped_is_made_when_training_goes_on(tmp_path):
    """The request arrives in the second evaluation, which returns no episodes."""
    requests = []

    def parts():
        env = make_vector_env("Pendulum-v1", 3)  # can be replayed
        task = TaskSpec(env.single_observation_space, env.single_action_space, 3)
        return Collector(env, Hierarchy([RecordingRandomLevel(env.single_action_space, 3)], task), seed=0)

    def trainer(stopped_in):
        n_evaluations = iter(range(100))

        def evaluate(n):
            if next(n_evaluations) == stopped_in:
                requests.append("SIGTERM")
            evaluation = Collector(make_vector_env("Pendulum-v1", n), collector.agent, seed=99, learn=False)
            return evaluation.collect_episodes(n, stop=lambda: bool(requests))

        collector = parts()
        config = TrainerConfig(n_total_env_steps=100, eval_every=30, eval_episodes=1)
        stop = lambda: bool(requests)  # noqa: E731
        return Trainer(collector.agent, collector, RecordingLogger(), config, evaluate=evaluate, stop=stop)

    whole, first = trainer(None), trainer(1)
    whole.run()
    first.run()
    assert first.collector.n_total_env_steps == 60
    assert (first.last_eval, len(records(first, "eval/"))) == (30, 1)
    Checkpoints(tmp_path).save(first.state_dict(), 60)
    requests.clear()
    second = trainer(None)
    second.load_state_dict(Checkpoints(tmp_path).load())
    second.run()
    assert records(first) + records(second) == records(whole)


@pytest.mark.filterwarnings("ignore:an episode is closed")
@pytest.mark.parametrize("n_faults", [1, 2])
def test_a_fault_in_an_evaluation_changes_no_other_one(n_faults, tmp_path):
    """It is repeated when the run goes on, and left out if it fails again."""
    drawn, kept, checkpoints = [], [], Checkpoints(tmp_path)
    settings = {"n_total_env_steps": 150, "pictures_every": 30}
    whole = train(draw=drawn.append, **settings)

    def save(trainer):
        checkpoints.save(trainer.state_dict(), trainer.collector.n_total_env_steps)
        return True

    trainer = train(draw=kept.append, save=save, **settings | {"n_total_env_steps": 30})
    failing = Trainer(
        trainer.agent,
        trainer.collector,
        trainer.logger,
        whole.config,
        evaluate=trainer.evaluate,
        save=save,
        draw=kept.append,
    )
    n_left = n_faults

    def evaluate(n):
        nonlocal n_left
        torch.rand(3)
        if failing.collector.n_total_env_steps == 60 and n_left:
            n_left -= 1
            raise Fault("a fault")
        return trainer.evaluate(n)

    failing.evaluate = evaluate
    failing.load_state_dict(checkpoints.load())
    for _ in range(n_faults):
        with pytest.raises(Fault):
            failing.run()
        failing.load_state_dict(checkpoints.load())
    failing.run()
    expected = [record for record in records(whole, "eval/") if n_faults == 1 or record[0] != 60]
    assert records(failing, "eval/") == expected
    assert kept == (drawn if n_faults == 1 else [n for n in drawn if n != 60])


def test_a_return_to_stop_at_is_a_finite_number():
    with pytest.raises(ValueError, match="stop_at_return is nan, expected a finite number or None"):
        TrainerConfig(stop_at_return=float("nan"))


def test_the_score_is_the_last_evaluation_or_the_last_ten_episodes():
    evaluated, alone = train(), train(evaluating=False)
    assert evaluated.score == records(evaluated, "eval/")[-1][1]["eval/episode_return"]
    assert alone.score == np.mean([episode.episode_return for episode in alone.episodes[-10:]])
    assert train(evaluating=False, n_total_env_steps=1, n_envs=1).score in (None, 1.0)


def test_a_state_with_other_keys_is_refused():
    trainer = train(n_total_env_steps=3)
    state = trainer.state_dict()
    for other in ({**state, "more": 1}, {key: state[key] for key in state if key != "episodes"}):
        with pytest.raises(ValueError, match=r"the state has the keys .*, expected .*episodes"):
            trainer.load_state_dict(other)


def train_pets(*, evaluating, seed=0):
    torch.manual_seed(seed)
    task = make_task("ContinuousCartPole-v0", 2)
    agent = PETS.preset("debug").build(task, torch.device("cpu"), seed=seed)
    env = make_vector_env("ContinuousCartPole-v0", 2)

    def evaluate(n):
        short = make_vector_env("ContinuousCartPole-v0", 2, max_episode_steps=10)
        return Collector(short, agent, seed=5, learn=False).collect_episodes(n)

    config = TrainerConfig(n_total_env_steps=60, eval_every=20, eval_episodes=2)
    trainer = Trainer(
        agent, Collector(env, agent, seed=seed), RecordingLogger(), config, evaluate=evaluate if evaluating else None
    )
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def evaluated_pets():
    return train_pets(evaluating=True)


def test_evaluation_does_not_change_pets(evaluated_pets):
    alone = train_pets(evaluating=False)
    assert len(records(evaluated_pets, "eval/")) == 3
    ours, theirs = evaluated_pets.agent.levels[0], alone.agent.levels[0]
    assert_same_trajectory(ours.replay, theirs.replay)
    assert records(evaluated_pets, ("env/", "model/", "plan/")) == records(alone)
    for a, b in zip(ours.world.parameters(), theirs.world.parameters(), strict=True):
        assert torch.equal(a, b)


def test_metrics_of_pets(evaluated_pets):
    logged = evaluated_pets.logger.records
    names = {name for _, metrics in logged for name in metrics}
    assert all(name.startswith(PREFIXES) for name in names)
    assert names >= {"env/episode_return", "env/episode_length", "model/loss", "model/transitions", "plan/score"}
    assert names >= {"eval/episode_return", "time/seconds", "time/cpu_seconds", "time/env_steps_per_second"}
    fits = [n for n, metrics in logged if "model/loss" in metrics]
    assert fits == [20, 40, 60]  # the debug preset's 20 random steps, then every 20
    assert [metrics["model/transitions"] for _, metrics in logged if "model/loss" in metrics] == fits
    steps = [n for n, _ in logged]
    assert steps == sorted(steps)
