"""Measure the ensemble's calibration on data of known noise: `python -m experiments.benchmarks.calibration`.

A two-dimensional system whose noise depends on the state: an ensemble is fitted to a few thousand transitions, and
its standard deviations, intervals and disagreement are compared with the truth.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
import tyro
from gymnasium.spaces import Box
from tianshou.data import Batch
from torch import Tensor

from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.tables import Table
from layeredrl.models import FitConfig, ProbabilisticEnsemble, fit
from layeredrl.models.diagnostics.figures import draw_calibration, draw_disagreement, draw_open_loop
from layeredrl.models.diagnostics.measures import (
    Disagreement,
    OneStep,
    OpenLoop,
    evaluate_disagreement,
    evaluate_one_step,
    evaluate_open_loop,
)
from layeredrl.models.nets import GaussianMixtureMLP

NEAR, FAR = 2.0, 4.0
"""Training states lie in the square [-NEAR, NEAR]²; states off the distribution outside it, in [-FAR, FAR]²."""
HORIZON = 20


@dataclass(frozen=True)
class CalibrationBenchmark:
    """Fit ensembles to data of known noise and compare."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Random seeds of data, networks and fit."""
    transitions: int = 4000
    """Number of transitions to fit."""
    held_out: int = 20_000
    """Number of held-out transitions."""
    output: Path = Path("experiments/results/model_calibration.md")
    """Markdown file to write."""


class Row(NamedTuple):
    """Results of one seed; each number is that of the worse of the two dimensions. See `NOTES`."""

    seed: int
    std_ratio: float
    std_deviation: float
    std_within_10: float
    coverage_90: float
    calibration_error: float
    r2: float
    best_r2: float
    open_loop_ratio: float
    auroc: float


NOTES = (
    "each number is that of the worse dimension",
    "std_ratio, std_deviation: predicted (within members) over true standard deviation, its mean and the mean of its "
    "distance from 1, over the held-out rows; expected: within 10 percent",
    "std_within_10: share of single rows whose predicted standard deviation is within 10 percent",
    "coverage_90: share of outcomes in 90 percent intervals; expected: 0.88 to 0.92",
    "calibration_error: mean distance of observed from expected coverage over 11 levels, 0.1 to 0.99",
    "r2, best_r2: of the change in state, by the model and by the true mean",
    f"open_loop_ratio: error over the ensemble's own standard deviation after {HORIZON} steps",
    f"auroc: disagreement as a classifier of states outside [-{NEAR:g}, {NEAR:g}]², the range of the data, uniform up "
    f"to {FAR:g}, against held-out states in it; expected: at least 0.9",
)


def true_mean(state: Tensor, action: Tensor) -> Tensor:
    """Expected change of state (..., 2) under action (..., 1), similar to a damped, driven pendulum."""
    x, v = state.unbind(-1)
    return torch.stack([0.2 * v, -0.4 * x.sin() - 0.15 * v + 0.3 * action.squeeze(-1)], -1)


def true_std(state: Tensor) -> Tensor:
    """Standard deviation of the change at state (..., 2); it varies threefold."""
    x, v = state.unbind(-1)
    return torch.stack([0.02 + 0.04 * torch.sigmoid(2 * v), 0.1 + 0.05 * (1.5 * x).sin()], -1)


