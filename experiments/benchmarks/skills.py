"""What pushes do to trained skills, and how diverse these are: `python -m experiments.benchmarks.skills --runs ...`.

All runs carry out the same skills from the same starts in Maze2D-Medium: undisturbed, in a drift, and with an impulse,
none of which was there in training. Results are appended as they come; tables and picture are made from them.
"""

import copy
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
from experiments.benchmarks.maze import ENV
from experiments.benchmarks.runs import keep, kept, table
from experiments.pictures.fans import skill_level_of, some_skills
from experiments.run.loading import load
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Level
from layeredrl.randomness import fork_globals, seed_globals
from layeredrl.skills import ModelBasedSkills, SkillMethod
from layeredrl.skills.dads import LOWEST
from layeredrl.skills.information import fixed_log_prob, information
from layeredrl.task import TaskSpec

Array = NDArray[Any]
PUSHES: dict[str, dict[str, float]] = {"undisturbed": {}, "drift": {"drift": 0.04}, "impulse": {"impulse": 0.3}}
"""Conditions, and the maze's pushes in them, in metres; in a step an agent itself moves at most 0.1 m along an axis."""
DISTANCES = ("shift", "uncorrected", "from_prediction")
"""What is measured of ends: see `disturb`."""
N_CASES = 2000
"""Skills of a run, each from a start of its own."""
N_DIRECTIONS = 16
"""Of pushes: a maze has one for all its episodes, so that each direction needs a maze of its own."""
N_PRIORS = 100
"""Skills from the prior that an outcome's is compared with, as in DADS."""
SEED = 4_000_000
"""Of starts and skills; far from those of training and evaluation."""
ROOM = (2.0, 2.0)
"""Where skills begin in the picture: the middle of a room of 2 x 2 m, the widest place of the maze."""


@dataclass(frozen=True)
class SkillStudy:
    """Measure the skills of trained runs."""

    runs: tuple[Path, ...]
    """Folders of runs of `splates` and `dads`; one that has been measured is not measured again."""
    output: Path = Path("experiments/results/skills/perturbation.md")
    """Where the tables go; results and picture go beside it."""


@dataclass(frozen=True)
class Stage:
    """Who carries out skills, and where."""

    level: Level
    """Takes skills as its commands, and decides at every step."""
    task: TaskSpec
    """Of the maze; its observations begin with the position."""
    duration: int
    """Steps K of a skill."""
    layout: Layout = MEDIUM
    """Of the maze."""


