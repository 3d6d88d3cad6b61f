"""Skills with a model: densities, potentials, whitening, metrics, learned rewards and encoders, and resuming."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import envs  # noqa: F401  registers the mazes
from agents.splates import SPlaTESAgent
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.skills import DADS, SkillModelConfig, SPlaTES
from layeredrl.storage import Checkpoints
from layeredrl.world_model import Encoder, LearnedEncoder
from tests.recording import leaves
from tests.skills.walk import CHOICES, SKILLS, TASK, Walk, as_batch, learn_along, make_world, no_log_prob

CPU = torch.device("cpu")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
CONFIG = SkillModelConfig(
    n_first=40, batch_size=32, n_priors=3, std=0.5, updates_per_segment=4, refresh_every=20, report_every=20
)
METHODS = pytest.mark.parametrize("kind", [SPlaTES, DADS])


def make(kind=SPlaTES, config=CONFIG, *, steps=5, **world):
    return kind(TASK, make_world(steps=steps, **world), steps, config=config)


def distances(obs):
    """Rewards (n,) of observations (n, WIDTH)."""
    return -np.linalg.norm(obs[:, :2] - obs[:, 2:4], axis=1)


def make_states(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((n, width), generator=generator) for width in (2, 2, 2, 2)]


def skewed(method):
    """Give a method units, inputs and a whitening other than one, as training does."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.tensor([[1.5, 0.4], [0.0, 0.3]])
    state, context, act, step = (torch.randn((50, 2), generator=generator) for _ in range(4))
    act = act if isinstance(method.space, spaces.Box) else torch.arange(50)[:, None] % method.space.n
    method.dynamics.fit_statistics(
        {"state": state, "context": context, "act": act, "state_next": state + step @ mix.mT}
    )
    method.whitening.update(step @ mix.mT)
    return method


# ------------------------------------------------------------------ densities


@pytest.mark.parametrize(
    ("n_models", "n_modes", "skills"),
    [(1, 1, SKILLS), (1, 4, CHOICES), (3, 2, SKILLS)],
    ids=["one", "modes", "members"],
)
def test_densities_are_the_model_s_own_in_whitened_coordinates(n_models, n_modes, skills):
    method = skewed(make(skills=skills, n_models=n_models, n_modes=n_modes))
    start, context, *outcomes = make_states()
    several = method.prior(6 * 5, CPU).view(6, 5, -1)
    found = method.log_probs(start, context, several, outcomes)
    settings = {"std": torch.full((6, 2), method.std), "transform": method.whitening}
    for x, log_probs in zip(outcomes, found, strict=True):
        assert log_probs.shape == (6, 5)
        expected = [method.dynamics.get_log_prob(start, context, z, x, **settings)[0] for z in several.unbind(1)]
        expected = torch.stack(expected, 1)
        torch.testing.assert_close(log_probs, expected + (log_probs - expected).mean(), **CLOSE)  # up to a constant
        torch.testing.assert_close(log_probs, method.log_probs(start, context, several, [x])[0])
    assert (found[0] - found[1]).abs().min() > 0


@pytest.mark.parametrize("skills", [SKILLS, CHOICES], ids=["box", "choices"])
@torch.no_grad()
def test_potentials_compare_the_skill_with_the_same_others_for_all_outcomes(skills):
    method, n = skewed(make(skills=skills, n_models=2)), 4
    start, context, *outcomes = make_states(n)
    skill = method.prior(n, CPU)
    torch.manual_seed(4)
    found = method.potentials(start, context, skill, outcomes)
    torch.manual_seed(4)
    others = method.prior(n * 3, CPU).view(n, 3, -1)
    settings = {"std": torch.full((1, 2), 0.5), "transform": method.whitening}
    for x, potential in zip(outcomes, found, strict=True):
        for i in range(n):
            row = [part[i : i + 1] for part in (start, context)]
            densities = [
                math.exp(float(method.dynamics.get_log_prob(*row, z[None], x[i : i + 1], **settings)[0]))
                for z in (skill[i], *others[i])
            ]
            assert float(potential[i]) == pytest.approx(math.log(densities[0] / (sum(densities) / 4)), abs=1e-4)
    assert torch.cat(found).max() <= math.log(4)


def test_the_assumed_standard_deviation_falls_linearly():
    method = make(config=replace(CONFIG, std=0.8, final_std=0.2, std_decay=(100, 250)))
    for n, std in ((0, 0.8), (100, 0.8), (150, 0.6), (200, 0.4), (250, 0.2), (999, 0.2)):
        method.learner.n_total_env_steps = n
        assert method.std == pytest.approx(std)


# ------------------------------------------------------------------ learning