def step(state: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
    """The next state (..., 2)."""
    noise = torch.randn(state.shape, generator=generator)
    return state + true_mean(state, action) + true_std(state) * noise


def transitions(n: int, generator: torch.Generator) -> Batch:
    """Transitions from states all over the training square."""
    state = NEAR * (2 * torch.rand((n, 2), generator=generator) - 1)
    act = 2 * torch.rand((n, 1), generator=generator) - 1
    after = step(state, act, generator)
    return Batch(state=state, context=torch.zeros(n, 0), act=act, state_next=after, terminated=torch.zeros(n))


def unfamiliar(n: int, generator: torch.Generator) -> Batch:
    """States and actions whose states lie outside the training square."""
    state = FAR * (2 * torch.rand((4 * n, 2), generator=generator) - 1)
    state = state[(state.abs() > NEAR).any(-1)][:n]
    act = 2 * torch.rand((len(state), 1), generator=generator) - 1
    return Batch(state=state, context=torch.zeros(len(state), 0), act=act)


def trajectories(n: int, generator: torch.Generator) -> Batch:
    """Trajectories under random actions, from the inner quarter of the training square, which few leave."""
    states = [0.5 * NEAR * (2 * torch.rand((n, 2), generator=generator) - 1)]
    act = 2 * torch.rand((n, HORIZON, 1), generator=generator) - 1
    for action in act.unbind(1):
        states.append(step(states[-1], action, generator))
    return Batch(state=torch.stack(states, 1), context=torch.zeros(n, 0), act=act)


def fitted(data: Batch, generator: torch.Generator, seed: int) -> ProbabilisticEnsemble:
    """Fit five members until the loss on a holdout no longer falls."""
    states, contexts = (Box(-np.inf, np.inf, (width,)) for width in (2, 0))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = partial(GaussianMixtureMLP, hidden=(64, 64))
        ensemble = ProbabilisticEnsemble(
            states, contexts, Box(-1, 1, (1,)), net, n_models=5, learning_rate=1e-3, create_optimizer=True
        ).eval()
    fit(
        ensemble,
        data,
        FitConfig(epochs=150, batch_size=128, bootstrap=True, holdout=0.1, patience=10),
        generator=generator,
    )
    return ensemble


def measure(
    seed: int, n_transitions: int = 4000, n_held_out: int = 20_000
) -> tuple[Row, OneStep, OpenLoop, Disagreement]:
    """Fit one ensemble and compare it with the true system."""
    generator = torch.Generator().manual_seed(seed)
    ensemble = fitted(transitions(n_transitions, generator), generator, seed)
    data = transitions(n_held_out, generator)
    one_step = evaluate_one_step(ensemble, data)
    open_loop = evaluate_open_loop(ensemble, trajectories(1000, generator), generator=generator)
    disagreement = evaluate_disagreement(ensemble, data, unfamiliar(2000, generator))
    ratio = one_step.aleatoric_std / true_std(data.state)
    coverage = one_step.mixture.coverage[one_step.levels.tolist().index(0.9)]
    worse = int(one_step.mixture.r2.argmin())
    noise = one_step.change - true_mean(data.state, data.act)
    best_r2 = 1 - noise.square().mean(0) / one_step.change.var(0)
    row = Row(
        seed=seed,
        std_ratio=_farthest(ratio.mean(0), 1),
        std_deviation=float((ratio - 1).abs().mean(0).max()),
        std_within_10=float(((ratio - 1).abs() < 0.1).double().mean(0).min()),
        coverage_90=_farthest(coverage, 0.9),
        calibration_error=one_step.metrics()["model/calibration_error"],
        r2=float(one_step.mixture.r2[worse]),
        best_r2=float(best_r2[worse]),
        open_loop_ratio=_farthest(open_loop.rmse[-1] / open_loop.band[-1], 1),
        auroc=disagreement.auroc,
    )
    return row, one_step, open_loop, disagreement


def _farthest(values: Tensor, target: float) -> float:
    return float(values[(values - target).abs().argmax()])


def main() -> None:
    """Measure all seeds; write table and figures."""
    config = tyro.cli(CalibrationBenchmark, prog="python -m experiments.benchmarks.calibration")
    rows: list[Row] = []
    for seed in config.seeds:
        row, one_step, open_loop, disagreement = measure(seed, config.transitions, config.held_out)
        rows.append(row)
    text = f"""Five members of 64 x 64 units, fitted to {config.transitions} transitions of a system with two state
dimensions whose noise depends on the state; judged by {config.held_out} held-out transitions."""
    means = [mean(column) for column in list(zip(*rows, strict=True))[1:]]
    table = Table("calibration", "Calibration", Row._fields, [*rows, ["mean", *means]], NOTES)
    figures = {
        "coverage": draw_calibration(one_step),
        "open_loop": draw_open_loop(open_loop),
        "disagreement": draw_disagreement(disagreement),
    }
    stem = config.output.stem
    pictures = "\n".join(["Figures of the last seed:", "", *(f"![{kind}]({stem}_{kind}.png)" for kind in figures)])
    write_page(
        config.output,
        "Calibration of the ensemble on data of known noise",
        f"python -m experiments.benchmarks.calibration --seeds {' '.join(map(str, config.seeds))}",
        (text, table, pictures),
        machine_line(threads=torch.get_num_threads()),
    )
    for kind, figure in figures.items():
        figure.savefig(config.output.with_name(f"{stem}_{kind}.png"), dpi=120)


if __name__ == "__main__":
    main()
