"""Measure how pushes displace trained skills, and how diverse the skills are.

python -m experiments.studies.perturbation --runs runs/maze/splates-Maze2D-Medium-v0-seed0 ...

All runs carry out the same skills from the same starts in Maze2D-Medium: undisturbed, in a drift, and with an impulse,
none of which occurred in training. Long results: experiments/results/skills/perturbation.md.
"""

import copy
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from envs.maze2d_drawing import draw_walls
from envs.maze2d_layouts import MEDIUM, Layout
from envs.maze2d_vector import Maze2DVectorEnv
from experiments.benchmarks.machine import machine_line
from experiments.pictures.fans import skill_level_of, some_skills
from experiments.report.statistics import interval
from experiments.report.tables import Table
from experiments.run.command_line import fail
from experiments.run.loading import load
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Level
from layeredrl.randomness import fork_globals, seed_globals
from layeredrl.skills import ModelBasedSkills, SkillMethod
from layeredrl.skills.dads import LOWEST
from layeredrl.skills.information import fixed_log_prob, information
from layeredrl.task import TaskSpec

Array = NDArray[Any]
ENV = "Maze2D-Medium-v0"
PUSHES: dict[str, dict[str, float]] = {"undisturbed": {}, "drift": {"drift": 0.04}, "impulse": {"impulse": 0.3}}
"""Pushes of the maze by condition, in metres; an agent itself moves at most 0.1 m along an axis in a step."""
DISTANCES = ("shift", "uncorrected", "from_prediction")
"""Distances of ends that are measured: see `disturb`."""
N_CASES = 2000
"""Number of skills of a run, each from a start of its own."""
N_DIRECTIONS = 16
"""Number of directions of pushes; each needs a maze of its own, as a maze has one direction for all its episodes."""
N_PRIORS = 100
"""Number of skills from the prior that an outcome's skill is compared with, as in DADS."""
SEED = 4_000_000
"""Random seed of starts and skills; far from those of training and evaluation."""
N_RESAMPLES = 1000
"""Number of resamples of an interval."""
ROOM = (2.0, 2.0)
"""Start of the skills in the figure: the middle of a room of 2 x 2 m, the widest place of the maze."""


@dataclass(frozen=True)
class PerturbationConfig:
    """Measure the skills of trained runs."""

    runs: tuple[Path, ...]
    """Folders of runs of `splates` and `dads`."""
    output: Path = Path("perturbation.md")
    """Markdown file with the tables; figure and numbers (JSON) go beside it."""


@dataclass(frozen=True)
class Stage:
    """Level that carries out skills, and its environment."""

    level: Level
    """Level with skills as commands, which decides at every step."""
    task: TaskSpec
    """Task of the maze; its observations begin with the position."""
    duration: int
    """Number of steps K of a skill."""
    layout: Layout = MEDIUM
    """Layout of the maze."""


def draw_cases(method: SkillMethod, n: int, layout: Layout = MEDIUM, seed: int = SEED) -> tuple[Array, Tensor]:
    """Draw starts, uniform among all positions without contact to a wall, (n, 2) in metres, and skills (n, Z)."""
    rng = np.random.default_rng(seed)
    starts: list[Array] = []
    while len(starts) < n:
        point = rng.uniform((0.0, 0.0), layout.size)
        if not layout.touches(*point):
            starts.append(point)
    with fork_globals():
        seed_globals(seed)
        return np.array(starts), method.prior(n, torch.device("cpu"))


@torch.no_grad()
def carry_out(
    stage: Stage, starts: Array, skills: Tensor, *, actions: Array | None = None, explore: bool = False, **rules: Any
) -> tuple[Tensor, Array]:
    """Carry out skills (n, Z) from starts x, y in metres (n, 2), side by side.

    Args:
        stage: Level and environment.
        starts: Initial positions.
        skills: Skills.
        actions: Actions (K, n, 2) to take instead of those of the level.
        explore: Argument of `Level.act`.
        **rules: Rules of the maze, such as a drift.

    Returns:
        Flat observations (K + 1, n, O), the first one before the first step, and actions (K, n, 2).
    """
    env = Maze2DVectorEnv(len(starts), stage.layout, autoreset_mode="Disabled", **rules)
    seen = [torch.from_numpy(stage.task.flatten(env.reset(seed=SEED, options={"start": starts})[0]))]
    memory, generator, taken = stage.level.initial_memory(len(starts)), torch.Generator().manual_seed(SEED), []
    for step in range(stage.duration):
        if actions is None:
            elapsed = torch.full((len(starts),), step)
            command = Batch(action=skills, obs=seen[0], elapsed=elapsed, remaining=stage.duration - elapsed)
            decision = stage.level.act(seen[-1], command, memory, explore=explore, generator=generator)
            memory = decision.memory
            taken.append(decision.action.numpy())
        else:
            taken.append(actions[step])
        seen.append(torch.from_numpy(stage.task.flatten(env.step(taken[-1])[0])))
    return torch.stack(seen), np.stack(taken)


