"""Measure planners on true dynamics, budget against return: `python -m experiments.benchmarks.planners`.

Every planner gets the same number of trajectories per environment step. The model is the environment itself, as an
`Oracle`, so that only the planner differs. Seeds are environments that are planned for side by side; planners treat
them independently.
"""

import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch

import envs  # noqa: F401  registers the tasks
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Table
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import PlannerLevel
from layeredrl.planners import (
    CEM,
    ICEM,
    MPPI,
    CEMConfig,
    ICEMConfig,
    MPPIConfig,
    Planner,
    RandomShooting,
    RandomShootingConfig,
)
from layeredrl.world_model import Encoder, WorldModel
from layeredrl.world_model.oracle import Oracle, Simulation


@dataclass(frozen=True)
class Task:
    """Task that planners are compared on."""

    env: str
    n_seeds: int
    n_steps: int
    horizon: int
    noise_exponent: float
    """Noise exponent of iCEM; small for HalfCheetah, as in its paper."""
    candidates_per_elite: int
    """Number of candidates of iCEM for each elite; its paper has ten elites of forty candidates in every task."""


TASKS = {
    "pendulum": Task("SwingUpPendulum-v0", 10, 200, 30, 1.0, 3),
    "cartpole": Task("CartPoleSwingUp-v0", 10, 200, 50, 1.0, 3),
    "halfcheetah": Task("FullStateHalfCheetah-v0", 3, 100, 30, 0.25, 8),
}
ITERATIONS = {30: 2, 100: 3, 300: 4, 1000: 5}
"""Number of iterations by budget, the same for all planners that refit."""


@dataclass(frozen=True)
class PlannersBenchmark:
    """Compare planners by their return with a budget of trajectories."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks, by short name."""
    planners: tuple[str, ...] = ("random shooting", "CEM", "MPPI", "iCEM")
    """Planners, by name."""
    budgets: tuple[int, ...] = tuple(ITERATIONS)
    """Trajectories per environment step."""
    output: Path = Path("experiments/results/planners.md")
    """Markdown file to write; the returns of the seeds go beside it, as JSON. Delete that to measure again."""

    def __post_init__(self) -> None:
        for name, chosen, known in (("tasks", self.tasks, TASKS), ("budgets", self.budgets, ITERATIONS)):
            if not set(chosen) <= set(known):
                raise ValueError(f"{name} is {chosen}, expected some of {', '.join(map(str, known))}")