def draw_cases(method: SkillMethod, n: int, layout: Layout = MEDIUM, seed: int = SEED) -> tuple[Array, Tensor]:
    """Starts, uniform among all positions at which the agent touches no wall, (n, 2) in metres, and skills (n, Z)."""
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
        stage: Who does it, and where.
        starts: From where.
        skills: Which.
        actions: Take these (K, n, 2) whatever happens, instead of asking the level.
        explore: As of `Level.act`.
        **rules: Of the maze, such as a drift.

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
    """Rules of a maze that pushes in one direction; an impulse comes in mid-skill."""
    direction = np.array([math.cos(angle), math.sin(angle)])
    pushes = {name: length * direction for name, length in PUSHES[condition].items()}
    return {**pushes, "impulse_at": max(duration // 2, 1)}


def pushed_ends(stage: Stage, starts: Array, skills: Tensor, condition: str, actions: Array | None = None) -> Array:
    """Where skills end under a condition, in metres, (n, 2); its directions take turns. Arguments as of `carry_out`."""
    ends = np.empty((len(starts), 2), np.float32)
    for k in range(min(N_DIRECTIONS, len(starts))):
        rows = slice(k, None, N_DIRECTIONS)
        rules = rules_of(condition, 2 * math.pi * k / N_DIRECTIONS, stage.duration)
        own = None if actions is None else actions[:, rows]
        ends[rows] = carry_out(stage, starts[rows], skills[rows], actions=own, **rules)[0][-1, :, :2]
    return ends


def disturb(stage: Stage, starts: Array, skills: Tensor, predicted: Array) -> dict[str, Any]:
    """How far from where they would end skills end, in metres: estimates by condition.

    `shift` is from the skill's own undisturbed end; `uncorrected`, the same where the undisturbed actions are repeated
    whatever happens; `from_prediction`, from where it is predicted to end undisturbed. Arguments as of `carry_out`.
    """
    obs, actions = carry_out(stage, starts, skills)
    own, told = obs[-1, :, :2].numpy(), {}
    for condition in PUSHES:
        ends = pushed_ends(stage, starts, skills, condition)
        blind = pushed_ends(stage, starts, skills, condition, actions)
        gaps = (ends - own, blind - own, ends - predicted)
        told[condition] = {name: estimate(np.linalg.norm(x, axis=-1)) for name, x in zip(DISTANCES, gaps, strict=True)}
    return told


def estimate(values: Array, n_resamples: int = 1000) -> dict[str, float]:
    """Mean of values (n,), and the ends of its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(n_resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def ceiling(n_dims: int, std: float, n: int = 20_000) -> float:
    """What ideal skills tell: uniform in [-1, 1]^d, with a linear outcome of unit variance that is known exactly."""
    skills = 2 * torch.rand((n, 1 + N_PRIORS, n_dims), generator=torch.Generator().manual_seed(0)) - 1
    means = math.sqrt(3) * skills
    told = fixed_log_prob(means[:, :1], means[:, :, None], torch.ones(*skills.shape[:2], 1), std)
    return float(information(told).mean())


@torch.no_grad()
def told_by_outcomes(method: ModelBasedSkills, obs: Tensor, skills: Tensor) -> float:
    """Mean information in nats about skills (n, Z), from observations on their way (K + 1, n, O).

    Outcomes are those of the model's own steps; the method's standard deviation is that at the end of training. Cut
    off below as in DADS, it is the mean of DADS' reward.
    """
    final = copy.copy(method)
    final.config = replace(method.config, std=method.config.final_std, n_priors=N_PRIORS)
    states, context = method.world.encode(obs[:: method.duration // method.world.repeat])
    values = []
    with fork_globals():
        seed_globals(SEED)
        for t in range(len(states) - 1):
            for i in range(0, len(skills), 250):  # each times a hundred others: all at once would fill the memory
                rows = slice(i, i + 250)
                values += final.potentials(states[t, rows], context[t, rows], skills[rows], [states[t + 1, rows]])
    return float(torch.cat(values).clamp(min=LOWEST).mean())


def spreads(
    stage: Stage, method: SkillMethod, n_starts: int = 100, n_skills: int = 10, n_each: int = 16
) -> dict[str, float]:
    """How far apart skills end that begin at the same place, with the stochastic policy, in metres.

    `between`: of the mean ends of different skills, the distance from their middle. `within`: of the ends of one skill,
    the distance from their mean. Both are root mean squares, from variances without bias. `ratio` of the former to it.
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
    """Where the world model sees the ends of skills (n, Z) from observations (n, O), as in planning: (n, 2), metres."""
    ends: Tensor = method.world.rollout(obs, skills[:, None], statistics=False).state[..., -1, :2]
    return ends.mean((1, 2)).numpy()  # over members and particles


def stage_of(agent: Hierarchy) -> tuple[Stage, ModelBasedSkills]:
    """Where an agent's skills are carried out, and the method that they come from; refuses what is not measured."""
    level = skill_level_of(agent)
    method = level.method
    if not isinstance(method, ModelBasedSkills) or not method.space.shape == (method.world.encoder.state_dim,) == (2,):
        raise ValueError(f"skills are {method.space} of {type(method).__name__}, expected two numbers for a position")
    return Stage(level, agent.task, method.duration), method


def measure(folder: Path) -> dict[str, Any]:
    """Everything that is told of one run."""
    config, agent, n_steps = load(folder, device="cpu")
    if config.env != ENV:
        raise ValueError(f"{folder} was trained in {config.env}, expected {ENV}")
    stage, method = stage_of(agent)
    starts, skills = draw_cases(method, N_CASES)
    obs, _ = carry_out(stage, starts, skills)
    told = disturb(stage, starts, skills, predicted_ends(method, obs[0], skills))
    return {
        "run": str(folder),
        "agent": config.agent,
        "seed": config.seed,
        "n_total_env_steps": n_steps,
        "conditions": told,
        "std": method.config.final_std,
        "information": told_by_outcomes(method, obs, skills),
        "ceiling": ceiling(skills.shape[1], method.config.final_std),
        "length": float((obs[-1] - obs[0])[:, :2].norm(dim=-1).mean()),
        **spreads(stage, method),
        "error": told["undisturbed"]["from_prediction"]["mean"],
        "machine": machine_line("gymnasium", "tianshou", threads=config.threads),
    }


def ratio(results: Sequence[Mapping[str, Any]], condition: str, name: str) -> dict[str, float]:
    """Mean over runs of SPlaTES over that of DADS, and the ends of the 95 % interval of a bootstrap over runs."""
    means = [(r["agent"], r["conditions"][condition][name]["mean"]) for r in results]
    values = [np.array([mean for agent, mean in means if agent == asked]) for asked in ("splates", "dads")]
    rng = np.random.default_rng(0)
    own, other = (x[rng.integers(len(x), size=(1000, len(x)))].mean(1) for x in values)
    low, high = np.quantile(own / other, (0.025, 0.975))
    return {"mean": float(values[0].mean() / values[1].mean()), "low": float(low), "high": float(high)}


_INTRODUCTION = f"""# Skills under pushes that were not there in training

`python -m experiments.benchmarks.skills`. {N_CASES} skills from the prior, the same for all runs, each from a start of
its own, drawn uniformly among all places of {ENV} where the agent touches no wall, are carried out without
exploration: undisturbed, in a drift of 0.04 m per step, with an impulse of 0.3 m in mid-skill. The pushes have 16
directions, evenly spaced, in turns. Mean distances in metres, with 95 % bootstrap intervals over skills: `shift` of the
end from the skill's own undisturbed end; `uncorrected`, what it is if the undisturbed actions are repeated, walls
holding up a part; `from_prediction`, from where the world model sees the end undisturbed.
"""
_RATIOS = """SPlaTES over DADS, means over all runs, with the interval of a bootstrap over runs, which tells little of
few. Asked of `shift`: at most 0.5.
"""
_NUMBERS = """`information`, in nats, of an outcome about its skill among 100 others, at the deviation `std` that the
method ends with: for `splates` of the skill's end; for `dads` of each step, whose intrinsic reward it is. `ceiling`:
that of uniform skills with a linear outcome of unit variance that is known exactly. In metres: `length`, mean distance
from start to end; `between`, root mean squared distance of the mean ends of skills with a common start from their
middle; `within`, that of the ends of one skill from their mean, with the stochastic policy; `error` of predicted ends.
"""


def report(output: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the tables from all results."""
    runs = sorted(results, key=lambda r: (r["agent"], r["seed"]))
    picture = output.with_suffix(".png")
    ends = [
        (r["agent"], r["seed"], r["n_total_env_steps"], name, *(_told(told[x]) for x in DISTANCES))
        for r in runs
        for name, told in r["conditions"].items()
    ]
    both = {"splates", "dads"} <= {r["agent"] for r in runs}
    ratios = [(x, *(_told(ratio(runs, x, y)) for y in DISTANCES)) for x in PUSHES if both and PUSHES[x]]
    columns = ("agent", "seed", "std", "information", "ceiling", "length", "between", "within", "ratio", "error")
    numbers = [[f"{r[x]:.3f}" if isinstance(r[x], float) else r[x] for x in columns] for r in runs]
    lines = [_INTRODUCTION, *table(("agent", "seed", "environment steps", "condition", *DISTANCES), ends), ""]
    lines += [_RATIOS, *table(("condition", *DISTANCES), ratios), "", _NUMBERS, *table(columns, numbers), ""]
    if picture.exists():
        lines += ["Pushed to the right; crosses are ends as the model sees them:", "", f"![ways]({picture.name})", ""]
    lines += ["Commands:", "", *(f"    {x}" for x in dict.fromkeys(r["command"] for r in results)), ""]
    output.write_text("\n".join([*lines, results[-1]["machine"], ""]))


def _told(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def draw(path: Path, agents: Mapping[str, Hierarchy]) -> None:
    """Ways of a few skills from one start, pushed to the right, with crosses where the model sees their ends."""
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
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, draw, tell."""
    study = tyro.cli(SkillStudy, prog="python -m experiments.benchmarks.skills")
    study.output.parent.mkdir(parents=True, exist_ok=True)
    path = study.output.with_suffix(".jsonl")
    command = shlex.join(["python", "-m", "experiments.benchmarks.skills", *sys.argv[1:]])
    for folder in study.runs:
        if not any(r["run"] == str(folder) for r in kept(path)):
            keep(path, {**measure(folder), "command": command})
    runs = {r["agent"]: Path(r["run"]) for r in reversed(kept(path))}  # the first one of each agent
    if runs and all(run.exists() for run in runs.values()):  # results may be here without the runs
        agents = {name: load(runs[name], device="cpu")[1] for name in sorted(runs)}
        draw(study.output.with_suffix(".png"), agents)
    report(study.output, kept(path))


if __name__ == "__main__":
    main()