@METHODS
@pytest.mark.parametrize("action_steps", [1, 2])
def test_updates_keep_their_ratio_to_the_executed_skills(kind, action_steps):
    method, walk = make(kind, replace(CONFIG, batch_size=8)), Walk(1, action_steps=action_steps, done=0.0)
    n, first = 0, None
    for _ in range(36):
        walk.step()
        n += walk.rows[0][-1].duration
        method.learn(walk.replay, n, no_log_prob)
        assert int(method.dynamics.n_total_env_steps) == method.learner.n_total_env_steps == n
        if n < 40 and action_steps == 2:
            assert not method.whitening.initialized
        if n >= 40:
            first = n if first is None else first
            assert method.learner.n_updates == math.floor(4 * (n - first) / 5)
    assert bool(method.whitening.initialized) == (first is not None)


@METHODS
@torch.no_grad()
def test_it_learns_the_outcomes_of_skills(kind):
    method, walk = make(kind, replace(CONFIG, report_every=40)), Walk(16)
    state, context = torch.zeros(200, 2), torch.zeros(200, 2)
    skill = method.prior(200, CPU)
    truth = 0.3 * (5 if kind is SPlaTES else 1) * skill
    assert method.potentials(state, context, skill, [truth])[0].mean() < 0.1
    with torch.enable_grad():
        reports = learn_along(method, walk, 16)
    mean, weights, _, _ = method.dynamics.predict(state, context, skill)
    error = (weights[..., None] * mean).sum(2)[:, 0] - truth
    assert error.norm(dim=-1).mean() < 0.3 * truth.norm(dim=-1).mean()
    assert method.potentials(state, context, skill, [truth])[0].mean() > 0.7 * math.log(4)
    assert reports[max(reports)]["skill/information"] > 0.6 * math.log(4)
    torch.testing.assert_close(torch.cov(method.whitening(truth).mT), torch.eye(2), rtol=0, atol=0.5)


def test_learning_waits_for_whole_skills():
    method = make(config=replace(CONFIG, n_first=1, updates_per_segment=20), steps=20)
    before, walk = leaves(method.world.dynamics.network.state_dict()), Walk(2, skill_steps=20, done=0.0)
    assert learn_along(method, walk, 19) == {}
    assert leaves(method.world.dynamics.network.state_dict()) == before
    learn_along(method, walk, 3)
    assert method.learner.n_updates > 0
    after = leaves(method.world.dynamics.network.state_dict())
    assert all(np.isfinite(value).all() for _, value in after.values())
    assert after != before


