"""Agents in Maze2D-Medium, compared over seeds: `python -m experiments.benchmarks.maze`.

Each agent is trained with each seed by a command of its own, which goes on where it was stopped, and is then evaluated
on ten episodes for each of the twelve pairs of different corners. Results are appended as they come; the table, the
curves and the picture of a plan are made from them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envs.maze2d_drawing import draw_walls
from envs.maze2d_layouts import MEDIUM
from envs.maze2d_rules import SUCCESS_DISTANCE
from envs.maze2d_vector import Maze2DVectorEnv
from experiments.benchmarks.runs import columns, draw_curves, keep, kept, table, train
from experiments.run.loading import load
from experiments.run.playing import play_track
from layeredrl.collector import Collector, Episode
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.randomness import fork_globals, seed_globals

ENV = "Maze2D-Medium-v0"
PAIRS = list(permutations(MEDIUM.starts, 2))
"""Start and goal: each of the four corners, and each of the three others."""
COMMON = ("--env", ENV, "--n-envs", "16", "--vectorization", "native", "--no-pictures", "--no-tensorboard")
_BREAKING = ("--sb-start-duration", "16000", "--sb-start-factor", "1.5")
_FLAT = (
    "--model.hidden 128 128 --model.n-models 3 --model.frequencies 1.571 3.142 6.283 --model.rollout-dtype auto "
    "--learning.n-random-steps 2000 --learning.fit-every 2000 --learning.fit.batch-size 256 "
    "--icem.horizon 30 --icem.n-samples 64"
)
AGENTS: dict[str, tuple[str, ...]] = {
    "goals": ("goals",),
    "sac": ("sac", "--learning.n-random-steps", "2000", "--learning.updates-per-transition", "0.5"),
    "pets": ("pets", *_FLAT.split()),
    "splates": ("splates",),
    "splates-sb": ("splates", *_BREAKING),
    "splates-end": ("splates", "--reward", "end"),
    "splates-end-sb": ("splates", "--reward", "end", *_BREAKING),
    "splates-discrete": ("splates", "--n-skills", "16"),
    "splates-goals": ("splates-goals",),
    "dads": ("dads",),
}
"""Agents by name, as `experiments.train` takes them. `sb`: with a symmetry-breaking start; `end`: skills are paid for
their last state alone."""


@dataclass(frozen=True)
class MazeStudy:
    """Train agents in the maze and compare them."""

    agents: tuple[str, ...] = ("goals", "sac")
    """Which, by name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs."""
    n_total_env_steps: int = 100_000
    """Environment steps of a run."""
    eval_every: int = 10_000
    """Environment steps between two points of the curves, of 24 episodes each."""
    episodes_each: int = 10
    """Episodes for each pair of corners, after training; an agent that plans at every step takes long for them."""
    output: Path = Path("experiments/results/maze.md")
    """Where the table goes; results and pictures go beside it."""
    runs_dir: Path = Path("runs")
    """Where the runs are."""

    def __post_init__(self) -> None:
        if not set(self.agents) <= set(AGENTS):
            raise ValueError(f"agents is {self.agents}, expected some of {', '.join(AGENTS)}")


class PairsEnv(Maze2DVectorEnv):
    """One environment for each of some pairs of start and goal, in which every episode has that pair."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]], **kwargs: Any) -> None:
        super().__init__(num_envs=len(pairs), **kwargs)
        self._options = {
            name: np.array(points) for name, points in zip(("start", "goal"), zip(*pairs, strict=True), strict=True)
        }

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Begin episodes with each environment's own pair."""
        return super().reset(seed=seed, options={**self._options, **(options or {})})


def evaluate(agent: Hierarchy, n_each: int = 10, seed: int = 10**6, **kwargs: Any) -> list[Episode]:
    """Play episodes between all pairs of corners, without exploration."""
    env = PairsEnv(PAIRS * n_each, layout="medium", autoreset_mode="Disabled", **kwargs)
    with fork_globals():
        seed_globals(seed)
        return Collector(env, agent, seed=seed, learn=False).collect_episodes(len(PAIRS) * n_each)


