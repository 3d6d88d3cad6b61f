"""What a report's intervals and tests are worth with few seeds: `python -m experiments.benchmarks.statistics`.

Studies are simulated whose true answer is known. Measured is how often an interval made to cover 95 percent holds it,
and how often a difference is told where there is none. Writes statistics.md and statistics.json.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu, norm

from experiments.benchmarks.machine import machine_line
from experiments.benchmarks.runs import table
from experiments.report.statistics import REPS, Array, improvement, interval, iqm
from experiments.run.command_line import command_line
from layeredrl.checks import require_counts

SEEDS = (2, 3, 4, 5, 7, 10, 20)
"""Numbers of runs of a setting."""
SHIFTS = (0.0, 1.0, 2.0)
"""Differences between two settings, in standard deviations."""
QUARTILE = float(norm.ppf(0.75))


@dataclass(frozen=True)
class StatisticsConfig:
    """Measure what intervals cover in simulated studies."""

    output: Path = Path("experiments/results/statistics.md")
    """Where the table goes; the numbers go beside it, as .json."""
    simulations: int = 500
    """Studies of each kind."""
    reps: int = REPS
    """Resamples of each interval."""

    def __post_init__(self) -> None:
        require_counts(self, simulations=1, reps=1)


@dataclass(frozen=True)
class Scores:
    """Final scores of runs, as they might be."""

    told: str
    draw: Callable[[np.random.Generator, tuple[int, int]], Array]
    """Of a shape."""
    truth: float
    """Their interquartile mean: the mean of the middle half of the distribution."""


def _with_failures(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.normal(0, 0.1, shape) + (rng.random(shape) < 0.8)


def _middle_of_failures() -> float:
    """Interquartile mean of the mixture, on a grid far finer than what simulations can tell."""
    x = np.linspace(-1, 2, 300_001)
    below = 0.2 * norm.cdf(x, 0, 0.1) + 0.8 * norm.cdf(x, 1, 0.1)
    quantiles = np.interp(np.linspace(0.25, 0.75, 100_001), below, x)
    return float(quantiles.mean())


KINDS = {
    "normal": Scores("normal", lambda rng, shape: rng.normal(size=shape), 0.0),
    "failures": Scores("one run in five fails: N(0, 0.1²), else N(1, 0.1²)", _with_failures, _middle_of_failures()),
    "skewed": Scores(
        "log-normal, sigma 1",
        lambda rng, shape: rng.lognormal(size=shape),
        2 * math.exp(0.5) * float(norm.cdf(QUARTILE - 1) - norm.cdf(-QUARTILE - 1)),
    ),
}


def coverage(n: int, config: StatisticsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """How often the interval of the interquartile mean of n runs holds the truth, for each kind of scores."""
    row: dict[str, Any] = {"n": n}
    for name, kind in KINDS.items():
        found = interval(iqm, kind.draw(rng, (n, config.simulations)), reps=config.reps)
        row[name] = float(np.mean((found.low <= kind.truth) & (kind.truth <= found.high)))
        row[f"{name}_bias"] = float(found.point.mean() - kind.truth)
    return row


def comparisons(n: int, config: StatisticsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Two settings of n runs each with normal scores: what is said of their difference."""
    row: dict[str, Any] = {"n": n}
    for shift in SHIFTS:
        x, y = rng.normal(shift, 1, (n, config.simulations)), rng.normal(0, 1, (n, config.simulations))
        found, truth = interval(improvement, x, y, reps=config.reps), float(norm.cdf(shift / math.sqrt(2)))
        row[f"coverage_{shift:g}"] = float(np.mean((found.low <= truth) & (truth <= found.high)))
        row[f"excludes_half_{shift:g}"] = float(np.mean((found.low > 0.5) | (found.high < 0.5)))
        row[f"test_{shift:g}"] = float(np.mean(mannwhitneyu(x, y, axis=0, method="exact").pvalue < 0.05))
    return row


def page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    error = math.sqrt(0.95 * 0.05 / result["simulations"])
    lines = ["# What the intervals of a report cover", "", f"    {result['command']}", ""]
    lines += [
        f"{result['simulations']} simulated studies of each kind, {result['reps']} resamples each. A share near 95 %",
        f"is known to ± {error:.1%} (one standard error).",
        "",
        "## The 95 % interval of the interquartile mean: how often it holds the truth",
        "",
        "In brackets: how far the estimate lies from the truth on average. With two or three runs no quarter",
        "can be left out, and it is their mean.",
        "",
    ]
    header = ["runs", *(kind.told for kind in KINDS.values())]
    rows = [[r["n"], *(f"{r[k]:.1%} ({r[f'{k}_bias']:+.2f})" for k in KINDS)] for r in result["coverage"]]
    lines += [*table(header, rows), "", "## Two settings with normal scores", ""]
    lines += [
        "The true difference in standard deviations, and for each: how often the 95 % interval of the probability of",
        "improvement holds the truth / lies to one side of 0.5 / how often a two-sided Mann-Whitney test has p < 0.05.",
        "With a difference of 0, the last two are false alarms.",
        "",
    ]
    keys = ("coverage", "excludes_half", "test")
    told = [
        [r["n"], *(" / ".join(f"{r[f'{key}_{shift:g}']:.1%}" for key in keys) for shift in SHIFTS)]
        for r in result["improvement"]
    ]
    lines += [*table(["runs of each", *(f"{shift:g}" for shift in SHIFTS)], told), "", result["machine"], ""]
    return "\n".join(lines)


def main() -> None:
    """Simulate, tell, write."""
    config: StatisticsConfig = command_line(
        StatisticsConfig, sys.argv[1:], prog="python -m experiments.benchmarks.statistics"
    )
    rng = np.random.default_rng(0)
    result = {
        "command": " ".join(["python -m experiments.benchmarks.statistics", *sys.argv[1:]]),
        "machine": machine_line("scipy", "rliable", "arch"),
        "simulations": config.simulations,
        "reps": config.reps,
        "coverage": [coverage(n, config, rng) for n in SEEDS],
        "improvement": [comparisons(n, config, rng) for n in SEEDS],
    }
    text = page(result)
    config.output.write_text(text)
    config.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
