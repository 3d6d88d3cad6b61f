"""PETS on cart-pole, seed by seed: `python -m experiments.benchmarks.cartpole --seeds 0 1 2`.

Every seed is a run of `experiments.train` in a process of its own, with the settings that are passed on after `--`.
The table is written anew after every seed, so that a run that is cut short leaves what it has.
"""

import csv
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import tyro
from matplotlib.figure import Figure

import envs  # noqa: F401  registers the tasks
from experiments.benchmarks.machine import machine_line

SOLVED_EPISODES = 3


@dataclass(frozen=True)
class CartPoleBenchmark:
    """How many environment steps and CPU seconds until three episodes in a row last to the end."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds to run."""
    env: str = "ContinuousCartPole-v0"
    """Which cart-pole: one point of reward a step, until it falls."""
    n_envs: int = 1
    """Instances of the environment side by side."""
    output: Path = Path("experiments/results/cartpole_pets.md")
    """Where the table goes."""
    train_args: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Further arguments for experiments.train: what follows `--`."""


@dataclass(frozen=True)
class Result:
    """What one seed came to."""

    seed: int
    solved_at: int | None
    cpu_seconds_per_step: float
    steps: list[int]
    """Environment steps at the end of each episode."""
    returns: list[float]
    """Return of each episode."""


def run_seed(config: CartPoleBenchmark, seed: int) -> Result:
    """Train with one seed and read its metrics."""
    name = f"benchmark-cartpole-{config.n_envs}-{seed}"
    arguments = f"pets --env {config.env} --seed {seed} --n-envs {config.n_envs} --name {name} --fresh".split()
    arguments += ["--no-pictures", "--no-tensorboard", *config.train_args]
    command = [sys.executable, "-m", "experiments.train", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (Path("runs") / name / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["env/episode_return"]]
    steps = [int(row["n_total_env_steps"]) for row in rows]
    returns = [float(row["env/episode_return"]) for row in rows]
    return Result(
        seed,
        _solved_at(steps, returns, full_return(config.env)),
        float(rows[-1]["time/cpu_seconds"]) / steps[-1],
        steps,
        returns,
    )


def full_return(env_id: str) -> int:
    """Return of an episode that lasts to the end."""
    limit = gym.spec(env_id).max_episode_steps
    if limit is None:
        raise ValueError(f"env is {env_id}, expected one with a limit of steps")
    return limit


def _solved_at(steps: Sequence[int], returns: Sequence[float], full: float) -> int | None:
    """Environment steps at the end of the first three full episodes in a row; None if there are none."""
    streak = 0
    for n, episode_return in zip(steps, returns, strict=True):
        streak = streak + 1 if episode_return >= full else 0
        if streak == SOLVED_EPISODES:
            return n
    return None


def table(config: CartPoleBenchmark, results: Sequence[Result]) -> str:
    """The results as Markdown, with the command and the machine."""
    solved = [r.solved_at for r in results if r.solved_at is not None]
    command = ["python -m experiments.benchmarks.cartpole", "--seeds", *map(str, config.seeds)]
    command += ["--env", config.env] if config.env != CartPoleBenchmark.env else []
    command += ["--n-envs", str(config.n_envs)] if config.n_envs != 1 else []
    command += ["--", *config.train_args] if config.train_args else []
    lines = [
        f"# PETS on {config.env}",
        "",
        "Environment steps, random ones included, until three episodes in a row reach the full "
        f"{full_return(config.env)}",
        "steps; CPU seconds of the training process per environment step, training included, imports excluded.",
        "",
        f"    {' '.join(command)}",
        "",
        f"![learning curves]({config.output.with_suffix('.png').name})",
        "",
        "| seed | solved at | CPU s per step | returns |",
        "|---|---|---|---|",
    ]
    for r in results:
        returns = ", ".join(f"{x:g}" for x in r.returns)
        lines.append(f"| {r.seed} | {r.solved_at or 'not'} | {r.cpu_seconds_per_step:.4f} | {returns} |")
    median = f"median {statistics.median(solved):g}, largest {max(solved)}" if solved else "none"
    cpu = [r.cpu_seconds_per_step for r in results]
    lines += [
        "",
        f"{len(solved)} of {len(results)} solved; steps: {median}; CPU seconds per step: median "
        f"{statistics.median(cpu):.4f}, largest {max(cpu):.4f}.",
        "",
        machine_line("gymnasium", "tianshou", threads=1),
        "",
    ]
    return "\n".join(lines)


def draw(path: Path, env_id: str, results: Sequence[Result]) -> None:
    """Learning curves of all seeds."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for r in results:
        axes.plot(r.steps, r.returns, marker=".", lw=1, label=str(r.seed))
    axes.set(xlabel="environment steps", ylabel="episode return", xlim=(0, None), ylim=(0, 1.05 * full_return(env_id)))
    axes.set_title(f"PETS on {env_id}", fontsize=10)
    axes.legend(title="seed", ncols=2, fontsize=7, title_fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run all seeds, rewriting the table after each."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    config = tyro.cli(CartPoleBenchmark, prog="python -m experiments.benchmarks.cartpole", args=sys.argv[1:cut])
    config = replace(config, train_args=tuple(sys.argv[cut + 1 :]))
    results: list[Result] = []
    for seed in config.seeds:
        results.append(run_seed(config, seed))
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(table(config, results))
        draw(config.output.with_suffix(".png"), config.env, results)
        print(results[-1], flush=True)


if __name__ == "__main__":
    main()
