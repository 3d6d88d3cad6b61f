"""A level whose commands are skills: the bootstrap after their end, fresh and calm skills, learning and resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl import off_policy
from layeredrl.levels import PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.randomness import globals_state, restore_globals
from layeredrl.skills import SkillInputs, SkillLevel, SkillMethod, SkillModelConfig, SPlaTES
from layeredrl.storage import Checkpoints
from tests.recording import leaves
from tests.skills.walk import CHOICES, SKILLS, TASK, Row, Walk, make_world

CPU, GAMMA, K = torch.device("cpu"), 0.9, 5
LEARNING = PolicyLearningConfig(n_random_steps=0, batch_size=64, report_every=10, replay_size=800)


class Recording(SkillMethod):
    """Rewards by skill and place, and records its calls."""

    def __init__(self, space=SKILLS, at_end="zero"):
        self.space, self.duration, self.at_end = space, K, at_end
        self.seen = SkillInputs(TASK, space, K)
        self.n_inputs = self.seen.width
        self.batches, self.learned = [], []

    def inputs(self, obs, command):
        return self.seen(obs, command)

    def reward(self, batch):
        self.batches.append(batch)
        assert not torch.is_grad_enabled()
        return batch.command.action[:, 0] + 10 * batch.obs_next[:, 0]

    def learn(self, replay, n_total_env_steps, log_prob):
        self.learned.append((len(replay), n_total_env_steps))
        return {"skill/steps": float(n_total_env_steps)}

    def state_dict(self):
        return {"learned": list(self.learned)}

    def load_state_dict(self, state):
        self.learned = [tuple(pair) for pair in state["learned"]]


def make(method, *, seed=0, learning=LEARNING, **settings):
    torch.manual_seed(seed)
    algorithm = SACConfig(hidden=(8,), learning_rate=1e-2, discount=GAMMA).build(
        method.n_inputs, TASK.action_space, CPU
    )
    return SkillLevel(algorithm, method, TASK.action_space, n_envs=2, learning=learning, seed=seed, **settings)


def along(walk, level):
    """Let a level learn from a walk."""
    level.replay = walk.replay
    return level


def stored(walk) -> dict[tuple[float, ...], Row]:
    return {tuple(row.obs): row for rows in walk.rows for row in rows}


# ------------------------------------------------------------------ the end of a skill


@pytest.mark.parametrize("skills", [SKILLS, CHOICES], ids=["box", "choices"])
@pytest.mark.parametrize("at_end", ["zero", "same", "fresh"])
def test_the_bootstrap_continues_after_a_skill_s_end_as_the_method_says(at_end, skills):
    walk = Walk(2, skills=skills).step(60)
    level = along(walk, make(Recording(skills, at_end)))
    rows, terminated = stored(walk), {tuple(row.obs): row.terminated for row in walk.replay.all()}
    batch = level.sample()
    drawn, n_over = [], 0
    for i in range(64):
        row = rows[tuple(batch.obs[i].tolist())]
        discount = 0.0 if terminated[tuple(row.obs)] else GAMMA
        command, following = batch.command, batch.next_command
        np.testing.assert_array_equal(command.action[i], row.skill)
        np.testing.assert_array_equal(command.obs[i], row.start)
        assert (command.elapsed[i], command.remaining[i]) == (row.elapsed, K - row.elapsed)
        assert float(batch.rew[i]) == pytest.approx(float(row.skill[0]) + 10 * float(row.obs_next[0]), abs=1e-5)
        over = row.elapsed == K - 1
        n_over += over
        if not over or at_end == "zero":
            assert float(batch.discount[i]) == pytest.approx(0.0 if over else discount)
            np.testing.assert_array_equal(following.action[i], row.skill)
            np.testing.assert_array_equal(following.obs[i], row.start)
            assert (following.elapsed[i], following.remaining[i]) == (row.elapsed + 1, K - row.elapsed - 1)
            continue
        assert float(batch.discount[i]) == pytest.approx(discount)
        np.testing.assert_array_equal(following.obs[i], row.obs_next)
        assert (following.elapsed[i], following.remaining[i]) == (0, K)
        if at_end == "same":
            np.testing.assert_array_equal(following.action[i], row.skill)
        drawn.append((following.action[i].tolist(), row.skill.tolist()))
    assert 5 < n_over < 40
    if at_end == "fresh":
        assert all(new in skills for new in (np.array(a, skills.dtype) for a, _ in drawn) if new.shape == skills.shape)
        changed = np.mean([new != old for new, old in drawn])
        assert changed == 1 if skills is SKILLS else 0.2 < changed < 0.95


def test_the_next_inputs_after_a_skill_s_end_are_those_of_the_following_skill(monkeypatch):
    seen, original = [], off_policy.update
    monkeypatch.setattr(off_policy, "update", lambda algorithm, batch: seen.append(batch) or original(algorithm, batch))
    walk = Walk(2, skills=CHOICES).step(60)
    level = along(walk, make(Recording(CHOICES, "same")))
    level.learn(120)
    rows = stored(walk)
    by_seen = {tuple(row.obs[[0, 1, 4, 5, 6]]): row for row in rows.values()}
    (batch,) = seen
    for i in range(64):
        row = by_seen[tuple(batch.obs[i, :5].tolist())]
        one_hot = [float(row.skill[0] == choice) for choice in range(3)]
        torch.testing.assert_close(batch.obs[i, 5:], torch.tensor([*one_hot, row.elapsed / K]))
        torch.testing.assert_close(batch.obs_next[i, 5:], torch.tensor([*one_hot, (row.elapsed + 1) % K / K]))


def test_an_unknown_continuation_is_refused():
    with pytest.raises(ValueError, match="the method's at_end is 'again', expected one of zero, same, fresh"):
        make(Recording(at_end="again"))


# ------------------------------------------------------------------ fresh skills


@pytest.mark.parametrize("skills", [SKILLS, CHOICES], ids=["box", "choices"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_sampled_transitions_has_a_fresh_skill(share, skills):
    walk = Walk(2, skills=skills).step(60)
    level = along(walk, make(Recording(skills), fresh_skills=share, learning=replace(LEARNING, batch_size=2000)))
    before = walk.replay.all()
    batch, rows = level.sample(), stored(walk)
    stored_skills = torch.tensor(np.array([rows[tuple(obs)].skill for obs in batch.obs.tolist()]))
    changed = (batch.command.action != stored_skills).any(1).float().mean()
    assert changed == pytest.approx(share * (2 / 3 if skills is CHOICES else 1), abs=0.035)
    assert batch.command.action.dtype == stored_skills.dtype
    torch.testing.assert_close(batch.next_command.action, batch.command.action)
    torch.testing.assert_close(batch.rew, batch.command.action[:, 0] + 10 * batch.obs_next[:, 0])
    np.testing.assert_array_equal(walk.replay.all().info.command.action, before.info.command.action)


@pytest.mark.parametrize(("name", "share"), [("calm_skills", -0.1), ("fresh_skills", 1.1)])
def test_shares_out_of_range_are_named(name, share):
    with pytest.raises(ValueError, match=f"{name} is {share}"):
        make(Recording(), **{name: share})


# ------------------------------------------------------------------ calm skills


def test_a_share_of_skills_is_executed_without_noise():
    """Drawn when a skill begins, and kept to its end."""
    n = 2000
    level = make(Recording(), calm_skills=0.3)
    level.n_total_env_steps = 10**6
    memory, generator = level.initial_memory(n), torch.Generator().manual_seed(0)
    obs, skills = torch.randn(n, 7), torch.rand(n, 2) * 2 - 1
    calm = []
    for elapsed in (0, 1, 2, 0):
        command = Batch(
            action=skills, obs=obs, elapsed=torch.full((n,), elapsed), remaining=torch.full((n,), K - elapsed)
        )
        without = level.act(obs, command, level.initial_memory(n), explore=False, generator=generator).action
        decision = level.act(obs, command, memory, explore=True, generator=generator)
        memory = decision.memory
        calm.append((decision.action == without).all(1))
        assert torch.equal(calm[-1], memory.calm)
    assert float(calm[0].float().mean()) == pytest.approx(0.3, abs=0.04)
    assert torch.equal(calm[0], calm[1])
    assert torch.equal(calm[0], calm[2])
    both = float((calm[0] & calm[3]).float().mean())
    assert both == pytest.approx(0.09, abs=0.02)  # the next skill is drawn anew


def test_no_skill_is_calm_while_actions_are_random():
    level = make(Recording(), calm_skills=1.0, learning=replace(LEARNING, n_random_steps=10))
    obs, command = (
        torch.zeros(50, 7),
        Batch(
            action=torch.zeros(50, 2), obs=torch.zeros(50, 7), elapsed=torch.zeros(50), remaining=torch.full((50,), K)
        ),
    )
    decision = level.act(obs, command, level.initial_memory(50), explore=True, generator=torch.Generator())
    assert len(decision.action.unique(dim=0)) == 50


# ------------------------------------------------------------------ learning


def test_the_method_learns_at_every_step_and_its_metrics_are_reported():
    method = Recording()
    level = make(method, learning=replace(LEARNING, batch_size=8, n_random_steps=20))
    assert level.learn(10) == {}
    assert not method.learned  # there is nothing yet
    walk = Walk(2)
    along(walk, level)
    reports = {}
    for n in range(2, 61, 2):
        walk.step()
        reports[n] = level.learn(n)
    assert method.learned == [(n, n) for n in range(2, 61, 2)]
    assert all(metrics["skill/steps"] == n for n, metrics in reports.items())
    assert [n for n, metrics in reports.items() if "policy/reward" in metrics] == [30, 40, 50, 60]
    rewards = torch.cat([batch.rew for batch in method.batches])[-10 * 8 :]
    assert reports[60]["policy/reward"] == pytest.approx(float(rewards.mean()), rel=1e-4)


def test_actions_may_last_several_steps():
    level = make(Recording(), duration=2)
    obs = torch.zeros(3, 7)
    command = Batch(action=torch.zeros(3, 2), obs=obs, elapsed=torch.zeros(3), remaining=torch.full((3,), K))
    decision = level.act(obs, command, level.initial_memory(3), explore=False, generator=torch.Generator())
    assert decision.duration.tolist() == [2, 2, 2]
    walk = Walk(2, action_steps=2).step(60)
    batch = along(walk, level).sample()
    assert set(batch.duration.tolist()) == {1, 2}
    torch.testing.assert_close(batch.next_command.elapsed, batch.command.elapsed + batch.duration)
    over = batch.next_command.remaining == 0
    assert over.any()
    assert not batch.discount[over].any()


@pytest.mark.parametrize("sb_start_duration", [0, 100])
def test_a_level_resumes_bit_for_bit(tmp_path, sb_start_duration):
    """Policy, model, whitening and optimisers."""
    config = SkillModelConfig(n_first=30, batch_size=16, n_priors=3, refresh_every=20, report_every=20)

    def begin(seed):
        method = SPlaTES(TASK, make_world(seed=seed, sb_start_duration=sb_start_duration), K, config=config)
        walk = Walk(2, size=400)
        level = make(method, seed=seed, fresh_skills=0.5, learning=replace(LEARNING, batch_size=16))
        walk.replay = level.replay
        return walk, level

    def go_on(walk, level, n_steps):
        reports = []
        for _ in range(n_steps):
            walk.step()
            reports.append(level.learn(2 * len(walk.rows[0])))
        return reports

    walk, level = begin(0)
    go_on(walk, level, 20)
    state = {"level": level.state_dict(), "replay": level.replay.state_dict(), "globals": globals_state()}
    Checkpoints(tmp_path).save(state, 40)
    reports = go_on(walk, level, 12)

    walk, other = begin(1)
    walk.step(20)
    state = Checkpoints(tmp_path).load()
    other.load_state_dict(state["level"])
    other.replay.load_state_dict(state["replay"])
    restore_globals(state["globals"])
    assert go_on(walk, other, 12) == reports
    assert {"policy/reward", "skill/information", "model/loss"} <= {name for metrics in reports for name in metrics}
    assert leaves(other.state_dict()) == leaves(level.state_dict())


def test_the_command_space_is_the_skill_space():
    assert make(Recording(CHOICES)).command_space == CHOICES
    assert make(Recording()).command_space == SKILLS
    with pytest.raises(ValueError, match=r"action space is Discrete\(2\), expected a flat Box"):
        SkillLevel(make(Recording()).algorithm, Recording(), spaces.Discrete(2), n_envs=1)