def n_elites(n_samples: int, candidates_per_elite: int = 8) -> int:
    """Number of elites: a share of the candidates, three to ten."""
    return min(10, max(3, n_samples // candidates_per_elite))


def make_planner(name: str, budget: int, task: Task, space: spaces.Space[object]) -> Planner:
    """Build a planner that uses at most `budget` trajectories per decision."""
    n_iterations, h = ITERATIONS[budget], task.horizon
    n = budget // n_iterations
    if name == "random shooting":
        return RandomShooting(space, RandomShootingConfig(horizon=h, n_samples=budget))
    if name == "CEM":
        return CEM(space, CEMConfig(horizon=h, n_samples=n, n_iterations=n_iterations, n_elites=n_elites(n)))
    if name == "MPPI":
        return MPPI(space, MPPIConfig(horizon=h, n_samples=n, n_iterations=n_iterations))
    first = int(budget / sum(1.25**-i for i in range(n_iterations)))
    while True:  # populations are rounded, and shifted elites come on top
        icem = ICEMConfig(
            horizon=h,
            n_samples=first,
            n_iterations=n_iterations,
            n_elites=n_elites(first, task.candidates_per_elite),
            noise_exponent=task.noise_exponent,
        )
        planner = ICEM(space, icem)
        if sum(planner.populations) + planner.n_reused <= budget:
            return planner
        first -= 1


def run(task: Task, name: str, budget: int, simulate: Simulation | None) -> list[float]:
    """Return the returns of the first episode of each seed, cut off after `task.n_steps`."""
    spec = make_task(task.env, task.n_seeds)
    encoder = Encoder(spec)
    world = WorldModel(encoder, Oracle.from_task(spec, encoder, simulate), spec)
    planner = make_planner(name, budget, task, spec.action_space)
    agent = Hierarchy([PlannerLevel(world, planner, spec.action_space)], spec)
    returns, playing = np.zeros(task.n_seeds), np.ones(task.n_seeds, bool)

    def on_step(step: Batch, env_ids: NDArray[np.int64]) -> None:
        returns[env_ids] += playing[env_ids] * step.rew
        playing[env_ids] &= ~(step.terminated | step.truncated)

    env = make_vector_env(task.env, task.n_seeds)
    try:
        collector = Collector(env, agent, seed=0, learn=False, on_step=on_step)
        for _ in range(task.n_steps):
            collector.step(explore=False)
    finally:
        env.close()
    return returns.tolist()


def simulator(task: Task) -> Callable[..., torch.Tensor] | None:
    """Return a simulation of whole sequences, if there is a faster one than step by step."""
    if task.env != "FullStateHalfCheetah-v0":
        return None
    from envs.half_cheetah import simulate  # loads mujoco

    return simulate


Results = dict[str, dict[str, dict[str, list[float]]]]
"""Returns of the seeds by task, planner and budget."""


def tables(results: Results) -> list[Table]:
    """Return a table of mean returns for each task."""
    found = []
    for key, by_planner in results.items():
        task = TASKS[key]
        budgets = sorted({budget for cells in by_planner.values() for budget in cells}, key=int)
        rows = [
            [name, *(_cell(cells[b]) if b in cells else None for b in budgets)] for name, cells in by_planner.items()
        ]
        title = f"{task.env}: {task.n_seeds} seeds, {task.n_steps} steps, horizon {task.horizon}"
        found.append(Table(key, title, ("planner", *budgets), rows))
    return found


def _cell(returns: list[float]) -> str:
    return f"{statistics.mean(returns):.1f} ± {statistics.stdev(returns) / len(returns) ** 0.5:.1f}"


def draw(path: Path, results: Results) -> None:
    """Draw return against budget, one panel per task."""
    figure = Figure(figsize=(4 * len(results), 3.2), layout="constrained")
    for axes, (key, by_planner) in zip(np.atleast_1d(figure.subplots(1, len(results))), results.items(), strict=True):
        for name, by_budget in by_planner.items():
            budgets = sorted(map(int, by_budget))
            means = [statistics.mean(by_budget[str(b)]) for b in budgets]
            errors = [statistics.stdev(by_budget[str(b)]) / len(by_budget[str(b)]) ** 0.5 for b in budgets]
            axes.errorbar(budgets, means, errors, marker="o", capsize=2, label=name)
        axes.set(xscale="log", xlabel="trajectories per step", ylabel="return", title=TASKS[key].env)
        axes.set_xticks(list(ITERATIONS), list(map(str, ITERATIONS)))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


TEXT = f"""Return against the number of trajectories that a planner may use per environment step: mean and standard
error over seeds. Dynamics are the environments' own, so that only planners differ. Planners that refit use
{", ".join(f"{n} iterations at {b}" for b, n in ITERATIONS.items())}. CEM keeps an eighth of its candidates as elites,
three to ten; iCEM a third on the swing-ups and an eighth on HalfCheetah, where its noise exponent is 0.25 (else 1).
Other settings are the defaults. All planners start from the same states."""


def main() -> None:
    """Measure all cells that are not in the JSON file beside the table."""
    config = tyro.cli(PlannersBenchmark, prog="python -m experiments.benchmarks.planners")
    store, picture = config.output.with_suffix(".json"), config.output.with_suffix(".png")
    results: Results = json.loads(store.read_text()) if store.exists() else {}
    for key in config.tasks:
        simulate = simulator(TASKS[key])
        for name, budget in itertools.product(config.planners, config.budgets):
            cells = results.setdefault(key, {}).setdefault(name, {})
            if str(budget) not in cells:
                cells[str(budget)] = run(TASKS[key], name, budget, simulate)
                store.write_text(json.dumps(results, indent=1))
    draw(picture, results)
    parts = (TEXT, f"![budget against return]({picture.name})", *tables(results))
    command = "python -m experiments.benchmarks.planners"
    write_page(config.output, "Planning through true dynamics", command, parts, machine_line("gymnasium", "mujoco"))


if __name__ == "__main__":
    main()
