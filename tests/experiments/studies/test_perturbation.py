"""Measurements of skills, on levels whose skills are known in closed form."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch

from agents.dads import DADSAgent
from agents.splates import SPlaTESAgent
from envs.maze2d_layouts import MEDIUM, RADIUS, SIMPLE, Layout
from envs.maze2d_vector import Maze2DVectorEnv
from experiments.studies import perturbation
from experiments.studies.perturbation import Stage, carry_out, ceiling, disturb, draw_cases, pushed_ends
from layeredrl.environments import make_task
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Decision, Level
from layeredrl.randomness import seed_globals
from layeredrl.skills import SkillModelConfig
from layeredrl.skills.information import fixed_log_prob, information
from tests.experiments.commands import call

K = 10
SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)
TASK = make_task("envs:Maze2D-Simple-v0", 1)
HALL = Layout("hall", ("#" * 40, *["#" + "." * 38 + "#"] * 38, "#" * 40), ((1.5, 1.5),), ((9.5, 9.5),))
STEP = 0.1
"""Largest motion of the agent in a step along each axis, in metres."""
PRIOR = SimpleNamespace(prior=lambda n, device: 2 * torch.rand(n, 2) - 1)


class Blind(Level):
    """Walks with the skill as its velocity and corrects nothing; with noise while exploring."""

    action_space = command_space = SPACE

    def __init__(self, speed: float = 1.0, noise: float = 0.0) -> None:
        self.speed, self.noise = speed, noise
        self.commands: list[tuple[torch.Tensor, Batch]] = []

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch(n=torch.zeros(n_envs, dtype=torch.int64))

    def act(
        self, obs: torch.Tensor, command: Batch | None, memory: Batch, *, explore: bool, generator: Any
    ) -> Decision:
        self.commands.append((obs, command))
        action = self.speed * command.action
        if explore:
            action = action + self.noise * torch.randn(action.shape)
        return Decision(action, np.ones(len(obs), np.int64), Batch(n=memory.n + 1))


class Correcting(Blind):
    """Walks to the undisturbed end of the skill, and assumes that the last push goes on as a drift."""

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch(expected=torch.full((n_envs, 2), math.nan))

    def act(
        self, obs: torch.Tensor, command: Batch | None, memory: Batch, *, explore: bool, generator: Any
    ) -> Decision:
        here = obs[:, :2]
        target = command.obs[:, :2] + self.speed * STEP * K * command.action
        drift = (here - memory.expected).nan_to_num(0.0)
        action = ((target - here - drift) / STEP).clamp(-1, 1)
        return Decision(action, np.ones(len(obs), np.int64), Batch(expected=here + STEP * action))


class Top(Level):
    """Commands given skills."""

    action_space = SPACE

    def __init__(self, skills: torch.Tensor) -> None:
        self.skills = skills

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch()

    def act(
        self, obs: torch.Tensor, command: Batch | None, memory: Batch, *, explore: bool, generator: Any
    ) -> Decision:
        return Decision(self.skills, np.full(len(obs), K), memory)


def stage(level: Level, layout: Layout = SIMPLE) -> Stage:
    return Stage(level, TASK, K, layout)


def open_space(n: int) -> tuple[np.ndarray, torch.Tensor]:
    """Starts in the middle of the simple room, and skills."""
    generator = np.random.default_rng(0)
    return generator.uniform(4.5, 5.5, (n, 2)), torch.from_numpy(generator.uniform(-1, 1, (n, 2)).astype(np.float32))


@pytest.mark.parametrize(("level", "speed"), [(Blind, 1.0), (Correcting, 0.3)])
def test_displacements_of_a_level_that_corrects_nothing_and_of_one_that_corrects_all(level, speed) -> None:
    starts, skills = open_space(20)
    predicted = starts + speed * STEP * K * skills.numpy() + [0.03, 0.04]
    found = disturb(stage(level(speed)), starts, skills, predicted)
    for condition, distance in (("undisturbed", 0.0), ("drift", K * 0.04), ("impulse", 0.3)):
        own = distance if level is Blind else 0.0
        assert found[condition]["shift"] == pytest.approx(own, abs=2e-6)
        assert found[condition]["uncorrected"] == pytest.approx(distance, abs=2e-6)
        if own == 0:
            assert found[condition]["from_prediction"] == pytest.approx(0.05, abs=2e-6)


@pytest.mark.parametrize("condition", ["drift", "impulse"])
def test_pushes_have_all_directions(condition: str) -> None:
    starts, skills = open_space(32)
    own = carry_out(stage(Blind()), starts, skills)[0][-1, :, :2].numpy()
    shifts = pushed_ends(stage(Blind()), starts, skills, condition) - own
    angles = np.arctan2(shifts[:, 1], shifts[:, 0]) % (2 * np.pi)
    assert np.allclose(np.sort(angles[:16] + 1e-4), 2 * np.pi * np.arange(16) / 16, atol=1e-3)
    assert np.allclose(shifts[:16], shifts[16:32], atol=1e-5)


def test_the_impulse_comes_halfway_through_a_skill() -> None:
    starts, skills = open_space(3)
    rules = perturbation.rules_of("impulse", math.pi / 2, K)
    pushed, own = (carry_out(stage(Blind()), starts, skills, **r)[0][..., :2] for r in (rules, {}))
    for step in range(K + 1):
        expected = torch.tensor([0.0, 0.3 if step >= 5 else 0.0]).expand(3, 2)
        torch.testing.assert_close(pushed[step] - own[step], expected, atol=2e-6, rtol=0)


def test_skills_are_commanded_as_in_a_hierarchy() -> None:
    starts, skills = open_space(4)
    asked, level = Blind(), Blind()
    obs, taken = carry_out(stage(level), starts, skills)
    agent = Hierarchy([Top(skills), asked], TASK)
    env = Maze2DVectorEnv(4, "simple", autoreset_mode="Disabled")
    now = TASK.flatten(env.reset(seed=perturbation.SEED, options={"start": starts})[0])
    carry = agent.initial_carry(4, 0)
    for step in range(K):
        assert np.array_equal(obs[step], now)
        action = agent.act(now, carry, explore=False)
        assert np.array_equal(taken[step], action)
        now = TASK.flatten(env.step(action)[0])
        zeros = np.zeros(4)
        agent.observe(
            Batch(rew=zeros, terminated=zeros > 0, truncated=zeros > 0, obs_next=now), np.arange(4), carry, learn=False
        )
    assert np.array_equal(obs[K], now)
    assert len(asked.commands) == len(level.commands) == K
    for (saw, right), (sees, command) in zip(asked.commands, level.commands, strict=True):
        assert torch.equal(saw, sees)
        for key in ("action", "obs", "elapsed", "remaining"):
            assert torch.equal(right[key], command[key])
            assert right[key].dtype == command[key].dtype


def test_starts_are_uniform_among_free_places() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    starts, skills = draw_cases(PRIOR, 1500)
    assert torch.equal(before, torch.get_rng_state())
    again = draw_cases(PRIOR, 1500)
    assert np.array_equal(starts, again[0])
    assert torch.equal(skills, again[1])
    for row, column in np.argwhere(MEDIUM.walls):  # the nearest point of a wall's square is not within the radius
        nearest = np.clip(starts, (column, row), (column + 1, row + 1))
        assert np.linalg.norm(starts - nearest, axis=1).min() > RADIUS - 1e-5
    rooms = [((starts >= (x, y)) & (starts < (x + 1, y + 1))).all(1).sum() for y, x in np.argwhere(~MEDIUM.walls)]
    assert sum(rooms) == 1500
    assert min(rooms) > 1500 / len(rooms) / 3  # cells with more walls around them have less room


@pytest.mark.parametrize(("n_dims", "std", "expected"), [(2, 1.0, 1.18), (2, 0.1, 4.26), (3, 0.3, 4.06)])
def test_the_ceiling_is_that_of_ideal_skills(n_dims: int, std: float, expected: float) -> None:
    """Numbers of ALGORITHMS.md, B.1."""
    assert ceiling(n_dims, std) == pytest.approx(expected, abs=0.02)


def test_the_ceiling_has_limits() -> None:
    assert ceiling(2, 1e-3, n=1000) == pytest.approx(math.log(101), abs=1e-3)
    assert ceiling(2, 1e3, n=1000) == pytest.approx(0.0, abs=1e-3)


class Ideal:
    """Method that knows the exact outcome of the skills of `Blind`, scaled to unit variance."""

    def __init__(self, repeat: int, speed: float) -> None:
        self.config = SkillModelConfig(std=7.0, final_std=0.5, n_priors=3)  # only final_std should count
        self.duration, self.moves = K, speed * STEP * K / repeat
        self.world = SimpleNamespace(repeat=repeat, encode=lambda obs: (obs[..., :2], obs[..., 2:4]))

    def potentials(self, start: Any, context: Any, skill: Any, outcomes: Any) -> Any:
        others = 2 * torch.rand(len(skill), self.config.n_priors, 2) - 1
        means = start[:, None] + self.moves * torch.cat([skill[:, None], others], 1)
        weights, scale = torch.ones(*means.shape[:2], 1), math.sqrt(3) / self.moves
        return [
            information(fixed_log_prob(scale * x[:, None], scale * means[:, :, None], weights, self.config.std))
            for x in outcomes
        ]


@pytest.mark.parametrize("repeat", [1, K])
def test_ideal_skills_have_the_information_of_the_ceiling(repeat: int) -> None:
    starts, skills = open_space(1000)
    obs, _ = carry_out(stage(Blind(0.5)), starts, skills)
    found = perturbation.information_of_outcomes(Ideal(repeat, 0.5), obs, skills)
    assert found == pytest.approx(ceiling(2, 0.5), abs=0.07)
    other = perturbation.information_of_outcomes(Ideal(repeat, 0.5), obs, skills.flip(0))
    assert other < 0  # an outcome of another skill


def test_the_information_of_dads_is_its_reward() -> None:
    seed_globals(0)
    task = make_task(f"envs:{perturbation.ENV}", 1)
    agent = DADSAgent.preset("debug").build(task, torch.device("cpu"), seed=0)
    stage, method = perturbation.stage_of(agent)
    starts, skills = draw_cases(method, 40)
    obs, _ = carry_out(stage, starts, skills)
    found = perturbation.information_of_outcomes(method, obs, skills)
    method.config = replace(method.config, std=method.config.final_std, n_priors=perturbation.N_PRIORS)
    seed_globals(perturbation.SEED)
    with torch.no_grad():
        rewards = [
            method.reward(Batch(obs=a, obs_next=b, command=Batch(action=skills, obs=obs[0]))) for a, b in pairwise(obs)
        ]
    assert len(rewards) == method.duration
    assert found == pytest.approx(float(torch.stack(rewards).mean()), abs=1e-6)


def test_spreads_are_those_of_the_noise_and_of_the_skills() -> None:
    noise, speed, n_each = 0.1, 0.2, 8
    found = perturbation.spreads(stage(Blind(speed, noise), HALL), PRIOR, n_starts=100, n_each=n_each)
    within = math.sqrt(2 * K) * STEP * noise  # of K independent steps, in two dimensions
    between = math.sqrt(2 / 3 * (STEP * K * speed) ** 2 + within**2 / n_each)  # 1/3: variance of U[-1, 1]
    assert found["within"] == pytest.approx(within, rel=0.04)  # walls stop a few
    assert found["between"] == pytest.approx(between, rel=0.04)
    assert found["ratio"] == pytest.approx(found["between"] / found["within"])


def test_a_skill_level_spreads_with_its_noise_only() -> None:
    """The share of skills that it carries out without the policy's noise while learning has no effect."""
    seed_globals(0)
    agent = SPlaTESAgent.preset("debug").build(make_task(f"envs:{perturbation.ENV}", 1), torch.device("cpu"), seed=0)
    stage, method = perturbation.stage_of(agent)
    stage.level.n_total_env_steps = 10**6  # past the random actions
    found = []
    for share in (0.0, 1.0):
        stage.level.calm_skills = share
        found.append(perturbation.spreads(stage, method, n_starts=3))
        assert stage.level.calm_skills == share
    assert found[0] == found[1]
    assert found[0]["within"] > 0.01


