"""SPlaTES: segments and their rewards, intrinsic rewards, and the symmetry-breaking start."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl import off_policy
from layeredrl.levels import PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.skills import SkillLevel, SkillModelConfig, SPlaTES
from layeredrl.skills.splates import LOWEST
from tests.skills.walk import CHOICES, TASK, Row, Walk, as_batch, make_world, no_log_prob, triples

CPU = torch.device("cpu")
CONFIG = SkillModelConfig(n_first=40, batch_size=32, n_priors=3, std=0.5, updates_per_segment=4)


def make(config=CONFIG, *, steps=5, form="difference", **world):
    return SPlaTES(TASK, make_world(steps=steps, **world), steps, config=config, form=form)


def set_updates(method, updates_per_segment):
    method.config = method.learner.config = replace(method.config, updates_per_segment=updates_per_segment)


def learned(method, walk, n_updates=30):
    """The method after some updates, so that rewards distinguish skills."""
    set_updates(method, n_updates)
    for n in (100, 100 + method.duration):
        method.learn(walk.replay, n, no_log_prob)
    assert method.learner.n_updates == n_updates
    return method


# ------------------------------------------------------------------ segments


@pytest.mark.parametrize(
    ("n_envs", "size", "skill_steps", "action_steps", "done", "share"),
    [
        (1, 400, 5, 1, 0.05, 0.4),
        (3, 37, 5, 1, 0.1, 1.0),  # the ring has gone round several times, and cut skills in two
        (1, 18, 6, 1, 0.0, 1.0),  # what lies before the oldest transition looks as if it belonged to its skill
        (1, 20, 5, 1, 0.0, 0.4),  # what lies after the newest transition is the end of another skill
        (2, 50, 4, 1, 0.4, 1.0),  # few skills end
        (2, 60, 1, 1, 0.2, 0.4),
        (3, 41, 6, 3, 0.05, 1.0),  # actions last several steps
        (2, 41, 7, 3, 0.1, 0.4),  # of which the skill's duration is no multiple
    ],
)
def test_segments_are_the_whole_skills_among_the_newest_transitions(
    n_envs, size, skill_steps, action_steps, done, share
):
    rng = np.random.default_rng(5)
    walk = Walk(
        n_envs, size, skill_steps, action_steps=action_steps, done=done, reward=lambda obs: rng.normal(size=n_envs)
    ).step(149)
    config = replace(CONFIG, newest=share)
    expected, n_touched = set(), 0
    for rows in walk.newest(share):
        by_start: dict[tuple[float, ...], list[Row]] = {}
        for row in rows:
            by_start.setdefault(tuple(row.start), []).append(row)
        n_touched += len(by_start)
        for first, *_, last in ([*parts, parts[-1]] for parts in by_start.values()):
            if last.elapsed + last.duration == skill_steps:
                expected |= triples([first.start], [first.skill], [last.obs_next])
    found = make(config, steps=skill_steps).segments(walk.replay, 4000, no_log_prob)
    assert triples(found.obs.numpy(), found.act.numpy(), found.obs_next.numpy()) == expected
    executed = [(parts[0].start, parts[0].skill, parts[-1].obs_next) for parts in walk.whole_skills()]
    assert expected <= triples(*zip(*executed, strict=True))
    assert 0 < len(expected) <= n_touched
    assert (len(found.obs) < 4000) == (len(expected) < n_touched) == (skill_steps > 1)

    # A reward that is learned is the sum of a skill's rewards, known where all its transitions are stored.
    kept = {id(row) for rows in walk.rows for row in rows[-size:]}
    drawn = {id(row) for rows in walk.newest(share) for row in rows}
    sums = {
        tuple(parts[-1].obs_next.tolist()): sum(row.rew for row in parts)
        for parts in walk.whole_skills()
        if all(id(row) in kept for row in parts) and any(id(row) in drawn for row in parts)
    }
    found = make(config, steps=skill_steps, known=False).segments(walk.replay, 4000, no_log_prob)
    assert found.rew.dtype == torch.float32
    assert dict(zip(map(tuple, found.obs_next.tolist()), found.rew.tolist(), strict=True)) == pytest.approx(
        sums, abs=1e-5
    )
    assert sums


def test_segments_of_choices_are_integers():
    walk = Walk(2, skills=CHOICES).step(40)
    found = make(skills=CHOICES).segments(walk.replay, 50, no_log_prob)
    assert found.act.dtype == torch.int64
    assert 0 < len(found.obs) <= 50
    assert found.act.shape == (len(found.obs), 1)


# ------------------------------------------------------------------ intrinsic rewards


@torch.no_grad()
def test_differences_add_up_to_the_increase_of_the_potential():
    walk = Walk(2).step(80)
    with torch.enable_grad():
        method = learned(make(), walk)
    totals = []
    for seed, rows in enumerate([rows for rows in walk.whole_skills() if len(rows) == 5][:8]):
        total = 0.0
        for row in rows:
            torch.manual_seed(seed)  # the same other skills
            total += float(method.reward(as_batch([row])))
        torch.manual_seed(seed)
        whole = as_batch([rows[0], rows[-1]])
        start, context = method.world.encode(whole.command.obs[:1])
        end = method.world.encode(whole.obs_next[1:])[0]
        at_end, at_start = method.potentials(start, context, whole.command.action[:1], [end, start])
        assert total == pytest.approx(float(at_end - at_start), abs=1e-4)
        totals.append(total)
    assert len(totals) == 8
    assert np.mean(totals) > 0.3


@torch.no_grad()
def test_the_form_end_rewards_the_last_step_by_its_potential():
    walk = Walk(2).step(80)
    with torch.enable_grad():
        method = learned(make(form="end"), walk)
    batch = as_batch([row for rows in walk.rows for row in rows][:100])
    torch.manual_seed(2)
    found = method.reward(batch)
    last = batch.command.remaining == 1
    assert 5 < last.sum() < 50
    assert not found[~last].any()
    torch.manual_seed(2)
    start, context = method.world.encode(batch.command.obs)
    outcome = method.world.encode(batch.obs_next)[0]
    (potential,) = method.potentials(start, context, batch.command.action, [outcome])
    torch.testing.assert_close(found[last], potential[last].clamp(min=LOWEST))
    assert found[last].mean() > 0.3
    with pytest.raises(ValueError, match="form is 'start', expected one of difference, end"):
        make(form="start")


@torch.no_grad()
@pytest.mark.parametrize("form", ["end", "difference"])
def test_the_potential_of_an_impossible_outcome_is_bounded(form):
    walk = Walk(2, noise=3.0).step(40)
    method = make(replace(CONFIG, std=1e-3, final_std=1e-3), form=form)
    batch = as_batch([rows[-1] for rows in walk.whole_skills()])
    found = method.reward(batch)
    start, context = method.world.encode(batch.command.obs)
    (potential,) = method.potentials(start, context, batch.command.action, [method.world.encode(batch.obs_next)[0]])
    assert potential.min() < 10 * LOWEST
    assert found.isfinite().all()
    ceiling = math.log(4)
    if form == "end":
        assert found.min() == LOWEST
        assert found.max() <= ceiling
    else:
        assert found.abs().max() <= ceiling - LOWEST + 1e-4
        assert (found == 0).any()  # impossible before, impossible after


def test_rewards_and_targets_are_those_of_the_newest_model():
    """The replay does not change."""
    walk = Walk(2).step(60)
    method = learned(make(), walk)
    algorithm = SACConfig(hidden=(8,)).build(method.n_inputs, TASK.action_space, CPU)
    level = SkillLevel(
        algorithm, method, TASK.action_space, n_envs=2, learning=PolicyLearningConfig(n_random_steps=0, batch_size=64)
    )
    level.replay = walk.replay
    stored = walk.replay.all()
    states = [generator.get_state() for generator in walk.replay.buffer.generators]
    batches, targets = [], []
    for _ in range(2):
        for generator, state in zip(walk.replay.buffer.generators, states, strict=True):
            generator.set_state(state)
        torch.manual_seed(0)
        batches.append(level.sample())
        batch = batches[-1]
        torch.manual_seed(0)
        obs_next = method.inputs(batch.obs_next, batch.next_command)
        targets.append(off_policy.targets(algorithm, Batch(obs_next=obs_next, rew=batch.rew, discount=batch.discount)))
        with torch.no_grad():
            for parameter in method.dynamics.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert torch.equal(batches[0].obs, batches[1].obs)
    gained = batches[1].rew - batches[0].rew
    assert (gained != 0).float().mean() > 0.9
    torch.testing.assert_close(targets[1] - targets[0], gained, rtol=1e-3, atol=1e-4)
    after = walk.replay.all()
    for key in ("obs", "act", "rew", "obs_next"):
        np.testing.assert_array_equal(after[key], stored[key])


# ------------------------------------------------------------------ the symmetry-breaking start


def whitened_prediction(method, skill, **settings):
    """Predicted displacements by skills (n, Z), in whitened coordinates, (n, S)."""
    state, context = torch.randn(len(skill), 2), torch.randn(len(skill), 2)
    with torch.no_grad():
        mean, weights, _, _ = method.dynamics.predict(state, context, skill, **settings)
    return method.whitening(mean - state[:, None, None]).flatten(1, 2), weights.flatten(1)


def test_at_first_each_skill_has_a_displacement_of_its_own():
    """Before any update, between the first statistics and the first update, and as the whitening changes."""
    walk, method = Walk(2), make(sb_start_duration=4000)
    start = method.dynamics.symmetry
    skill = method.prior(20, CPU)
    torch.testing.assert_close(start.directions.mT @ start.directions, torch.eye(2))
    expected = start.factor * skill @ start.directions.mT
    n_whitenings = set()
    for _ in range(32):
        walk.step()
        method.learn(walk.replay, 2 * len(walk.rows[0]), no_log_prob)
        mean, weights = whitened_prediction(method, skill)
        torch.testing.assert_close(mean, expected[:, None].expand_as(mean), rtol=1e-3, atol=1e-4)
        assert (weights == 0.5).all()
        n_whitenings.add(tuple(method.whitening.matrix.flatten().tolist()))
    assert method.learner.n_updates > 15
    assert len(n_whitenings) > 2  # one decomposition for ten updates
    assert (method.dynamics.unit - 1).abs().min() > 0.01
    torch.testing.assert_close(start.transform, method.whitening.inverse / method.dynamics.unit[:, None])


def test_the_symmetry_breaking_start_ends_with_its_environment_steps():
    walk, method = Walk(2).step(100), make(sb_start_duration=4000)
    skill = method.prior(10, CPU)

    def predictions(n):
        method.learn(walk.replay, n, no_log_prob)
        torch.manual_seed(1)
        mean, weights = whitened_prediction(method, skill)
        torch.manual_seed(1)
        return mean, weights, *whitened_prediction(method, skill, loss_mode=True)

    method.learn(walk.replay, 200, no_log_prob)
    set_updates(method, 0.01)
    start = method.dynamics.symmetry
    random = (start.factor * skill @ start.directions.mT)[:, None]
    for n, share in ((2000, 0.0), (2500, 0.25), (3800, 0.9), (4000, 1.0), (9000, 1.0)):
        mean, weights, learned_mean, learned_weights = predictions(n)
        torch.testing.assert_close(mean, (1 - share) * random + share * learned_mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(weights, (1 - share) / 2 + share * learned_weights, rtol=1e-3, atol=1e-4)
        assert start.uses_map == (share < 1)
    transform, before = start.transform.clone(), method.learner.n_updates
    method.learn(walk.replay, 9700, no_log_prob)
    assert method.learner.n_updates > before
    assert torch.equal(start.transform, transform)  # it is not used any more


@torch.no_grad()
def test_with_the_symmetry_breaking_start_rewards_depend_on_skills_before_anything_is_learned():
    """Each skill has its own displacement; the value is 2.01 at sigma 0.5 and a factor of 1.5, ALGORITHMS.md, C.2."""
    config = replace(CONFIG, n_priors=100)
    state, context = torch.zeros(2000, 2), torch.zeros(2000, 2)
    method, without = make(config, sb_start_duration=4000), make(config)
    skill = method.prior(2000, CPU)
    outcome = method.dynamics.symmetry.factor * skill @ method.dynamics.symmetry.directions.mT
    own, mixed = (method.potentials(state, context, z, [outcome])[0] for z in (skill, skill.roll(1, 0)))
    assert method.dynamics.symmetry.factor == 1.5
    assert own.mean() == pytest.approx(2.01, rel=0.04)
    assert mixed.mean() < 0
    assert without.potentials(state, context, skill, [outcome])[0].abs().mean() < 0.3


def test_the_symmetry_breaking_start_refuses_choices_and_wide_skills():
    with pytest.raises(TypeError, match="symmetry_breaking_start needs a Box action_space, got Discrete"):
        make(sb_start_duration=100, skills=CHOICES)
    with pytest.raises(ValueError, match="at most as many action as state dimensions, got 3 > 2"):
        make(sb_start_duration=100, skills=spaces.Box(-1.0, 1.0, (3,), np.float32))