def rules_of(condition: str, angle: float, duration: int) -> dict[str, Any]:
    """Return the rules of a maze that pushes in one direction; an impulse comes halfway through a skill."""
    direction = np.array([math.cos(angle), math.sin(angle)])
    pushes = {name: length * direction for name, length in PUSHES[condition].items()}
    return {**pushes, "impulse_at": max(duration // 2, 1)}


def pushed_ends(stage: Stage, starts: Array, skills: Tensor, condition: str, actions: Array | None = None) -> Array:
    """Return the ends of skills in metres, (n, 2), with directions of pushes in turns; arguments as `carry_out`."""
    ends = np.empty((len(starts), 2), np.float32)
    for k in range(min(N_DIRECTIONS, len(starts))):
        rows = slice(k, None, N_DIRECTIONS)
        rules = rules_of(condition, 2 * math.pi * k / N_DIRECTIONS, stage.duration)
        own = None if actions is None else actions[:, rows]
        ends[rows] = carry_out(stage, starts[rows], skills[rows], actions=own, **rules)[0][-1, :, :2]
    return ends


def disturb(stage: Stage, starts: Array, skills: Tensor, predicted: Array) -> dict[str, dict[str, Array]]:
    """Return distances of the ends of skills in metres, (n,), by condition and name.

    `shift`: from the skill's own undisturbed end. `uncorrected`: the same if the undisturbed actions are repeated
    regardless of the push. `from_prediction`: from the predicted undisturbed end.

    Args:
        stage: Level and environment.
        starts: Initial positions (n, 2).
        skills: Skills (n, Z).
        predicted: Predicted ends (n, 2).
    """
    obs, actions = carry_out(stage, starts, skills)
    own, found = obs[-1, :, :2].numpy(), {}
    for condition in PUSHES:
        ends = pushed_ends(stage, starts, skills, condition)
        blind = pushed_ends(stage, starts, skills, condition, actions)
        gaps = (ends - own, blind - own, ends - predicted)
        found[condition] = {name: np.linalg.norm(gap, axis=-1) for name, gap in zip(DISTANCES, gaps, strict=True)}
    return found


def mean_with_interval(values: Array) -> str:
    """Format the mean of values (n,) with its 95 % bootstrap interval."""
    return _with_interval(interval(lambda drawn: drawn.mean(0), values.astype(np.float64)[:, None], reps=N_RESAMPLES))


def ratio_with_interval(first: Array, second: Array) -> str:
    """Format the ratio of two means over runs, (n,) and (m,), with its 95 % bootstrap interval."""
    return _with_interval(
        interval(lambda a, b: a.mean(0) / b.mean(0), first[:, None], second[:, None], reps=N_RESAMPLES)
    )


def _with_interval(found: Sequence[Array]) -> str:
    mean, low, high = (float(part[0]) for part in found)
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def ceiling(n_dims: int, std: float, n: int = 20_000) -> float:
    """Return the information of ideal skills: uniform in [-1, 1]^d, with a known linear outcome of unit variance."""
    skills = 2 * torch.rand((n, 1 + N_PRIORS, n_dims), generator=torch.Generator().manual_seed(0)) - 1
    means = math.sqrt(3) * skills
    log_prob = fixed_log_prob(means[:, :1], means[:, :, None], torch.ones(*skills.shape[:2], 1), std)
    return float(information(log_prob).mean())


@torch.no_grad()
def information_of_outcomes(method: ModelBasedSkills, obs: Tensor, skills: Tensor) -> float:
    """Return the mean information in nats that outcomes carry about skills (n, Z).

    Outcomes are those of the model's own steps; the method's standard deviation is that at the end of training. Cut
    off below as in DADS, this is the mean of DADS' reward.

    Args:
        method: Skill method.
        obs: Observations while the skills are carried out, (K + 1, n, O).
        skills: Skills.
    """
    final = copy.copy(method)
    final.config = replace(method.config, std=method.config.final_std, n_priors=N_PRIORS)
    states, context = method.world.encode(obs[:: method.duration // method.world.repeat])
    values = []
    with fork_globals():
        seed_globals(SEED)
        for t in range(len(states) - 1):
            for i in range(0, len(skills), 250):  # each with a hundred others: all at once would fill the memory
                rows = slice(i, i + 250)
                values += final.potentials(states[t, rows], context[t, rows], skills[rows], [states[t + 1, rows]])
    return float(torch.cat(values).clamp(min=LOWEST).mean())


def spreads(
    stage: Stage, method: SkillMethod, n_starts: int = 100, n_skills: int = 10, n_each: int = 16
) -> dict[str, float]:
    """Return the spread of the ends of skills with a common start and the stochastic policy, in metres.

    `between`: distance of the mean ends of different skills from their centre. `within`: distance of the ends of one
    skill from their mean. Both are root mean squares, from unbiased variances. `ratio`: `between` over `within`.
    """
    starts, skills = draw_cases(method, n_starts * n_skills, stage.layout, SEED + 1)
    starts, skills = starts[:n_starts].repeat(n_skills * n_each, 0), skills.repeat_interleave(n_each, 0)
    level: Any = copy.copy(stage.level)
    level.calm_skills = 0.0  # else a SkillLevel carries some of them out without the policy's noise
    with fork_globals():
        seed_globals(SEED)
        obs, _ = carry_out(replace(stage, level=level), starts, skills, explore=True)
    ends = obs[-1, :, :2].double().view(n_starts, n_skills, n_each, 2)
    between, within = (float(x.sum(-1).mean().sqrt()) for x in (ends.mean(2).var(1), ends.var(2)))
    return {"between": between, "within": within, "ratio": between / within if within else math.inf}


@torch.no_grad()
def predicted_ends(method: ModelBasedSkills, obs: Tensor, skills: Tensor) -> Array:
    """Predict the ends in metres, (n, 2), of skills (n, Z) from observations (n, O) with the world model."""
    ends: Tensor = method.world.rollout(obs, skills[:, None], statistics=False).state[..., -1, :2]
    return ends.mean((1, 2)).numpy()  # over members and particles


def stage_of(agent: Hierarchy) -> tuple[Stage, ModelBasedSkills]:
    """Return the level that carries out an agent's skills, and their method.

    Raises:
        ValueError: The skills are not two numbers for a position.
    """
    level = skill_level_of(agent)
    method = level.method
    if not isinstance(method, ModelBasedSkills) or not method.space.shape == (method.world.encoder.state_dim,) == (2,):
        raise ValueError(f"skills are {method.space} of {type(method).__name__}, expected two numbers for a position")
    return Stage(level, agent.task, method.duration), method


def measure(folder: Path) -> tuple[dict[str, Any], Hierarchy]:
    """Return all measurements of a run, and its agent."""
    config, agent, n_steps = load(folder, device="cpu")
    if config.env != ENV:
        raise ValueError(f"{folder} was trained in {config.env}, expected {ENV}")
    stage, method = stage_of(agent)
    starts, skills = draw_cases(method, N_CASES)
    obs, _ = carry_out(stage, starts, skills)
    distances = disturb(stage, starts, skills, predicted_ends(method, obs[0], skills))
    result = {
        "agent": config.agent,
        "seed": config.seed,
        "n_total_env_steps": n_steps,
        "std": method.config.final_std,
        "information": information_of_outcomes(method, obs, skills),
        "ceiling": ceiling(skills.shape[1], method.config.final_std),
        "length": float((obs[-1] - obs[0])[:, :2].norm(dim=-1).mean()),
        **spreads(stage, method),
        "error": float(distances["undisturbed"]["from_prediction"].mean()),
        "means": {c: {name: float(x.mean()) for name, x in found.items()} for c, found in distances.items()},
        "written": {c: {name: mean_with_interval(x) for name, x in found.items()} for c, found in distances.items()},
    }
    return result, agent


ENDS = (
    f"{N_CASES} skills from the prior, the same for all runs, each from a start of its own, without exploration",
    "mean distances in metres, with 95 % bootstrap intervals over skills; shift: from the skill's own undisturbed end",
    "uncorrected: shift if the undisturbed actions are repeated; from_prediction: from the predicted undisturbed end",
    "drift: 0.04 m per step; impulse: 0.3 m halfway through the skill; 16 directions in turns",
)
NUMBERS = (
    f"information, in nats, of an outcome about its skill among {N_PRIORS} others, at the final deviation std; "
    "ceiling: that of ideal skills",
    "in metres: length, mean distance from start to end; between, spread of the mean ends of skills with a common "
    "start; within, spread of the ends of one skill with the stochastic policy; error of predicted ends",
)


def tables(results: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return tables of displacements, of their ratios between SPlaTES and DADS, and of the skills."""
    runs = sorted(results, key=lambda r: (r["agent"], r["seed"]))
    ends = [
        [r["agent"], r["seed"], r["n_total_env_steps"], condition, *found.values()]
        for r in runs
        for condition, found in r["written"].items()
    ]
    found = [Table("ends", "Displacement", ("agent", "seed", "environment steps", "condition", *DISTANCES), ends, ENDS)]
    if {"splates", "dads"} <= {r["agent"] for r in runs}:
        ratios = [[c, *(_ratio(runs, c, name) for name in DISTANCES)] for c in PUSHES if PUSHES[c]]
        note = "means over all runs, with a 95 % bootstrap interval over runs"
        found.append(Table("ratios", "SPlaTES over DADS", ("condition", *DISTANCES), ratios, (note,)))
    columns = ("agent", "seed", "std", "information", "ceiling", "length", "between", "within", "ratio", "error")
    numbers = [[r[name] for name in columns] for r in runs]
    return [*found, Table("skills", "Skills", columns, numbers, NUMBERS)]


def _ratio(runs: Sequence[Mapping[str, Any]], condition: str, name: str) -> str:
    means = [
        np.array([r["means"][condition][name] for r in runs if r["agent"] == agent]) for agent in ("splates", "dads")
    ]
    return ratio_with_interval(*means)


def draw(agents: Mapping[str, Hierarchy]) -> Figure:
    """Draw the paths of a few skills from one start, pushed to the right, with crosses at the predicted ends."""
    figure = Figure(figsize=(3.6 * len(PUSHES), 3.8 * len(agents)), layout="constrained")
    axes = figure.subplots(len(agents), len(PUSHES), squeeze=False)
    (x, y), n = ROOM, 8
    for row, (name, agent) in zip(axes, agents.items(), strict=True):
        stage, method = stage_of(agent)
        skills = some_skills(method.space, n)
        for axis, condition in zip(row, PUSHES, strict=True):
            obs, _ = carry_out(stage, np.tile(ROOM, (n, 1)), skills, **rules_of(condition, 0.0, stage.duration))
            predicted = predicted_ends(method, obs[0], skills)
            draw_walls(axis, stage.layout)
            for i, colour in enumerate(matplotlib.colormaps["hsv"](np.arange(n) / n)):
                axis.plot(*obs[:, i, :2].T, ".-", color=colour, lw=1.2, ms=3)
                axis.plot(*predicted[i], "x", color=colour)
            axis.set(title=f"{name}, {condition}", xlim=(x - 1.2, x + 1.2), ylim=(y + 1.2, y - 1.2))
    return figure


def main() -> None:
    """Measure all runs; write tables, numbers and a figure."""
    config = tyro.cli(PerturbationConfig, prog="python -m experiments.studies.perturbation")
    try:
        measured = [measure(folder) for folder in config.runs]
    except ValueError as error:
        fail(error)
    results = [result for result, _ in measured]
    picture = config.output.with_suffix(".png")
    draw({result["agent"]: agent for result, agent in reversed(measured)}).savefig(picture, dpi=110)
    config.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    command = shlex.join(["python", "-m", "experiments.studies.perturbation", *sys.argv[1:]])
    lines = ["# Skills under pushes that did not occur in training", "", f"    {command}", ""]
    lines += [table.markdown() for table in tables(results)]
    lines += [f"![paths, pushed to the right; crosses: predicted ends]({picture.name})", ""]
    config.output.write_text("\n".join([*lines, machine_line("gymnasium", "tianshou"), ""]))


if __name__ == "__main__":
    main()
