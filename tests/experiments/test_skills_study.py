"""The study of skills, with levels whose skills are known in closed form."""

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
from experiments.benchmarks import skills as study
from experiments.benchmarks.skills import PUSHES, Stage, carry_out, ceiling, disturb, draw_cases, pushed_ends
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
"""Metres that an agent moves at most, along each axis."""


class Blind(Level):
    """Walks with the skill as its velocity, whatever happens; with noise while exploring."""

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


class Watchful(Blind):
    """Walks to where the skill leads without pushes, and takes what pushed it in the last step for a drift."""

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
    """Asks for skills that are given."""

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


def test_who_corrects_nothing_is_shifted_by_the_whole_push() -> None:
    starts, skills = open_space(50)
    told = disturb(stage(Blind()), starts, skills, starts + STEP * K * skills.numpy())
    for condition, distance in (("undisturbed", 0.0), ("drift", K * 0.04), ("impulse", 0.3)):
        for name in study.DISTANCES:
            for value in told[condition][name].values():
                assert value == pytest.approx(distance, abs=2e-6), (condition, name)


def test_who_corrects_all_is_not_shifted_at_all() -> None:
    starts, skills = open_space(50)
    predicted = starts + 0.3 * STEP * K * skills.numpy() + [0.03, 0.04]
    told = disturb(stage(Watchful(0.3)), starts, skills, predicted)
    for condition, distance in (("undisturbed", 0.0), ("drift", K * 0.04), ("impulse", 0.3)):
        assert told[condition]["shift"]["mean"] == pytest.approx(0.0, abs=2e-6)
        assert told[condition]["uncorrected"]["mean"] == pytest.approx(distance, abs=2e-6)
        assert told[condition]["from_prediction"]["mean"] == pytest.approx(0.05, abs=2e-6)


@pytest.mark.parametrize("condition", ["drift", "impulse"])
def test_pushes_come_from_all_directions(condition: str) -> None:
    starts, skills = open_space(64)
    own = carry_out(stage(Blind()), starts, skills)[0][-1, :, :2].numpy()
    shifts = pushed_ends(stage(Blind()), starts, skills, condition) - own
    angles = np.arctan2(shifts[:, 1], shifts[:, 0]) % (2 * np.pi)
    assert np.allclose(np.sort(angles[:16] + 1e-4), 2 * np.pi * np.arange(16) / 16, atol=1e-3)
    assert np.allclose(shifts[:16], shifts[16:32], atol=1e-5)
    assert np.allclose(shifts.sum(0), 0, atol=1e-4)


def test_the_impulse_comes_in_mid_skill() -> None:
    starts, skills = open_space(3)
    rules = study.rules_of("impulse", math.pi / 2, K)
    pushed, own = (carry_out(stage(Blind()), starts, skills, **r)[0][..., :2] for r in (rules, {}))
    for step in range(K + 1):
        expected = torch.tensor([0.0, 0.3 if step >= 5 else 0.0]).expand(3, 2)
        torch.testing.assert_close(pushed[step] - own[step], expected, atol=2e-6, rtol=0)


def test_skills_are_asked_for_as_a_hierarchy_does() -> None:
    starts, skills = open_space(4)
    asked, level = Blind(), Blind()
    obs, taken = carry_out(stage(level), starts, skills)
    agent = Hierarchy([Top(skills), asked], TASK)
    env = Maze2DVectorEnv(4, "simple", autoreset_mode="Disabled")
    now = TASK.flatten(env.reset(seed=study.SEED, options={"start": starts})[0])
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


