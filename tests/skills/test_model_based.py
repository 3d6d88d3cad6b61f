"""What is learned and paid for with a model of skills: densities, schedules, how often, and going on after a stop."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.skills import DADS, SkillModelConfig, SPlaTES
from layeredrl.storage import Checkpoints
from layeredrl.world_model import Oracle, WorldModel
from tests.skills.walk import CHOICES, ENCODER, SKILLS, TASK, Walk, learn_along, make_world

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
CONFIG = SkillModelConfig(
    n_first=40, batch_size=32, n_priors=3, std=0.5, updates_per_segment=4, refresh_every=20, report_every=20
)
METHODS = pytest.mark.parametrize("kind", [SPlaTES, DADS])


def make(kind=SPlaTES, config=CONFIG, *, steps=5, **world):
    return kind(TASK, make_world(steps=steps, **world), steps, config=config)


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


def flat(state, place=""):
    """Everything in a nested state, by place, tensors as lists."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: value for key, part in items for name, value in flat(part, f"{place}.{key}").items()}
    return {place: (state.dtype, state.tolist()) if isinstance(state, Tensor) else state}


# ------------------------------------------------------------------ densities


@pytest.mark.parametrize("skills", [SKILLS, CHOICES], ids=["box", "choices"])
@pytest.mark.parametrize(("n_models", "n_modes"), [(1, 1), (1, 4), (3, 1), (3, 2)])
def test_densities_are_the_model_s_own_in_whitened_coordinates(n_models, n_modes, skills):
    method = skewed(make(skills=skills, n_models=n_models, n_modes=n_modes))
    method.n_total_env_steps = 30_000
    start, context, *outcomes = make_states()
    several = method.prior(6 * 5, torch.device("cpu")).view(6, 5, -1)
    found = method.log_probs(start, context, several, outcomes)
    for x, log_probs in zip(outcomes, found, strict=True):
        assert log_probs.shape == (6, 5)
        std = torch.full((6, 2), method.std)
        expected = torch.stack(
            [
                method.dynamics.get_log_prob(start, context, z, x, std=std, transform=method.whitening)[0]
                for z in several.unbind(1)
            ],
            1,
        )
        constant = (log_probs - expected).mean()
        torch.testing.assert_close(log_probs, expected + constant, **CLOSE)
        alone = method.log_probs(start, context, several, [x])[0]
        torch.testing.assert_close(log_probs, alone)
    assert (found[0] - found[1]).abs().min() > 0


@pytest.mark.parametrize("skills", [SKILLS, CHOICES], ids=["box", "choices"])
@torch.no_grad()
def test_potentials_compare_the_skill_with_others_that_are_the_same_for_all_outcomes(skills):
    method = skewed(make(skills=skills, n_models=2))
    start, context, *outcomes = make_states()
    skill = method.prior(6, torch.device("cpu"))
    torch.manual_seed(4)
    found = method.potentials(start, context, skill, outcomes)
    torch.manual_seed(4)
    others = method.prior(6 * 3, torch.device("cpu")).view(6, 3, -1)
    for x, potential in zip(outcomes, found, strict=True):
        for i in range(6):
            densities = []
            for z in (skill[i], *others[i]):
                row = [part[i : i + 1] for part in (start, context)]
                log_prob, _, _ = method.dynamics.get_log_prob(
                    *row, z[None], x[i : i + 1], std=torch.full((1, 2), 0.5), transform=method.whitening
                )
                densities.append(math.exp(float(log_prob)))
            assert float(potential[i]) == pytest.approx(math.log(densities[0] / (sum(densities) / 4)), abs=1e-4)
    assert torch.cat(found).max() <= math.log(4)


# ------------------------------------------------------------------ schedules


