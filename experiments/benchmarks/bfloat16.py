"""Compare rollouts in bfloat16 with rollouts in float32: `python -m experiments.benchmarks.bfloat16`.

Models are trained on cart-pole; the same plans with the same noise are followed in both types, and the states and the
order of the plans are compared. PETS trained in both types: experiments/studies/cartpole_pets.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
import tyro
from tianshou.data import Batch
from torch import Tensor

from agents.pets import PETS
from envs.cartpole import THETA_LIMIT, X_LIMIT
from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Cell, Table
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
"""Number of particles for each of the five members."""
NETWORKS = {"2 x 64": ((64, 64), 1000), "4 x 200": ((200, 200, 200, 200), 400)}
"""Hidden widths and environment steps of training, as in the demonstration; fewer steps for the slow wide network."""


@dataclass(frozen=True)
class Bfloat16Benchmark:
    """Compare rollouts in bfloat16 with rollouts in float32."""

    seed: int = 0
    """Random seed of training and plans."""
    output: Path = Path("experiments/results/model_bfloat16.md")
    """Markdown file to write."""


class Ranks(NamedTuple):
    """Agreement of the order of plans in both types, for start states where the score is not the same for all plans."""

    correlation: list[float]
    """Spearman's rank correlation for each of these start states."""
    overlap: list[float]
    """Share of the best plans that are among the best in the other type, too, for each of them."""


class Comparison(NamedTuple):
    """Comparison of the same plans in both types."""

    errors: dict[int, Tensor]
    """|bfloat16 - float32| / |float32| of every particle's state by number of steps."""
    ranks: dict[str, Ranks]
    """Ranks by score: "alive", the return of cart-pole, and "smooth", the negative mean square of pole angle and cart
    position in units of their limits."""


def train(hidden: tuple[int, ...], n_steps: int, seed: int) -> PlannerLevel:
    """Train PETS for some steps of cart-pole, with float32 rollouts."""
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
def compare(level: PlannerLevel, seed: int) -> Comparison:
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
    scores: dict[str, list[tuple[Tensor, Tensor]]] = {"alive": [], "smooth": []}
    for i, (start, actions) in enumerate(zip(starts, plans, strict=True)):
        exact, reduced = (
            _rollout(level.world, start, actions, dtype=dtype, seed=i) for dtype in (None, torch.bfloat16)
        )
        for k, found in errors.items():
            distance = (reduced.state - exact.state)[..., k, :].norm(dim=-1)
            found.append((distance / exact.state[..., k, :].norm(dim=-1)).flatten())
        scores["alive"].append((_alive_score(exact), _alive_score(reduced)))
        scores["smooth"].append((_smooth_score(exact), _smooth_score(reduced)))
    return Comparison(
        {k: torch.cat(found) for k, found in errors.items()}, {name: _ranks(pairs) for name, pairs in scores.items()}
    )


def _rollout(world: WorldModel, start: Tensor, actions: Tensor, *, dtype: torch.dtype | None, seed: int) -> Batch:
    """Roll out all plans (N, H, A) from one start state (S,), with the noise of the seed."""
    assert isinstance(world.dynamics, ProbabilisticEnsemble)
    world.dynamics.rollout_dtype = dtype
    rows = start.expand(len(actions), -1)
    return world.rollout(rows, actions, generator=torch.Generator().manual_seed(seed), statistics=False)


def _alive_score(rollout: Batch) -> Tensor:
    """Objective of the planner, (N,)."""
    score: Tensor = (rollout.alive * rollout.reward).sum(-1).mean((1, 2))
    return score


def _smooth_score(rollout: Batch) -> Tensor:
    """Continuous score, which every change of a state affects, (N,)."""
    x, theta = rollout.state[..., 1:, 0], rollout.state[..., 1:, 2]
    score: Tensor = -((theta / THETA_LIMIT).square() + (x / X_LIMIT).square()).mean((1, 2, 3))
    return score


def _ranks(pairs: Sequence[tuple[Tensor, Tensor]]) -> Ranks:
    varying = [(a, b) for a, b in pairs if bool((a != a[0]).any())]
    best = [[set(x.argsort(descending=True, stable=True)[:N_BEST].tolist()) for x in pair] for pair in varying]
    return Ranks([spearman(a, b) for a, b in varying], [len(a & b) / N_BEST for a, b in best])


def main() -> None:
    """Compare the rollouts of both networks."""
    config = tyro.cli(Bfloat16Benchmark, prog="python -m experiments.benchmarks.bfloat16")
    errors: list[list[Cell]] = []
    orders: list[list[Cell]] = []
    for network, (hidden, n_steps) in NETWORKS.items():
        found = compare(train(hidden, n_steps, config.seed), config.seed)
        for k, each in found.errors.items():
            middle, high = each.quantile(torch.tensor([0.5, 0.95])).tolist()
            errors.append([network, k, *(f"{x:.1e}" for x in (middle, high, float(each.max())))])
        for name, r in found.ranks.items():
            numbers = (mean(r.correlation), min(r.correlation), mean(r.overlap), min(r.overlap))
            orders.append([network, name, len(r.correlation), *(f"{x:.5f}" for x in numbers)])
    text = f"""Matrix products in bfloat16; states, noise and the normalisation of inputs in float32. PETS trained on
ContinuousCartPole-v0 (seed {config.seed}); {N_STARTS} start states from its replay, {N_PLANS} random smooth plans of
{HORIZON} steps from each, 5 members x {N_PARTICLES} particles, the same noise in both types."""
    tables = (
        Table(
            "errors",
            "Relative error of a particle's state: |bfloat16 - float32| / |float32|",
            ("network", "steps", "median", "95th percentile", "max"),
            errors,
        ),
        Table(
            "order",
            "Order of the plans of a start state",
            ("network", "score", "start states", "Spearman mean", "min", f"best {N_BEST} the same, mean", "min"),
            orders,
            (
                "alive: the return that the planner maximises; start states where it is the same for all plans are "
                "left out",
                "smooth: minus the mean square of pole angle and cart position; expected: at least 0.99",
            ),
        ),
    )
    command = f"python -m experiments.benchmarks.bfloat16 --seed {config.seed}"
    machine = machine_line("gymnasium", "tianshou", threads=1)
    write_page(config.output, "Rollouts in bfloat16", command, (text, *tables), machine)


if __name__ == "__main__":
    main()