def test_intervals() -> None:
    pytest.importorskip("rliable")
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    mean, low, high = map(float, perturbation.mean_with_interval(values).translate(str.maketrans("[],", "   ")).split())
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert (mean, low, high) == pytest.approx((values.mean(), values.mean() - error, values.mean() + error), abs=0.02)
    assert perturbation.ratio_with_interval(np.array([0.1]), np.array([0.4])) == "0.250"
    # Both extremes are drawn with probability 1/16.
    ratio = perturbation.ratio_with_interval(np.array([0.1, 0.2]), np.array([0.4, 0.2]))
    assert ratio == "0.500 [0.250, 1.000]"


@pytest.mark.slow
def test_runs_are_measured_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rliable")

    def load(folder: Path, *, device: str) -> tuple[Any, Hierarchy, int]:
        """Load an agent that has learned nothing."""
        name = folder.name
        settings = {"splates": SPlaTESAgent, "dads": DADSAgent}[name].preset("debug")
        seed_globals(0)
        agent = settings.build(make_task(f"envs:{perturbation.ENV}", 1), torch.device("cpu"), seed=0)
        return SimpleNamespace(env=perturbation.ENV, agent=name, seed=3, threads=1), agent, 120

    monkeypatch.setattr(perturbation, "N_CASES", 40)
    monkeypatch.setattr(perturbation, "N_RESAMPLES", 20)
    monkeypatch.setattr(perturbation, "spreads", partial(perturbation.spreads, n_starts=3))
    monkeypatch.setattr(perturbation, "load", load)
    output = tmp_path / "x.md"
    call(perturbation.main, "--runs", tmp_path / "splates", tmp_path / "dads", "--output", output)
    results = json.loads(output.with_suffix(".json").read_bytes())
    assert [(r["agent"], r["seed"], r["n_total_env_steps"]) for r in results] == [("splates", 3, 120), ("dads", 3, 120)]
    for r in results:
        assert r["means"]["undisturbed"]["shift"] < 1e-6
        assert 0 < r["means"]["drift"]["uncorrected"] <= 4 * 0.04 + 1e-6  # the debug preset's skills have four steps
        assert r["error"] > 0
        assert r["information"] < r["ceiling"]
    text = output.read_text()
    drift = results[0]["means"]["drift"]["shift"] / results[1]["means"]["drift"]["shift"]
    assert f"\n| drift | {drift:.3f} |" in text
    assert f"experiments.studies.perturbation --runs {tmp_path / 'splates'}" in text
    assert text.count("| splates | 3 | 120 |") == 3
    assert "(x.png)" in text
    assert output.with_suffix(".png").stat().st_size > 10_000
