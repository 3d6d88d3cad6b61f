"""The learner of a world model: schedules, data, statistics and metrics of both modes, and resuming."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import envs  # noqa: F401  registers the mazes
from agents.dads import DADSAgent
from agents.pets import PETS
from agents.splates import SPlaTESAgent
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.faults import NonFiniteError
from layeredrl.models import FitConfig, Model
from layeredrl.storage import Checkpoints, Replay
from layeredrl.world_model import ModelLearningConfig, OnlineLearningConfig, WorldModelLearner
from layeredrl.world_model import learner as learner_module
from tests.recording import leaves
from tests.world_model.points import E, as_data, fill, known_reward, make_world, push, random_data

FITS = ModelLearningConfig(n_random_steps=12, fit_every=6, first_epochs=4, fit=FitConfig(epochs=2, batch_size=16))
ONLINE = OnlineLearningConfig(n_first=12, batch_size=8, updates_per_segment=4, refresh_every=12, report_every=12)
REWARDS = pytest.mark.parametrize("reward", [known_reward, None], ids=["known", "learned"])


def make(config=FITS, seed=0, *, segment_steps=1, **world):
    return WorldModelLearner(make_world(seed, **world), config, segment_steps=segment_steps, seed=seed)


class Stream:
    """A replay that grows by one step of E environments at a time, and an online learner of it."""

    def __init__(self, learner, size=100):
        self.learner, self.replay, self.n_steps = learner, Replay(size * E, E), 0
        self.reports, self.rows = {}, []

    def draw(self, n):
        return as_data(self.replay.rows(self.replay.newest(n, 1.0)))

    def go(self, n_steps, learn=True):
        for _ in range(n_steps):
            self.n_steps += 1
            fill(self.replay, 1, seed=self.n_steps)
            if learn:
                self.learn(E * self.n_steps)
        return self

    def learn(self, n):
        self.learner.set_n_total_env_steps(n)
        self.rows += list(self.learner.updates(self.draw, self.replay))
        report = self.learner.report()
        if report:
            self.reports[n] = report


# ------------------------------------------------------------------ fits in epochs


def test_fits_are_due_after_the_random_steps_and_then_every_so_many(monkeypatch):
    configs, fit = [], learner_module.fit
    monkeypatch.setattr(
        learner_module,
        "fit",
        lambda model, data, config, **rest: configs.append(config) or fit(model, data, config, **rest),
    )
    learner, fitted = make(), []
    for n in range(E, 40, E):
        learner.set_n_total_env_steps(n)
        if learner.fit_is_due:
            fitted.append(n)
            metrics = learner.fit(random_data(n))
            assert metrics["model/transitions"] == n
            assert np.isfinite(metrics["model/loss"])
    assert fitted == [12, 18, 24, 30, 36]
    assert [(config.epochs, config.batch_size) for config in configs] == [(4, 16)] + 4 * [(2, 16)]
    assert int(learner.dynamics.n_total_env_steps) == 39


def test_the_dynamics_is_fitted_to_encoded_transitions_and_the_objective_to_all_states(monkeypatch):
    data, fitted, learner = random_data(30), [], make()
    data.terminated[:2] = True
    data.last[:5] = True
    fit = learner_module.fit
    monkeypatch.setattr(
        learner_module, "fit", lambda model, rows, *args, **rest: fitted.append(rows) or fit(model, rows, *args, **rest)
    )
    learner.fit(data)
    (rows,) = fitted
    for name, column in (("state", data.obs), ("state_next", data.obs_next), ("act", data.act)):
        assert torch.equal(rows[name], column)
    assert rows.context.shape == (30, 0)
    assert torch.equal(rows.terminated, data.terminated.float())
    states = torch.cat([data.obs, data.obs_next[:5]])  # last states are no transition's first state
    torch.testing.assert_close(learner.world.objective.state_scale, states.std(0, correction=0))


@pytest.mark.parametrize("reward", [pytest.param(known_reward, marks=pytest.mark.slow), None], ids=["known", "learned"])
def test_a_fit_learns_dynamics_and_reward_and_reports_the_holdout(reward):
    settings = FitConfig(batch_size=32, holdout=0.2)
    learner = make(replace(FITS, first_epochs=25, fit=settings, reward_learning_rate=5e-3), reward=reward)
    state, action, none = torch.randn(200, 2), 2 * torch.rand(200, 2) - 1, torch.zeros(200, 0)

    @torch.no_grad()
    def errors():
        mean, truth = learner.dynamics.predict(state, none, action)[0].mean((1, 2)), push(state, action)
        true = known_reward(state, none, action, truth)
        predicted = learner.world.reward(state, none, action, truth)
        moved, gap = (truth - state).square().mean(), (predicted - true).square().mean() / true.var()
        return float((mean - truth).square().mean() / moved), float(gap)

    before = errors()
    metrics = learner.fit(random_data(300))
    after = errors()
    assert after[0] < 0.1 < before[0]
    assert after[1] < (0.1 if reward is None else 1e-6)
    assert ("model/reward_loss" in metrics) == (reward is None)
    assert metrics.get("model/reward_loss", 0.0) < 0.05  # in units of the reward's variance
    assert np.isfinite(metrics["model/holdout_loss"])
    assert not learner.world.training
    assert not learner.dynamics.training


def test_a_first_fit_that_fails_is_made_again(monkeypatch):
    learner = make(reward=None)
    learner.set_n_total_env_steps(12)

    def fail(*args):
        raise NonFiniteError("the loss is not finite")

    with monkeypatch.context() as patched:
        patched.setattr(learner.reward, "fit", fail)
        with pytest.raises(NonFiniteError, match="loss"):
            learner.fit(random_data(12))
    assert learner.fit_is_due
    learner.fit(random_data(12))
    assert not learner.fit_is_due
    learner.set_n_total_env_steps(12 + FITS.fit_every)
    with monkeypatch.context() as patched:
        patched.setattr(learner.reward, "fit", fail)
        with pytest.raises(NonFiniteError, match="loss"):
            learner.fit(random_data(12))
    assert not learner.fit_is_due  # a run goes on with what was learned before


def test_networks_without_a_holdout_take_no_more_steps_than_the_dynamics(monkeypatch):
    """Early stopping bounds the whole fit, whose cost must not grow with the data."""
    fits = replace(FITS, first_epochs=100, fit=FitConfig(batch_size=16, holdout=0.2, patience=1))
    learner, given = make(fits, reward=None), []
    reward_fit, dynamics_fit = learner.reward.fit, learner_module.fit
    results = []
    monkeypatch.setattr(learner.reward, "fit", lambda *args: given.append(args[2]) or reward_fit(*args))
    monkeypatch.setattr(
        learner_module, "fit", lambda *args, **rest: results.append(dynamics_fit(*args, **rest)) or results[-1]
    )
    learner.fit(random_data(300))
    assert given[0].max_steps == results[0].steps + results[0].skipped
    assert results[0].epochs < fits.first_epochs


def test_transitions_need_not_say_which_are_the_last():
    data, learner = random_data(30), make()
    del data.last
    learner.fit(data)
    torch.testing.assert_close(learner.world.objective.state_scale, data.obs.std(0, correction=0))


def test_a_fit_to_no_transitions_changes_nothing():
    learner = make()
    before = leaves(learner.state_dict())
    assert learner.fit(random_data(6)[:0]) == {}
    assert leaves(learner.state_dict()) == before


def test_the_seed_determines_fits():
    states = []
    for seed in (0, 0, 1):
        learner = WorldModelLearner(make_world(), FITS, seed=seed)
        learner.fit(random_data(12))
        states.append(leaves(learner.world.state_dict()))
    assert states[0] == states[1] != states[2]


# ------------------------------------------------------------------ online updates


@pytest.mark.parametrize("ratio", [0, 0.5, 4])
def test_updates_keep_their_ratio_to_the_executed_segments(ratio):
    learner = make(replace(ONLINE, updates_per_segment=ratio), segment_steps=5)
    stream = Stream(learner)
    before = leaves(learner.world.dynamics.network.state_dict())
    for _ in range(20):
        stream.go(1)
        n = E * stream.n_steps
        assert int(learner.dynamics.n_total_env_steps) == n
        assert learner.n_updates == len(stream.rows) == max(math.floor(ratio * (n - 12) / 5), 0)
        if n < 12:
            assert leaves(learner.world.dynamics.network.state_dict()) == before
    assert not learner.dynamics.training
    for rows in stream.rows:
        assert rows.state.shape == rows.state_next.shape == rows.act.shape == (8, 2)
        assert rows.context.shape == (8, 0)


def test_learning_waits_until_there_are_two_transitions():
    learner = make(replace(ONLINE, n_first=1))
    stream = Stream(learner)
    draw = stream.draw
    stream.draw = lambda n: draw(n)[:1]
    stream.go(3)
    assert learner.n_updates == 0
    stream.draw = draw
    stream.go(2)
    assert learner.n_updates == 4 * E  # counted from the first step with enough transitions


def test_updates_without_transitions_are_counted_and_change_nothing():
    learner = make(replace(ONLINE, refresh_every=1000))
    stream = Stream(learner).go(6)
    before, n_updates, n_rows = leaves(learner.dynamics.network.state_dict()), learner.n_updates, len(stream.rows)
    draw = stream.draw
    stream.draw = lambda n: draw(n)[:0]
    stream.go(2)
    assert learner.n_updates == n_updates + 2 * 4 * E
    assert len(stream.rows) == n_rows
    assert leaves(learner.dynamics.network.state_dict()) == before


def test_the_model_is_back_in_evaluation_mode_after_an_error_of_the_caller():
    learner = make(ONLINE)
    stream = Stream(learner).go(6, learn=False)
    learner.set_n_total_env_steps(12)
    list(learner.updates(stream.draw, stream.replay))
    learner.set_n_total_env_steps(18)
    updates = learner.updates(stream.draw, stream.replay)
    next(updates)
    assert learner.dynamics.training
    updates.close()
    assert not learner.dynamics.training


def test_the_learning_rates_fall_linearly():
    config = replace(ONLINE, decay=(30, 50), final_rate=0.2, updates_per_segment=0.2, reward_learning_rate=2e-3)
    learner = make(config, reward=None)
    stream = Stream(learner).go(5, learn=False)
    stream.learn(15)
    for n, factor in ((25, 1), (30, 1), (35, 0.8), (40, 0.6), (50, 0.2), (60, 0.2)):
        stream.learn(n)
        for optimizer, rate in ((learner.optimizer, 1e-2), (learner.reward.optimizer, 2e-3)):
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
                [rate * factor] * len(optimizer.param_groups)
            )


def test_supported_states_are_refreshed_from_time_to_time():
    stream = Stream(make(ONLINE))
    objective = stream.learner.world.objective
    objective.uncertainty_weight = 1.0  # without it, and without a support, nothing depends on the data
    scale, refreshed = objective.state_scale, []
    for _ in range(12):
        before = scale.clone()
        stream.go(1)
        if not torch.equal(scale, before):
            refreshed.append(E * stream.n_steps)
            np.testing.assert_allclose(scale, stream.replay.all().obs_next.std(0), rtol=1e-4)
    assert refreshed == [12, 24, 36]


@pytest.mark.parametrize("latent_dim", [0, 2])
def test_statistics_of_a_learned_reward_and_encoder_follow_the_newest_data(latent_dim):
    learner = make(replace(ONLINE, updates_per_segment=0), reward=None, latent_dim=latent_dim)
    stream = Stream(learner).go(5)
    net, buffers = learner.world.reward_net, dict(learner.dynamics.network.named_buffers())
    before = copy.deepcopy(buffers)
    if latent_dim:
        with torch.no_grad():
            learner.world.encoder.to_state.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    draw = stream.draw

    def shifted(n):
        data = draw(n)
        data.rew += 100
        return data

    stream.draw = shifted
    stream.go(4)
    assert float(net.targets.mean) == pytest.approx(100 + stream.replay.all().rew.mean(), rel=0.02)
    data = draw(1000)
    state, state_next = (learner.world.encode(x)[0] for x in (data.obs, data.obs_next))
    (mean,) = (x.flatten()[:2] for name, x in buffers.items() if "mean" in name)
    assert any(not torch.equal(x, before[name]) for name, x in buffers.items())
    torch.testing.assert_close(mean, state.mean(0), rtol=0.2, atol=0.15)  # of a draw of its own
    torch.testing.assert_close(net.inputs.mean[:2], mean, rtol=0.2, atol=0.15)
    torch.testing.assert_close(learner.dynamics.unit, (state_next - state).std(0), rtol=0.2, atol=0.0)


def test_reports_are_means_of_every_tenth_update(monkeypatch):
    learner = make(replace(ONLINE, updates_per_segment=2), reward=None)
    stream, losses = Stream(learner), {"model/loss": [], "model/reward_loss": []}
    for name, owner, method in (
        ("model/loss", learner.dynamics, "learn"),
        ("model/reward_loss", learner.reward, "step"),
    ):
        kept, original = losses[name], getattr(owner, method)
        monkeypatch.setattr(
            owner, method, lambda *args, kept=kept, original=original: kept.append(original(*args)) or kept[-1]
        )
    updates = learner.updates

    def recorded(draw, replay):
        for rows in updates(draw, replay):
            if learner.measuring:
                learner.record({"number": learner.n_updates})
            yield rows

    learner.updates = recorded
    stream.go(16)
    assert [*stream.reports] == [24, 36, 48]
    first = 0
    for n, report in stream.reports.items():
        last = 2 * (n - 12)
        chosen = [i for i in range(first, last) if i % 10 == 0]
        first = last
        expected = {name: np.mean([float(kept[i]) for i in chosen]) for name, kept in losses.items()}
        assert report == pytest.approx({**expected, "number": np.mean(chosen), "model/updates": last}, rel=1e-5)


# ------------------------------------------------------------------ resuming


@REWARDS
def test_a_learner_resumes_between_fits(reward, tmp_path):
    """Bit for bit: model, optimisers, schedule, and the generator of fits."""
    learner, other = (make(seed=seed, reward=reward) for seed in (0, 1))
    learner.set_n_total_env_steps(12)
    learner.fit(random_data(12))
    Checkpoints(tmp_path).save({"learner": learner.state_dict()}, 12)
    other.load_state_dict(Checkpoints(tmp_path).load()["learner"])
    reports = []
    for one in (learner, other):
        one.set_n_total_env_steps(17)
        assert not one.fit_is_due
        one.set_n_total_env_steps(18)
        assert one.fit_is_due
        reports.append(one.fit(random_data(18)))
    assert reports[0] == reports[1]
    assert leaves(other.state_dict()) == leaves(learner.state_dict())


@pytest.mark.parametrize(
    "world", [{}, {"reward": None}, {"reward": None, "latent_dim": 2}], ids=["known", "reward", "encoder"]
)
def test_a_learner_resumes_amid_online_updates(world, tmp_path):
    """Between two reports, bit for bit."""
    config = replace(ONLINE, decay=(12, 30), updates_per_segment=1)
    stream = Stream(make(config, **world), size=10).go(7)
    Checkpoints(tmp_path).save({"learner": stream.learner.state_dict(), "replay": stream.replay.state_dict()}, 21)
    state = Checkpoints(tmp_path).load()
    stream.reports.clear()
    stream.go(6)

    resumed = Stream(make(config, seed=1, **world), size=10).go(7, learn=False)
    resumed.replay.load_state_dict(state["replay"])
    resumed.learner.load_state_dict(state["learner"])
    resumed.go(6)
    assert resumed.reports == stream.reports
    assert [*stream.reports] == [24, 36]
    found = leaves(resumed.learner.state_dict())
    assert found == leaves(stream.learner.state_dict())
    assert any("optimizer.state.0.exp_avg" in path for path in found)
    assert any("encoder.to_state" in path for path in found) == ("latent_dim" in world)


def test_a_state_of_another_model_is_refused():
    learner, other = make(), make(n_modes=2)
    learner.fit(random_data(12))
    state = learner.state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(state)
    before = copy.deepcopy(leaves(other.optimizer.state_dict()))
    state["world"] = other.world.state_dict()
    with pytest.raises(ValueError, match=r"state of the model's optimizer has exp_avg of shape .*, expected"):
        other.load_state_dict(state)
    assert leaves(other.optimizer.state_dict()) == before


# ------------------------------------------------------------------ one owner


def pointers(state):
    """Addresses of all tensors in a nested state."""
    if isinstance(state, dict | list | tuple):
        return [x for part in (state.values() if isinstance(state, dict) else state) for x in pointers(part)]
    return [state.data_ptr()] if isinstance(state, torch.Tensor) and state.numel() else []


@pytest.mark.parametrize("recipe", [PETS, SPlaTESAgent, DADSAgent])
def test_a_world_model_has_one_owner(recipe, monkeypatch):
    """It is saved once, and its number of environment steps is set once in a step of learning."""
    agent = recipe.preset("debug").build(make_task("Maze2D-Simple-v0", n_envs=2), torch.device("cpu"), seed=0)
    world, calls = agent.levels[0].world, []
    original = world.dynamics.set_n_total_env_steps
    monkeypatch.setattr(world.dynamics, "set_n_total_env_steps", lambda n: calls.append(n) or original(n))
    env = make_vector_env("Maze2D-Simple-v0", 2)
    collector = Collector(env, agent, seed=0)
    for _ in range(3):
        collector.step(explore=True)
        agent.learn(collector.n_total_env_steps)
    env.close()
    assert calls == [2, 4, 6]
    own, saved = set(pointers(world.state_dict())), pointers(agent.state_dict())
    assert len(own) > 4
    assert [saved.count(pointer) for pointer in own] == [1] * len(own)


# ------------------------------------------------------------------ errors


class OtherModel(Model):
    """Not an ensemble."""

    get_log_prob = get_parameters = learn = loss = predict = rollout = sample = None


def test_a_model_that_cannot_learn_is_refused():
    world = make_world()
    world.dynamics = OtherModel()
    with pytest.raises(TypeError, match="the dynamics is OtherModel, expected a ProbabilisticEnsemble to learn"):
        WorldModelLearner(world, FITS)
    with pytest.raises(ValueError, match=r"the dynamics has no optimizer .*create_optimizer=True"):
        make(create_optimizer=False)
    with pytest.raises(
        TypeError, match="the encoder is a LearnedEncoder, which fits do not train, expected an Encoder"
    ):
        make(reward=None, latent_dim=2)


def test_each_mode_needs_its_config():
    with pytest.raises(AssertionError, match="fits need a ModelLearningConfig"):
        make(ONLINE).fit(random_data(12))
    with pytest.raises(AssertionError, match="online updates need an OnlineLearningConfig"):
        Stream(make(FITS)).go(1)


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        *((ModelLearningConfig, {x: 0}, f"{x} is 0") for x in ("n_random_steps", "fit_every", "first_epochs")),
        (ModelLearningConfig, {"replay_size": 0}, "replay_size is 0"),
        (ModelLearningConfig, {"max_failed_plans": -1}, "max_failed_plans is -1"),
        *((c, {"reward_learning_rate": 0.0}, "rate is 0.0") for c in (ModelLearningConfig, OnlineLearningConfig)),
        (ModelLearningConfig, {"termination": "state"}, "termination is 'state', expected one of dynamics, next_state"),
        (ModelLearningConfig, {"caution": 0.2}, "caution is 0.2, expected 0.5: it has an effect only if"),
        (ModelLearningConfig, {"termination": "next_state", "caution": 1.5}, "caution is 1.5"),
        (OnlineLearningConfig, {"reward_learning_rate": math.nan}, "reward_learning_rate is nan"),
        (OnlineLearningConfig, {"n_first": 0}, "n_first is 0, expected at least 1"),
        (OnlineLearningConfig, {"batch_size": 1}, "batch_size is 1, expected at least 2"),
        (OnlineLearningConfig, {"refresh_every": 0}, "refresh_every is 0"),
        (OnlineLearningConfig, {"report_every": 2.5}, "report_every is 2.5"),
        (OnlineLearningConfig, {"newest": 0.0}, "newest is 0.0"),
        (OnlineLearningConfig, {"newest": 1.1}, "newest is 1.1"),
        (OnlineLearningConfig, {"updates_per_segment": -1.0}, "updates_per_segment is -1.0"),
        (OnlineLearningConfig, {"updates_per_segment": math.inf}, "updates_per_segment is inf"),
        (OnlineLearningConfig, {"final_rate": -0.1}, "final_rate is -0.1"),
        (OnlineLearningConfig, {"decay": (5, 3)}, r"decay is \(5, 3\), expected two increasing"),
    ],
)
def test_settings_out_of_range_are_named(config, setting, message):
    with pytest.raises((TypeError, ValueError), match=message):
        config(**setting)
