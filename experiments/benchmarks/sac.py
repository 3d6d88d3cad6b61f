"""SAC on tasks that everybody knows: `python -m experiments.benchmarks.sac`.

Each seed is trained by a command of its own, which goes on where it was stopped, and is then evaluated on twenty
episodes without exploration. Results are appended as they come; the table and the curves are made from them.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import envs  # noqa: F401  registers the tasks
from experiments.benchmarks.runs import columns, draw_curves, keep, kept, table, train
from experiments.run.loading import load
from experiments.run.playing import play


@dataclass(frozen=True)
class Task:
    """What is learned, and how well."""

    env: str
    n_total_env_steps: int
    n_seeds: int
    asked_for: float
    """Mean return without exploration."""
    arguments: tuple[str, ...]
    """Settings, as `experiments.train` takes them."""


TASKS = {
    "pendulum": Task("Pendulum-v1", 10_000, 5, -200.0, ("--preset", "demo")),
    "halfcheetah": Task(
        "HalfCheetah-v5",
        100_000,
        2,
        4000.0,
        ("--preset", "paper", "--sac.learning-rate", "1e-3", "--learning.n-random-steps", "5000"),
    ),
}


@dataclass(frozen=True)
class SACBenchmark:
    """Train SAC and see what it learned."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which, by name."""
    seeds: tuple[int, ...] = ()
    """Of the runs; as many as each task has by default."""
    output: Path = Path("experiments/results/sac.md")
    """Where the table goes; results and curves go beside it."""
    runs_dir: Path = Path("runs")
    """Where the runs are."""

    def __post_init__(self) -> None:
        if not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks is {self.tasks}, expected some of {', '.join(TASKS)}")


def run(config: SACBenchmark, name: str, seed: int) -> dict[str, Any]:
    """Train with one seed and evaluate."""
    task, folder = TASKS[name], config.runs_dir / f"sac-{name}-{seed}"
    arguments = ["sac", "--env", task.env, "--seed", str(seed), *task.arguments, "--no-pictures", "--no-tensorboard"]
    arguments += ["--trainer.n-total-env-steps", str(task.n_total_env_steps), "--trainer.checkpoint-every", "5000"]
    cost = train(config.runs_dir, folder.name, arguments)
    loaded, agent, n_steps = load(folder)
    returns = [episode.episode_return for episode in play(loaded, agent, 20, 10**6)]
    return {
        "task": name,
        "seed": seed,
        "n_total_env_steps": n_steps,
        "return": statistics.mean(returns),
        "worst_return": min(returns),
        "curve": columns(folder / "metrics.csv", ("env/episode_return",))["env/episode_return"],
        **cost,
    }


def report(output: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the curves from all results."""
    panels = {
        f"training return, {TASKS[name].env}": {
            "SAC": [[tuple(point) for point in r["curve"]] for r in results if r["task"] == name]
        }
        for name in TASKS
        if any(r["task"] == name for r in results)
    }
    draw_curves(output.with_suffix(".png"), panels, "environment steps")
    rows = [
        (
            TASKS[r["task"]].env,
            r["seed"],
            r["n_total_env_steps"],
            f"{r['return']:.1f}",
            f"{TASKS[r['task']].asked_for:g}",
            f"{r['worst_return']:.1f}",
            f"{1e3 * r['cpu_seconds'] / r['n_total_env_steps']:.1f}",
        )
        for r in sorted(results, key=_order)
    ]
    header = ("task", "seed", "environment steps", "return", "asked for", "worst of 20", "CPU ms per step")
    lines = [
        "# SAC",
        "",
        "`python -m experiments.benchmarks.sac`. Mean return of twenty episodes without exploration after training.",
        "",
        *table(header, rows),
        "",
        f"![learning curves]({output.with_suffix('.png').name})",
        "",
        "Commands:",
        "",
        *(f"    {r['command']}" for r in sorted(results, key=_order)),
        "",
        results[-1]["machine"],
        "",
    ]
    output.write_text("\n".join(lines))


def _order(result: Mapping[str, Any]) -> tuple[str, int]:
    return result["task"], result["seed"]


def main() -> None:
    """Train, evaluate, tell."""
    config = tyro.cli(SACBenchmark, prog="python -m experiments.benchmarks.sac")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    path = config.output.with_suffix(".jsonl")
    for name in config.tasks:
        for seed in config.seeds or range(TASKS[name].n_seeds):
            if not any((r["task"], r["seed"]) == (name, seed) for r in kept(path)):
                keep(path, run(config, name, seed))
                report(config.output, kept(path))
    report(config.output, kept(path))


if __name__ == "__main__":
    main()