@pytest.mark.parametrize(
    ("n", "std", "factor"),
    [(100, 0.8, 1), (150, 0.6, 1), (200, 0.4, 1), (225, 0.3, 0.8), (250, 0.2, 0.6), (300, 0.2, 0.2), (999, 0.2, 0.2)],
)
def test_the_assumed_deviation_and_the_learning_rate_fall(n, std, factor):
    steps = {"std_decay": (100, 250), "decay": (200, 300), "n_first": 1, "updates_per_segment": 0.1}
    method, walk = make(config=replace(CONFIG, std=0.8, final_std=0.2, final_rate=0.2, **steps)), Walk().step(30)
    assert method.std == 0.8
    method.learn(walk.replay, 1)
    method.learn(walk.replay, n)
    assert method.std == pytest.approx(std)
    for group in method.dynamics.optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-2 * factor)


# ------------------------------------------------------------------ when it learns


@METHODS
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("ratio", [0, 0.5, 4])
def test_updates_keep_their_ratio_to_the_skills_that_were_carried_out(kind, ratio, n_envs):
    method, walk = make(kind, replace(CONFIG, updates_per_segment=ratio, batch_size=8)), Walk(n_envs)
    before = flat(method.state_dict()["world"] | {"dynamics.n_total_env_steps": 0})
    began = None
    for _ in range(90 // n_envs):
        learn_along(method, walk, 1)
        n = n_envs * len(walk.rows[0])
        assert int(method.dynamics.n_total_env_steps) == n
        if n < 40:
            assert flat(method.state_dict()["world"] | {"dynamics.n_total_env_steps": 0}) == before
            assert not method.whitening.initialized
            continue
        began = n if began is None else began
        assert method.n_updates == math.floor(ratio * (n - began) / 5)
    assert began is not None
    assert bool(method.whitening.initialized) == (method.n_updates > 0) == (ratio > 0)
    assert not method.dynamics.training


def test_actions_that_last_longer_do_not_change_how_often_it_learns():
    method, walk = make(), Walk(1, action_steps=2, done=0.0)
    n = 0
    for _ in range(60):
        walk.step()
        n += walk.rows[0][-1].duration
        method.learn(walk.replay, n)
        if method._first is not None:
            assert method.n_updates == math.floor(4 * (n - method._first) / 5)
    assert method.n_updates > 40


@METHODS
@torch.no_grad()
def test_it_learns_where_skills_lead(kind):
    method, walk = make(kind, replace(CONFIG, updates_per_segment=4, report_every=40)), Walk(16)
    state, context = torch.zeros(200, 2), torch.zeros(200, 2)
    skill = method.prior(200, torch.device("cpu"))
    truth = 0.3 * (5 if kind is SPlaTES else 1) * skill
    assert method.potentials(state, context, skill, [truth])[0].mean() < 0.1
    with torch.enable_grad():
        told = learn_along(method, walk, 30)
    mean, weights, _, _ = method.dynamics.predict(state, context, skill)
    error = (weights[..., None] * mean).sum(2)[:, 0] - truth
    assert error.norm(dim=-1).mean() < 0.25 * truth.norm(dim=-1).mean()
    assert method.potentials(state, context, skill, [truth])[0].mean() > 0.7 * math.log(4)
    assert told[max(told)]["skill/information"] > 0.7 * math.log(4)
    torch.testing.assert_close(torch.cov(method.whitening(truth).mT), torch.eye(2), rtol=0, atol=0.5)


@METHODS
def test_before_there_are_skills_from_start_to_end_it_waits(kind):
    method = make(kind, replace(CONFIG, n_first=1), steps=20)
    walk = Walk(2, skill_steps=20, done=0.0)
    learn_along(method, walk, 20 if kind is SPlaTES else 1)
    assert method.n_updates == 0
    learn_along(method, walk, 10)
    assert method.n_updates > 0
    assert all(np.isfinite(value[1]).all() for key, value in flat(method.state_dict()["world"]).items() if "net" in key)


def test_episodes_that_are_shorter_than_a_skill_teach_nothing():
    method = make(config=replace(CONFIG, n_first=1), steps=500)
    before = flat(method.state_dict())
    assert learn_along(method, Walk(2, skill_steps=500, done=0.3), 40) == {}
    after = flat(method.state_dict())
    assert {key for key in after if after[key] != before[key]} <= {
        ".n_total_env_steps",
        ".world.dynamics.n_total_env_steps",
    }


def test_updates_for_which_there_are_no_whole_skills_are_left_out():
    """Of a ring in which, for a while, none is left."""
    method, walk = make(config=replace(CONFIG, batch_size=4)), Walk(2, size=30, done=0.0)
    learn_along(method, walk, 40)
    walk.done = 0.9
    walk.step(40)
    before = flat(method.state_dict()["world"])
    n_updates = method.n_updates
    method.learn(walk.replay, 160)
    assert method.n_updates > n_updates
    after = flat(method.state_dict()["world"])
    assert {key for key in after if after[key] != before[key]} <= {
        ".dynamics.n_total_env_steps",
        ".objective.state_scale",
    }


def test_what_the_data_supports_is_counted_from_time_to_time():
    method, walk = make(), Walk(2)
    scale, refreshed = method.world.objective.state_scale, []
    before = scale.clone()
    for _ in range(50):
        learn_along(method, walk, 1)
        if not torch.equal(scale, before):
            refreshed.append(2 * len(walk.rows[0]))
            expected = np.std([row.obs_next[:2] for rows in walk.rows for row in rows], axis=0)
            np.testing.assert_allclose(scale, expected, rtol=1e-4)
        before = scale.clone()
    assert refreshed == [40, 60, 80, 100]


# ------------------------------------------------------------------ what it tells


def test_reports_are_means_of_every_tenth_update(monkeypatch):
    method, walk = make(config=replace(CONFIG, updates_per_segment=12)), Walk(2)
    losses, information = [], []
    learn, potentials = method.dynamics.learn, method.potentials
    monkeypatch.setattr(method.dynamics, "learn", lambda rows: losses.append(learn(rows)) or losses[-1])

    def potentials_of(*args):
        information.append(potentials(*args))
        return information[-1]

    monkeypatch.setattr(method, "potentials", potentials_of)
    told, n_told, n_seen = learn_along(method, walk, 60), 0, 0
    assert [*told] == [60, 80, 100, 120]
    for n, metrics in told.items():
        tenth = range(n_told, math.floor(12 * (n - 40) / 5))
        chosen = [i for i in tenth if i % 10 == 0]
        n_told, n_new = tenth.stop, len(chosen)
        expected = {
            "model/loss": np.mean([float(losses[i]) for i in chosen]),
            "skill/information": np.mean([float(x[0].mean()) for x in information[n_seen : n_seen + n_new]]),
            "skill/std": 0.5,
            "skill/length": metrics["skill/length"],
            "model/updates": tenth.stop,
        }
        n_seen += n_new
        assert metrics == pytest.approx(expected, rel=1e-5)
    assert told[120]["skill/length"] == pytest.approx(float(method.whitening.covariance.trace()) ** 0.5)
    steps = np.concatenate([parts[-1].obs_next[None, :2] - parts[0].start[:2] for parts in walk.whole_skills()])
    assert told[120]["skill/length"] == pytest.approx(np.sqrt(steps.var(0).sum()), rel=0.3)


# ------------------------------------------------------------------ going on after a stop


@pytest.mark.parametrize(
    ("kind", "world"),
    [(SPlaTES, {}), (SPlaTES, {"sb_start_duration": 90}), (DADS, {}), (DADS, {"skills": CHOICES})],
    ids=["splates", "splates with a start", "dads", "dads with choices"],
)
def test_after_a_stop_it_goes_on_as_if_nothing_had_been(tmp_path, kind, world):
    """Bit for bit: the model, its optimiser, the whitening, and what the next report tells."""
    skills = world.get("skills", SKILLS)
    config = replace(CONFIG, decay=(50, 70), std_decay=(50, 70))
    method, walk = make(kind, config, **world), Walk(2, size=40, skills=skills)
    torch.manual_seed(3)
    learn_along(method, walk, 27)
    checkpoints = Checkpoints(tmp_path)
    saved = {"method": method.state_dict(), "replay": walk.replay.state_dict(), "torch": torch.get_rng_state()}
    checkpoints.save(saved, 54)

    told = learn_along(method, walk, 20)

    other, again = make(kind, config, seed=9, **world), Walk(2, size=40, skills=skills).step(27)
    state = Checkpoints(tmp_path).load()
    again.replay.load_state_dict(state["replay"])
    other.load_state_dict(state["method"])
    torch.set_rng_state(state["torch"])
    assert learn_along(other, again, 20) == told
    assert told
    found, expected = flat(other.state_dict()), flat(method.state_dict())
    assert found == expected
    assert any(".optimizer.state.0.exp_avg" in key for key in expected)
    start = method.dynamics.symmetry
    assert start is None or other.dynamics.symmetry.uses_map == start.uses_map


def test_an_optimiser_of_another_model_is_refused():
    method, other = make(n_modes=2), make(n_modes=1)
    walk = Walk(2)
    learn_along(method, walk, 30)
    state = method.state_dict()
    state["world"], state["whitening"] = other.state_dict()["world"], other.state_dict()["whitening"]
    before = copy.deepcopy(flat(other.dynamics.optimizer.state_dict()))
    with pytest.raises(ValueError, match="state of the skill model's optimizer has"):
        other.load_state_dict(state)
    assert flat(other.dynamics.optimizer.state_dict()) == before


# ------------------------------------------------------------------ what is refused


def test_a_dynamics_that_cannot_learn_is_refused():
    with pytest.raises(TypeError, match="ProbabilisticEnsemble, expected a ProbabilisticEnsemble that can learn"):
        make(create_optimizer=False)
    oracle = Oracle.from_step(ENCODER.state_space, ENCODER.context_space, SKILLS, lambda state, context, action: state)
    with pytest.raises(TypeError, match="the dynamics is Oracle, expected a ProbabilisticEnsemble that can learn"):
        SPlaTES(TASK, WorldModel(ENCODER, oracle, TASK.coarse(SKILLS, 5)), 5)
    with pytest.raises(ValueError, match="duration is 0, expected at least 1"):
        SPlaTES(TASK, make_world(), 0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_first": 0}, "n_first is 0, expected at least 1"),
        ({"batch_size": 1}, "batch_size is 1, expected at least 2"),
        ({"n_priors": 0}, "n_priors is 0"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"report_every": 2.5}, "report_every is 2.5"),
        ({"newest": 0.0}, "newest is 0.0"),
        ({"newest": 1.1}, "newest is 1.1"),
        ({"updates_per_segment": -1.0}, "updates_per_segment is -1.0"),
        ({"updates_per_segment": math.inf}, "updates_per_segment is inf"),
        ({"final_rate": -0.1}, "final_rate is -0.1"),
        ({"std": 0.0}, "std is 0.0"),
        ({"final_std": math.nan}, "final_std is nan"),
        ({"decay": (5, 3)}, r"decay is \(5, 3\), expected two increasing"),
        ({"std_decay": (-1, 3)}, r"std_decay is \(-1, 3\)"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SkillModelConfig(**setting)


# ------------------------------------------------------------------ what the policy sees


def test_a_policy_sees_its_way_its_skill_and_its_time_but_not_the_task_s_goal():
    method = make()
    obs, start = torch.arange(7.0)[None], torch.full((1, 7), 0.5)
    asked = Batch(action=torch.tensor([[0.3, -0.7]]), obs=start, elapsed=torch.tensor([4]), remaining=torch.tensor([1]))
    expected = [0, 1, 4, 5, 6, 2 * (0 - 0.5), 2 * (1 - 0.5), 0.3, -0.7, 4 / 5]
    torch.testing.assert_close(method.inputs(obs, asked), torch.tensor([expected]))
    assert method.n_inputs == len(expected)