def test_starts_are_all_free_places_alike() -> None:
    method = SimpleNamespace(prior=lambda n, device: 2 * torch.rand(n, 2) - 1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    starts, skills = draw_cases(method, 3000)
    assert torch.equal(before, torch.get_rng_state())
    again = draw_cases(method, 3000)
    assert np.array_equal(starts, again[0])
    assert torch.equal(skills, again[1])
    for row, column in np.argwhere(MEDIUM.walls):  # the nearest point of a wall's square is not within the radius
        nearest = np.clip(starts, (column, row), (column + 1, row + 1))
        assert np.linalg.norm(starts - nearest, axis=1).min() > RADIUS - 1e-5
    rooms = [((starts >= (x, y)) & (starts < (x + 1, y + 1))).all(1).sum() for y, x in np.argwhere(~MEDIUM.walls)]
    assert sum(rooms) == 3000
    assert min(rooms) > 3000 / len(rooms) / 2  # cells with more walls around them have less room


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    told = study.estimate(values)
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert told["mean"] == pytest.approx(values.mean())
    assert told["low"] == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert told["high"] == pytest.approx(values.mean() + error, abs=0.15 * error)


@pytest.mark.parametrize(
    ("n_dims", "std", "expected"),
    [(2, 1.0, 1.18), (2, 0.5, 2.24), (2, 0.3, 3.05), (2, 0.1, 4.26), (3, 1.0, 1.75), (3, 0.3, 4.06), (5, 1.0, 2.83)],
)
def test_the_ceiling_is_that_of_ideal_skills(n_dims: int, std: float, expected: float) -> None:
    """Numbers of ALGORITHMS.md, B.1."""
    assert ceiling(n_dims, std) == pytest.approx(expected, abs=0.02)


def test_the_ceiling_lies_between_nothing_and_everything() -> None:
    assert ceiling(2, 1e-3) == pytest.approx(math.log(101), abs=1e-3)
    assert ceiling(2, 1e3) == pytest.approx(0.0, abs=1e-3)


class Ideal:
    """A method that knows exactly what the skills of `Blind` lead to, scaled so that it has unit variance."""

    def __init__(self, repeat: int, speed: float) -> None:
        self.config = SkillModelConfig(std=7.0, final_std=0.5, n_priors=3)  # of which only the second one is to count
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
def test_ideal_skills_tell_as_much_as_the_ceiling(repeat: int) -> None:
    starts, skills = open_space(2000)
    obs, _ = carry_out(stage(Blind(0.5)), starts, skills)
    told = study.told_by_outcomes(Ideal(repeat, 0.5), obs, skills)
    assert told == pytest.approx(ceiling(2, 0.5), abs=0.05)
    other = study.told_by_outcomes(Ideal(repeat, 0.5), obs, skills.flip(0))
    assert other < 0  # an outcome of another skill


def test_of_dads_it_is_the_reward() -> None:
    seed_globals(0)
    task = make_task(f"envs:{study.ENV}", 1)
    agent = DADSAgent.preset("debug").build(task, torch.device("cpu"), seed=0)
    stage, method = study.stage_of(agent)
    starts, skills = draw_cases(method, 40)
    obs, _ = carry_out(stage, starts, skills)
    told = study.told_by_outcomes(method, obs, skills)
    method.config = replace(method.config, std=method.config.final_std, n_priors=study.N_PRIORS)
    seed_globals(study.SEED)
    with torch.no_grad():
        rewards = [
            method.reward(Batch(obs=a, obs_next=b, command=Batch(action=skills, obs=obs[0]))) for a, b in pairwise(obs)
        ]
    assert len(rewards) == method.duration
    assert told == pytest.approx(float(torch.stack(rewards).mean()), abs=1e-6)


def test_spreads_are_those_of_the_noise_and_of_the_skills() -> None:
    noise, speed, n_each = 0.1, 0.2, 8
    method = SimpleNamespace(prior=lambda n, device: 2 * torch.rand(n, 2) - 1)
    told = study.spreads(stage(Blind(speed, noise), HALL), method, n_starts=200, n_each=n_each)
    within = math.sqrt(2 * K) * STEP * noise  # of K independent steps, in two dimensions
    between = math.sqrt(2 / 3 * (STEP * K * speed) ** 2 + within**2 / n_each)  # 1/3: variance of U[-1, 1]
    assert told["within"] == pytest.approx(within, rel=0.03)  # walls stop a few
    assert told["between"] == pytest.approx(between, rel=0.03)
    assert told["ratio"] == pytest.approx(told["between"] / told["within"])


def test_a_skill_level_spreads_with_its_noise_only() -> None:
    """However many skills it carries out without the policy's noise while it learns."""
    seed_globals(0)
    agent = SPlaTESAgent.preset("debug").build(make_task(f"envs:{study.ENV}", 1), torch.device("cpu"), seed=0)
    stage, method = study.stage_of(agent)
    stage.level.n_total_env_steps = 10**6  # past the random actions
    found = []
    for share in (0.0, 1.0):
        stage.level.calm_skills = share
        found.append(study.spreads(stage, method, n_starts=5))
        assert stage.level.calm_skills == share
    assert found[0] == found[1]
    assert found[0]["within"] > 0.01


def _result(agent: str, seed: int, shift: float) -> dict[str, Any]:
    told = {name: {"mean": shift, "low": shift / 2, "high": 2 * shift} for name in study.DISTANCES}
    numbers = dict.fromkeys(("std", "information", "ceiling", "length", "between", "within", "ratio", "error"), 0.25)
    return {
        **{"run": f"runs/{agent}-{seed}", "agent": agent, "seed": seed, "n_total_env_steps": 1000},
        **{"conditions": dict.fromkeys(PUSHES, told), "command": f"command {seed}", "machine": "Machine: one."},
        **numbers,
    }


def test_the_ratio_is_over_all_seeds() -> None:
    single = [_result("splates", 0, 0.1), _result("dads", 0, 0.4)]
    assert study.ratio(single, "drift", "shift") == pytest.approx({"mean": 0.25, "low": 0.25, "high": 0.25})
    more = [*single, _result("splates", 1, 0.2), _result("dads", 1, 0.2)]
    told = study.ratio(more, "drift", "shift")
    assert told == pytest.approx(
        {"mean": 0.5, "low": 0.25, "high": 1.0}
    )  # the extremes are drawn with probability 1/16


def test_the_report_has_a_row_for_each(tmp_path: Path) -> None:
    output = tmp_path / "x.md"
    study.report(output, [_result("splates", 0, 0.1)])
    assert "\n| drift |" not in output.read_text()  # nothing to compare with yet
    study.report(output, [_result("splates", 0, 0.1), _result("dads", 0, 0.4)])
    lines = output.read_text().splitlines()
    rows = ("| dads | 0 | 1000 | impulse |" + " 0.400 [0.200, 0.800] |" * 3, "| splates | 0 |" + " 0.250 |" * 8)
    assert {*rows, "| drift |" + " 0.250 [0.250, 0.250] |" * 3, "Machine: one."} <= set(lines)


def test_runs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(args: Any) -> tuple[Any, Hierarchy, int]:
        """An agent that has learned nothing."""
        loaded.append(args.run)
        name = args.run.name
        settings = {"splates": SPlaTESAgent, "dads": DADSAgent}[name].presets["debug"]
        seed_globals(0)
        agent = settings.build(make_task(f"envs:{study.ENV}", 1), torch.device("cpu"), seed=0)
        return SimpleNamespace(env=study.ENV, agent=name, seed=3, threads=1), agent, 120

    monkeypatch.setattr(study, "N_CASES", 40)
    monkeypatch.setattr(study, "spreads", partial(study.spreads, n_starts=3))
    monkeypatch.setattr(study, "load", load)
    splates, dads = folders = [tmp_path / name for name in ("splates", "dads")]
    for folder in folders:
        folder.mkdir()
    output = tmp_path / "out" / "x.md"
    call(study.main, "--runs", splates, "--output", output)
    assert loaded == [splates] * 2  # once to measure, once to draw
    first = output.with_suffix(".jsonl").read_text()
    call(study.main, "--runs", splates, dads, "--output", output)
    assert loaded[2:] == [dads, dads, splates]
    text = output.with_suffix(".jsonl").read_text()
    assert text.startswith(first)
    results = [json.loads(line) for line in text.splitlines()]
    assert [(r["agent"], r["seed"], r["n_total_env_steps"]) for r in results] == [("splates", 3, 120), ("dads", 3, 120)]
    assert results[0]["command"].endswith(f"skills --runs {splates} --output {output}")
    for r in results:
        assert r["conditions"]["undisturbed"]["shift"]["high"] < 1e-6
        assert 0 < r["conditions"]["drift"]["uncorrected"]["mean"] <= 4 * 0.04 + 1e-6  # the debug preset's skills
        assert r["error"] > 0
        assert r["information"] < r["ceiling"]
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "![ways](x.png)" in output.read_text()
    splates.rmdir()
    call(study.main, "--runs", splates, dads, "--output", output)  # from what was kept
    assert len(loaded) == 5
