"""Do rollouts in bfloat16 change what PETS decides: `python -m experiments.benchmarks.bfloat16`.

Models are trained on cart-pole; the same plans with the same noise are then followed in both types, and the states
and the order of the plans are compared. After that PETS itself is trained in both types, seed by seed. The table is
written anew whenever there is something new, so that a run that is cut short leaves what it has.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from tianshou.data import Batch
from torch import Tensor

from agents.pets import PETS
from envs.cartpole import THETA_LIMIT, X_LIMIT
from experiments.benchmarks.cartpole import CartPoleBenchmark, Result, run_seed
from experiments.benchmarks.machine import machine_line
from experiments.run.building import build_agent, make_collector
from experiments.run.config import RunConfig
from layeredrl.levels import PlannerLevel
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.diagnostics.ranking import spearman
from layeredrl.planners.noise import colored_noise, colored_noise_basis
from layeredrl.world_model import WorldModel

HORIZON = 30
N_STARTS, N_PLANS, N_BEST = 30, 200, 20
N_PARTICLES = 4
"""For each of the five members."""
NETWORKS = {"2 x 64": ((64, 64), 1000), "4 x 200": ((200, 200, 200, 200), 400)}
"""Hidden widths, and environment steps of training: those of the demonstration; for the wide one fewer, it is slow."""

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Bfloat16Benchmark:
    """Compare rollouts in bfloat16 with rollouts in float32."""

    seeds: tuple[int, ...] = tuple(range(10))
    """Seeds of the training runs; the first one also trains the models whose rollouts are compared."""
    output: Path = Path("experiments/results/model_bfloat16.md")
    """Where the table goes."""


@dataclass(frozen=True)
class Ranks:
    """How one score orders the plans in both types, over the start states where it tells them apart."""

    correlation: list[float]
    """Spearman's, for each of these start states."""
    overlap: list[float]
    """Share of the best plans that are among the best in the other type too, for each of them."""


@dataclass(frozen=True)
class Comparison:
    """The same plans in both types."""

    network: str
    errors: dict[int, Tensor]
    """|bfloat16 - float32| / |float32| of every particle's state after so many steps."""
    alive: Ranks
    """By the return of cart-pole: the steps that the pole stays up."""
    smooth: Ranks
    """By the negative mean square of pole angle and cart position, in units of their limits."""


def train(hidden: tuple[int, ...], n_steps: int, seed: int) -> PlannerLevel:
    """PETS after some steps of cart-pole, with float32 rollouts."""
    demo = PETS.preset("demo")
    model = demo.model if hidden == demo.model.hidden else replace(demo.model, hidden=hidden, learning_rate=1e-3)
    config = RunConfig[PETS](seed=seed, settings=replace(demo, model=model))
    agent = build_agent(config)
    collector = make_collector(config, agent)
    for n in range(1, n_steps + 1):
        collector.step(explore=True)
        agent.learn(n)
    collector.env.close()
    (level,) = agent.levels
    assert isinstance(level, PlannerLevel)
    return level


@torch.no_grad()
def compare(network: str, level: PlannerLevel, seed: int) -> Comparison:
    """Follow random plans from states of the replay in both types."""
    dynamics = level.world.dynamics
    assert isinstance(dynamics, ProbabilisticEnsemble)
    dynamics.n_particles_per_model = N_PARTICLES
    generator = torch.Generator().manual_seed(seed)
    replay = torch.as_tensor(level.replay.all().obs)
    starts = replay[torch.randperm(len(replay), generator=generator)[:N_STARTS]]
    basis = colored_noise_basis(HORIZON, exponent=1.0)
    plans = (0.5 * colored_noise((N_STARTS, N_PLANS, HORIZON, 1), basis, generator)).clamp(-1, 1)  # as iCEM's first

    errors: dict[int, list[Tensor]] = {15: [], 30: []}
    scores: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for i, (start, actions) in enumerate(zip(starts, plans, strict=True)):
        exact, reduced = (
            _rollout(level.world, start, actions, dtype=dtype, seed=i) for dtype in (None, torch.bfloat16)
        )
        for k, found in errors.items():
            distance = (reduced.state - exact.state)[..., k, :].norm(dim=-1)
            found.append((distance / exact.state[..., k, :].norm(dim=-1)).flatten())
        for found_scores, score in zip(scores, (_alive_score, _smooth_score), strict=True):
            found_scores.append((score(exact), score(reduced)))
    alive, smooth = (_ranks(pairs) for pairs in scores)
    return Comparison(network, {k: torch.cat(found) for k, found in errors.items()}, alive, smooth)


def _rollout(world: WorldModel, start: Tensor, actions: Tensor, *, dtype: torch.dtype | None, seed: int) -> Batch:
    """All plans (N, H, A) from one start state (S,), with the noise that belongs to the seed."""
    assert isinstance(world.dynamics, ProbabilisticEnsemble)
    world.dynamics.rollout_dtype = dtype
    rows = start.expand(len(actions), -1)
    return world.rollout(rows, actions, generator=torch.Generator().manual_seed(seed), statistics=False)


def _alive_score(rollout: Batch) -> Tensor:
    """What the planner maximises, (N,)."""
    score: Tensor = (rollout.alive * rollout.reward).sum(-1).mean((1, 2))
    return score


