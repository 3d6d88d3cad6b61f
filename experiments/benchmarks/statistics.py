"""Measure the coverage of a report's intervals with few seeds: `python -m experiments.benchmarks.statistics`.

In simulated studies with a known true value, counts how often a 95 percent interval contains it, and how often a
difference is reported where there is none. Writes statistics.md and statistics.json.
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

from experiments.benchmarks.machine import machine_line, write_page
from experiments.report.statistics import REPS, Array, improvement, interval, iqm
from experiments.report.tables import Table
from experiments.run.command_line import command_line
from layeredrl.checks import require_counts

SEEDS = (2, 3, 4, 5, 7, 10, 20)
"""Numbers of runs of a setting."""
SHIFTS = (0.0, 1.0, 2.0)
"""Differences between two settings, in standard deviations."""
QUARTILE = float(norm.ppf(0.75))


@dataclass(frozen=True)
class StatisticsConfig:
    """Measure the coverage of intervals in simulated studies."""

    output: Path = Path("experiments/results/statistics.md")
    """Markdown file to write; the numbers go beside it, as JSON."""
    simulations: int = 500
    """Number of studies of each kind."""
    reps: int = REPS
    """Number of resamples of each interval."""

    def __post_init__(self) -> None:
        require_counts(self, simulations=1, reps=1)


@dataclass(frozen=True)
class Scores:
    """Distribution of the final scores of runs."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, int]], Array]
    """Draw scores of a given shape."""
    truth: float
    """Interquartile mean: the mean of the middle half of the distribution."""


def _with_failures(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.normal(0, 0.1, shape) + (rng.random(shape) < 0.8)


def _middle_of_failures() -> float:
    """Return the interquartile mean of the mixture, on a grid much finer than the error of the simulations."""
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
    """Return the coverage of the interval of the interquartile mean of n runs, for each kind of scores."""
    row: dict[str, Any] = {"n": n}
    for name, kind in KINDS.items():
        found = interval(iqm, kind.draw(rng, (n, config.simulations)), reps=config.reps)
        row[name] = float(np.mean((found.low <= kind.truth) & (kind.truth <= found.high)))
        row[f"{name}_bias"] = float(found.point.mean() - kind.truth)
    return row


def comparisons(n: int, config: StatisticsConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Compare two settings of n runs each with normal scores: coverage and tests."""
    row: dict[str, Any] = {"n": n}
    for shift in SHIFTS:
        x, y = rng.normal(shift, 1, (n, config.simulations)), rng.normal(0, 1, (n, config.simulations))
        found, truth = interval(improvement, x, y, reps=config.reps), float(norm.cdf(shift / math.sqrt(2)))
        row[f"coverage_{shift:g}"] = float(np.mean((found.low <= truth) & (truth <= found.high)))
        row[f"excludes_half_{shift:g}"] = float(np.mean((found.low > 0.5) | (found.high < 0.5)))
        row[f"test_{shift:g}"] = float(np.mean(mannwhitneyu(x, y, axis=0, method="exact").pvalue < 0.05))
    return row


def tables(result: dict[str, Any]) -> list[Table]:
    """Return the results as tables."""
    coverages = [[r["n"], *(f"{r[k]:.1%} ({r[f'{k}_bias']:+.2f})" for k in KINDS)] for r in result["coverage"]]
    differences = [
        [
            r["n"],
            *(
                " / ".join(f"{r[f'{key}_{shift:g}']:.1%}" for key in ("coverage", "excludes_half", "test"))
                for shift in SHIFTS
            ),
        ]
        for r in result["improvement"]
    ]
    return [
        Table(
            "coverage",
            "Coverage of the 95 % interval of the interquartile mean",
            ("runs", *(kind.name for kind in KINDS.values())),
            coverages,
            ("in brackets: mean error of the estimate; two or three runs leave out no quarter: it is their mean",),
        ),
        Table(
            "improvement",
            "Two settings with normal scores, by their true difference in standard deviations",
            ("runs of each", *(f"{shift:g}" for shift in SHIFTS)),
            differences,
            (
                "how often the 95 % interval of the probability of improvement contains the true value / lies to one "
                "side of 0.5 / how often a two-sided Mann-Whitney test has p < 0.05",
                "with a difference of 0, the last two are false alarms",
            ),
        ),
    ]


def main() -> None:
    """Simulate the studies; write tables and numbers."""
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
    config.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    text = f"""{config.simulations} simulated studies of each kind, {config.reps} resamples each. A share near 95 % has
a standard error of {math.sqrt(0.95 * 0.05 / config.simulations):.1%}."""
    write_page(
        config.output,
        "Coverage of the intervals of a report",
        result["command"],
        (text, *tables(result)),
        result["machine"],
    )


if __name__ == "__main__":
    main()