def test_reports_hold_the_information_of_the_recorded_updates(monkeypatch):
    method, walk = make(config=replace(CONFIG, updates_per_segment=6)), Walk(2)
    information, potentials = [], method.potentials
    monkeypatch.setattr(method, "potentials", lambda *args: information.append(potentials(*args)) or information[-1])
    reports, n_seen = learn_along(method, walk, 40), 0
    assert [*reports] == [60, 80]
    for n, metrics in reports.items():
        n_recorded = math.ceil(6 * (n - 40) / 5 / 10)  # one of ten updates
        assert metrics["skill/information"] == pytest.approx(
            np.mean([float(x[0].mean()) for x in information[n_seen:n_recorded]]), rel=1e-5
        )
        assert (metrics["skill/std"], metrics["model/updates"]) == (0.5, 6 * (n - 40) // 5)
        assert np.isfinite(metrics["model/loss"])
        n_seen = n_recorded
    length = reports[80]["skill/length"]
    assert length == pytest.approx(float(method.whitening.covariance.trace()) ** 0.5)
    steps = np.stack([parts[-1].obs_next[:2] - parts[0].start[:2] for parts in walk.whole_skills()])
    assert length == pytest.approx(np.sqrt(steps.var(0).sum()), rel=0.3)


# ------------------------------------------------------------------ learned rewards and encoders


def test_a_known_reward_is_not_learned():
    method, walk = make(), Walk(2)
    reports = learn_along(method, walk, 35)
    assert method.learner.reward is None
    assert "rew" not in method.segments(walk.replay, 50, no_log_prob)
    assert "reward_optimizer" not in method.state_dict()["learner"]
    assert "model/reward_loss" not in reports[60]


@METHODS
def test_only_the_reward_teaches_a_learned_encoder(kind):
    method, walk = make(kind, learned=(2, 2)), Walk(2, reward=distances, noise=0.2)
    learn_along(method, walk, 22)
    encoder, learner = method.world.encoder, method.learner
    goal, moving = [2, 3], [0, 1, 4, 5, 6]

    def gradients():
        return [parameter.grad for parameter in encoder.parameters()]

    for parameter in method.world.parameters():
        parameter.grad = None
    segments = method.segments(walk.replay, 32, no_log_prob)
    method.dynamics.learn([learner._rows(segments)])
    batch = as_batch(walk.rows[0])
    method.inputs(batch.obs, batch.command).sum().requires_grad_().backward()
    method.reward(batch).sum().backward()
    assert gradients() == [None, None]
    learner.reward.step(segments, 1.0)
    to_state, to_context = gradients()
    assert to_state[:, moving].all()
    assert not to_state[:, goal].any()
    assert to_context[:, goal].all()
    assert not to_context[:, moving].any()


def test_policy_inputs_hold_the_displacement_of_a_learned_state():
    method, walk = make(learned=(3, 2)), Walk(2, reward=distances)
    learn_along(method, walk, 25)
    batch = as_batch(walk.rows[0])
    found = method.inputs(batch.obs, batch.command)
    assert found.shape == (25, method.n_inputs) == (25, 5 + 3 + 2 + 1)
    displacement = (batch.obs - batch.command.obs) * method.world.encoder.standardizer.inverse_std
    torch.testing.assert_close(found[:, 5:8], 2 * displacement @ method.world.encoder.to_state.mT, **CLOSE)
    assert not found.requires_grad


def test_the_recipe_learns_an_encoder_in_a_maze():
    recipe = SPlaTESAgent.preset("debug", encoder="learned", latent_dim=3, context_dim=1)
    torch.manual_seed(0)
    agent = recipe.build(make_task("Maze2D-Simple-v0", n_envs=2), CPU, seed=0)
    world = agent.levels[1].method.world
    assert isinstance(world.encoder, LearnedEncoder)
    assert (world.encoder.state_dim, world.encoder.context_dim) == (3, 1)
    assert world.task.reward is None
    before = world.encoder.to_state.detach().clone()
    env = make_vector_env("Maze2D-Simple-v0", 2)
    collector, metrics = Collector(env, agent, seed=0), {}
    for _ in range(40):
        collector.step(explore=True)
        metrics |= agent.learn(collector.n_total_env_steps) | collector.take_metrics()
    env.close()
    assert world.encoder.changes.tolist() == [True, True, False, False, True, True]
    assert not torch.equal(world.encoder.to_state, before)
    assert all(np.isfinite(value) for value in metrics.values())
    assert {"model/reward_loss", "plan/score"} <= metrics.keys()


def test_the_recipe_learns_an_unknown_reward_of_parts_of_the_observation():
    task = replace(make_task("Maze2D-Simple-v0", n_envs=2), reward=None)
    method = SPlaTESAgent.preset("debug").build(task, CPU, seed=0).levels[1].method
    assert method.learner.reward is not None
    assert type(method.world.encoder) is Encoder


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        (SPlaTES, {"sb_start_duration": 90}),
        (SPlaTES, {"learned": (2, 2)}),
        (DADS, {"skills": CHOICES, "known": False}),
    ],
    ids=["symmetry breaking", "learned encoder", "choices"],
)
def test_learning_resumes_bit_for_bit(tmp_path, kind, world):
    config = replace(CONFIG, decay=(50, 70), std_decay=(50, 70), updates_per_segment=2)
    settings = {"size": 40, "skills": world.get("skills", SKILLS), "reward": distances, "noise": 0.1}
    method, walk = make(kind, config, **world), Walk(2, **settings)
    torch.manual_seed(3)
    learn_along(method, walk, 27)
    saved = {"method": method.state_dict(), "replay": walk.replay.state_dict(), "torch": torch.get_rng_state()}
    Checkpoints(tmp_path).save(saved, 54)
    reports = learn_along(method, walk, 15)

    other, again = make(kind, config, seed=9, **world), Walk(2, **settings).step(27)
    state = Checkpoints(tmp_path).load()
    again.replay.load_state_dict(state["replay"])
    other.load_state_dict(state["method"])
    torch.set_rng_state(state["torch"])
    assert learn_along(other, again, 15) == reports
    assert [*reports] == [60, 80]
    assert ("model/reward_loss" in reports[60]) == (method.learner.reward is not None)
    assert leaves(other.state_dict()) == leaves(method.state_dict())
    start = method.dynamics.symmetry
    assert start is None or other.dynamics.symmetry.uses_map == start.uses_map


# ------------------------------------------------------------------ errors


def test_a_duration_below_one_is_refused():
    with pytest.raises(ValueError, match="duration is 0, expected at least 1"):
        SPlaTES(TASK, make_world(), 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_first": 0}, "n_first is 0, expected at least 1"),  # of the learner
        ({"n_priors": 0}, "n_priors is 0"),
        ({"std": 0.0}, "std is 0.0"),
        ({"final_std": math.nan}, "final_std is nan"),
        ({"std_decay": (-1, 3)}, r"std_decay is \(-1, 3\)"),
        ({"deviation": "free"}, "deviation is 'free', expected one of fixed, learned"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SkillModelConfig(**setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "fixed"}, "encoder is 'fixed', expected one of parts, learned"),
        ({"encoder": "learned", "latent_dim": 0}, "latent_dim is 0, expected at least 1"),
        ({"encoder": "learned", "context_dim": 9}, "context_dim is 9, expected at most the observation's 6"),
    ],
)
def test_encoder_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SPlaTESAgent.preset("debug", **settings).build(make_task("Maze2D-Simple-v0"), CPU, seed=0)