def _smooth_score(rollout: Batch) -> Tensor:
    """A score without steps, for which every change of a state counts, (N,)."""
    x, theta = rollout.state[..., 1:, 0], rollout.state[..., 1:, 2]
    score: Tensor = -((theta / THETA_LIMIT).square() + (x / X_LIMIT).square()).mean((1, 2, 3))
    return score


def _ranks(pairs: Sequence[tuple[Tensor, Tensor]]) -> Ranks:
    telling = [(a, b) for a, b in pairs if bool((a != a[0]).any())]
    best = [[set(x.argsort(descending=True, stable=True)[:N_BEST].tolist()) for x in pair] for pair in telling]
    return Ranks([spearman(a, b) for a, b in telling], [len(a & b) / N_BEST for a, b in best])


def run_both(seed: int) -> dict[Dtype, Result]:
    """Train PETS with one seed in both types."""
    results: dict[Dtype, Result] = {}
    for dtype in ("float32", "bfloat16"):
        results[dtype] = run_seed(CartPoleBenchmark(train_args=("--model.rollout-dtype", dtype)), seed)
    return results


def table(config: Bfloat16Benchmark, comparisons: Sequence[Comparison], runs: Sequence[dict[Dtype, Result]]) -> str:
    """The results as Markdown, with the command and the machine."""
    lines = [
        "# Rollouts in bfloat16",
        "",
        "Matrix products in bfloat16; states, noise and the normalisation of inputs in float32.",
        "",
        f"    python -m experiments.benchmarks.bfloat16 --seeds {' '.join(map(str, config.seeds))}",
        "",
        "## The same plans in both types",
        "",
        f"PETS trained on ContinuousCartPole-v0 (seed {config.seeds[0]}); {N_STARTS} start states from its replay,",
        f"{N_PLANS} random smooth plans of {HORIZON} steps from each, 5 members x {N_PARTICLES} particles, the same",
        "noise in both types. Relative error of a particle's state: |bfloat16 - float32| / |float32|.",
        "",
        "| network | steps | median | 95th percentile | max |",
        "|---|---|---|---|---|",
    ]
    for c in comparisons:
        for k, errors in c.errors.items():
            middle, high = errors.quantile(torch.tensor([0.5, 0.95])).tolist()
            lines.append(f"| {c.network} | {k} | {middle:.1e} | {high:.1e} | {float(errors.max()):.1e} |")
    lines += [
        "",
        "Order of the plans of a start state. Alive: the return that the planner maximises, mean over particles of the",
        "steps that the pole stays up; it comes in steps, start states where it is the same for all plans are left",
        "out. Smooth: minus the mean square of pole angle and cart position. Asked for: at least 0.99.",
        "",
        f"| network | score | start states | Spearman mean | min | of the best {N_BEST} the same, mean | min |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        for name, r in (("alive", c.alive), ("smooth", c.smooth)):
            numbers = [statistics.mean(r.correlation), min(r.correlation), statistics.mean(r.overlap), min(r.overlap)]
            cells = " | ".join(f"{x:.5f}" for x in numbers[:2]) + " | " + " | ".join(f"{x:.3f}" for x in numbers[2:])
            lines.append(f"| {c.network} | {name} | {len(r.correlation)} | {cells} |")
    return "\n".join([*lines, "", *_returns(runs), *_machine()])


def _returns(runs: Sequence[dict[Dtype, Result]]) -> list[str]:
    lines = [
        "## PETS in both types",
        "",
        "Environment steps until three episodes in a row reach the full 200 steps, and the returns of all episodes.",
        "",
        "| seed | float32 solved at | bfloat16 solved at | float32 returns | bfloat16 returns |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        both = run["float32"], run["bfloat16"]
        solved = " | ".join(str(r.solved_at or "not") for r in both)
        returns = " | ".join(", ".join(f"{x:g}" for x in r.returns) for r in both)
        lines.append(f"| {both[0].seed} | {solved} | {returns} |")
    lines.append("")
    for dtype in ("float32", "bfloat16"):
        results = [run[dtype] for run in runs]
        steps = [r.solved_at for r in results if r.solved_at is not None]
        told = f"median {statistics.median(steps):g}, largest {max(steps)}" if steps else "none"
        cpu = f"{statistics.median(r.cpu_seconds_per_step for r in results):.4f}" if results else "none"
        lines.append(f"* {dtype}: {len(steps)} of {len(results)} solved; steps: {told}; CPU seconds per step: {cpu}.")
    return [*lines, ""]


def _machine() -> list[str]:
    return [machine_line("gymnasium", "tianshou", threads=1), ""]


def main() -> None:
    """Compare the rollouts of both networks, then train with all seeds."""
    config = tyro.cli(Bfloat16Benchmark, prog="python -m experiments.benchmarks.bfloat16")
    config.output.parent.mkdir(parents=True, exist_ok=True)
    comparisons: list[Comparison] = []
    for network, (hidden, n_steps) in NETWORKS.items():
        comparisons.append(compare(network, train(hidden, n_steps, config.seeds[0]), config.seeds[0]))
        config.output.write_text(table(config, comparisons, []))
    runs: list[dict[Dtype, Result]] = []
    for seed in config.seeds:
        runs.append(run_both(seed))
        config.output.write_text(table(config, comparisons, runs))
        print(runs[-1], flush=True)


if __name__ == "__main__":
    main()