def run(study: MazeStudy, name: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one agent with one seed."""
    folder = study.runs_dir / f"maze-{name}-{seed}"
    arguments = [*AGENTS[name], *COMMON, "--seed", str(seed), "--trainer.checkpoint-every", "20000"]
    arguments += ["--trainer.n-total-env-steps", str(study.n_total_env_steps)]
    arguments += ["--trainer.eval-every", str(study.eval_every), "--trainer.eval-episodes", "24"]
    cost = train(study.runs_dir, folder.name, arguments)
    _, agent, n_steps = load(folder)
    episodes = evaluate(agent, study.episodes_each)
    returns = [episode.episode_return for episode in episodes]
    curves = columns(folder / "metrics.csv", ("eval/episode_return", "eval/success"))
    told = columns(folder / "metrics.csv", ("skill/information",))["skill/information"]
    return {
        "agent": name,
        "seed": seed,
        "n_total_env_steps": n_steps,
        "asked_env_steps": study.n_total_env_steps,
        "episodes": len(episodes),
        "success": statistics.mean(bool(episode.success) for episode in episodes),
        "return": statistics.mean(returns),
        "worst_return": min(returns),
        "information": told[-1][1] if told else None,
        "curves": {"return": curves["eval/episode_return"], "success": curves["eval/success"]},
        **cost,
    }


def draw_plans(path: Path, agent: Hierarchy, pairs: Sequence[tuple[Any, Any]], every: int = 2) -> None:
    """Episodes between pairs of corners: the way that was taken, and what was planned on it now and then.

    Args:
        path: Of the PNG.
        agent: Its top level plans, with positions as the first two dimensions of the state.
        pairs: Of start and goal.
        every: Decisions of the planner between two plans that are drawn.
    """
    level = agent.levels[0]
    assert isinstance(level, PlannerLevel)
    figure = Figure(figsize=(4.2 * len(pairs), 4.4), layout="constrained")
    for axis, pair in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        draw_walls(axis, MEDIUM)
        way, plans = follow(agent, level, pair)
        for i, plan in enumerate(plans[::every]):
            axis.plot(*plan.T, ".-", color="#dd7733", alpha=0.75, lw=1, ms=3, label=None if i else "plans")
        axis.plot(*way.T, color="#3366aa", lw=2, label=f"way, {len(way) - 1} steps")
        axis.plot(*pair[0], "o", color="#3366aa", label="start")
        axis.plot(*pair[1], "*", color="#338855", ms=14, label="goal")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def follow(
    agent: Hierarchy, level: PlannerLevel, pair: tuple[Any, Any]
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """Play until the goal is reached: positions (T, 2), and those predicted at each decision, (H + 1, 2)."""
    with fork_globals():
        seed_globals(0)
        env = PairsEnv([pair], layout="medium", autoreset_mode="Disabled")
        track, moments = play_track(env, agent, None, n_steps=400, seed=0)
    way = track.obs[:, :2]
    there = np.flatnonzero(np.linalg.norm(way - np.array(pair[1]), axis=1) < SUCCESS_DISTANCE)
    n_steps = int(there[0]) if len(there) else len(way) - 1
    plans = []
    for obs, memory, generator in moments[: n_steps : level.duration]:
        actions = level.plan(obs, memory, generator).actions
        with torch.no_grad():
            mean = level.world.rollout(obs, actions, generator=generator, statistics=False).state.mean((1, 2))
        plans.append(mean[0, :, :2].cpu().numpy())
    return way[: n_steps + 1], plans


def report(output: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the curves from all results."""
    curves, plans = output.with_suffix(".png"), _plans(output)
    drawn = [r for r in results if r["curves"]["return"]]  # others were not evaluated on the way
    panels = {
        f"{label} of 24 episodes": {
            name: [[tuple(point) for point in r["curves"][label]] for r in drawn if r["agent"] == name]
            for name in AGENTS
            if any(r["agent"] == name for r in drawn)
        }
        for label in ("return", "success")
    }
    if drawn:
        draw_curves(curves, panels, "environment steps")
    rows = [
        (
            r["agent"],
            r["seed"],
            r["n_total_env_steps"],
            r.get("episodes", len(PAIRS) * 10),
            f"{r['success']:.3f}",
            f"{r['return']:.1f}",
            f"{r['worst_return']:.1f}",
            "" if r.get("information") is None else f"{r['information']:.2f}",
            f"{r['cpu_seconds']:.0f}",
        )
        for r in sorted(results, key=lambda r: (r["agent"], r["seed"]))
    ]
    header = "agent, seed, environment steps, episodes, success, return, worst return, information, CPU seconds"
    lines = [
        f"# {ENV}",
        "",
        "`python -m experiments.benchmarks.maze`. After training, the same number of episodes for each of the",
        "twelve pairs of corners: share of those that come within 0.3 m of the goal, and return. Standing still gives",
        "-201, the shortest path -16. Information, in nats: what the model's outcomes tell of the skill, in the last",
        "training steps. CPU seconds are those of training, evaluations included. The planner of `goals` knows the",
        "reward as a function of where one is; `sac` gets it step by step.",
        "",
        *table(header.split(", "), rows),
        "",
        # Written by hand into a line of the results, where these were not made by this program alone.
        *(f"{note}\n" for note in dict.fromkeys(r["note"] for r in results if "note" in r)),
        f"![learning curves]({curves.name})",
        "",
    ]
    if plans.exists():
        lines += ["The way through the maze, and what was planned on it:", "", f"![plans]({plans.name})", ""]
    lines += ["Commands:", "", *(f"    {r['command']}" for r in results), "", results[-1]["machine"], ""]
    output.write_text("\n".join(lines))


def main() -> None:
    """Train, evaluate, tell."""
    study = tyro.cli(MazeStudy, prog="python -m experiments.benchmarks.maze")
    study.output.parent.mkdir(parents=True, exist_ok=True)
    path = study.output.with_suffix(".jsonl")
    for name in study.agents:
        for seed in study.seeds:
            asked = (name, seed, study.n_total_env_steps)
            if not any((r["agent"], r["seed"], r["asked_env_steps"]) == asked for r in kept(path)):
                keep(path, run(study, name, seed))
                report(study.output, kept(path))
    folder = study.runs_dir / f"maze-{study.agents[0]}-{study.seeds[0]}"
    if folder.exists():  # the results may be here without the runs
        _, agent, _ = load(folder)
        if isinstance(agent.levels[0], PlannerLevel):
            draw_plans(_plans(study.output), agent, [PAIRS[0], PAIRS[3]])
    report(study.output, kept(path))


def _plans(output: Path) -> Path:
    return output.with_name(f"{output.stem}_plan.png")


if __name__ == "__main__":
    main()
