"""Statistics of a report: interquartile means, probabilities of improvement, and their intervals.

Intervals are stratified bootstraps by rliable (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice"). Their measured coverage: docs/reports.md.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from layeredrl.randomness import fork_globals, seed_globals

LEVEL = 0.95
"""Nominal coverage of intervals."""
REPS = 2000
"""Number of resamples, as in rliable's examples; the ends of an interval vary by a few percent of its width."""
MEASURED = Path(__file__).parents[1] / "results" / "statistics.json"
"""Coverage of intervals in simulated studies, from `experiments.benchmarks.statistics`."""

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """Estimates and the ends of their intervals, one for each column; ends are NaN if there is only one run."""

    point: Array
    low: Array
    high: Array


def iqm(scores: Array) -> Array:
    """Return the interquartile mean of each column: without the lowest and the highest quarter (rounded down).

    With up to three runs it is their mean. rliable's own `aggregate_iqm` takes one matrix, and is a hundred times
    slower here.

    Args:
        scores: Shape (runs, columns).
    """
    cut = len(scores) // 4
    kept: Array = np.sort(scores, 0)[cut : len(scores) - cut]
    return kept.mean(0)


def improvement(x: Array, y: Array) -> Array:
    """Return the share of pairs in which the run of `x` is better, ties half, for each column, as rliable defines it.

    Args:
        x: Scores of one setting, (runs, columns).
        y: Scores of the other, (other runs, columns).
    """
    better: Array = (x[:, None] > y).mean((0, 1)) + 0.5 * (x[:, None] == y).mean((0, 1))
    return better


def mean_improvement(*scores: Array) -> Array:
    """Return the mean of `improvement` over environments; the scores alternate: x, y, x, y."""
    each = [improvement(x, y) for x, y in zip(scores[::2], scores[1::2], strict=True)]
    mean: Array = np.mean(each, 0)
    return mean


def interval(function: Callable[..., Array], *scores: Array, reps: int = REPS) -> Interval:
    """Return a statistic with its bootstrap interval. Columns, and several arrays, are resampled independently.

    Args:
        function: Maps the scores to one number per column.
        scores: Arrays of shape (runs, columns); the number of runs may differ.
        reps: Number of resamples.
    """
    from rliable.library import get_interval_estimates  # late: takes seconds to import

    if min(map(len, scores)) < 2:
        point = function(*scores)
        return Interval(point, np.full_like(point, np.nan), np.full_like(point, np.nan))
    data: Any = scores[0] if len(scores) == 1 else list(scores)
    with fork_globals():
        seed_globals(0)  # rliable draws from numpy's global generator, whatever random_state it is given
        points, ends = get_interval_estimates({"it": data}, function, reps=reps, confidence_interval_size=LEVEL)
    return Interval(points["it"], *ends["it"])


class Curve(NamedTuple):
    """Metric of several runs on a common grid."""

    x: Array
    """Centres of the bins, (T,)."""
    each: Array
    """Metric of each run, (runs, T)."""
    value: Interval
    """Interquartile mean of the runs, (T,)."""


def bin_curves(points: Sequence[Array], max_bins: int = 40) -> Curve | None:
    """Bring curves with different x onto a common grid.

    Bins of equal width reach from 0 to the end of the shortest curve. A curve's value in a bin is the mean of its
    points there; bins without points are interpolated linearly. The grid begins where all curves have begun.

    Args:
        points: x and value of each run in the order of x, (N, 2).
        max_bins: Largest number of bins; there are no more than points in the curve with the fewest.

    Returns:
        The curve, or None if there is no x at which all curves have a value.
    """
    end = min((curve[-1, 0] for curve in points), default=0.0)
    if end <= 0 or any(curve[0, 0] > end for curve in points):
        return None
    n_bins = min(max_bins, *(len(curve) for curve in points))
    width = end / n_bins
    rows, begun = [], 0
    for curve in points:
        bins = np.maximum(np.ceil(curve[:, 0] / width - 1e-9).astype(np.int64) - 1, 0)  # of (0, w], (w, 2w], ...
        filled, inverse = np.unique(bins, return_inverse=True)
        means = np.bincount(inverse, curve[:, 1]) / np.bincount(inverse)
        rows.append(np.interp(np.arange(n_bins), filled, means))
        begun = max(begun, int(filled[0]))
    each = np.array(rows)[:, begun:]
    return Curve((np.arange(begun, n_bins) + 0.5) * width, each, interval(iqm, each))


class Pair(NamedTuple):
    """Comparison of two settings."""

    first: str
    second: str
    n: tuple[int, int]
    """Number of runs of each."""
    improvement: Interval
    """Probability that a run of the first is better than one of the second, (1,)."""
    p: float
    """P value of a two-sided Mann-Whitney test."""
    p_holm: float
    """P value corrected for the number of pairs."""
    least: float
    """Value of `p_holm` if all runs of one were better than all of the other."""

    @property
    def verdict(self) -> str:
        """Outcome of the test at 5 percent."""
        if self.p_holm < 1 - LEVEL:
            return f"{self.first if self.improvement.point[0] > 0.5 else self.second} is better"
        if self.least >= 1 - LEVEL:
            return "too few runs to tell"
        return "no difference shown"


def compare_pairs(scores: Mapping[str, Array]) -> list[Pair]:
    """Compare each two settings in an environment.

    Args:
        scores: Scores of the runs by label, (runs,) each.
    """
    labels = list(itertools.combinations(scores, 2))
    tests = [rank_test(scores[a], scores[b]) for a, b in labels]
    pairs = []
    for (a, b), p, corrected in zip(labels, tests, holm(tests), strict=True):
        x, y = scores[a][:, None], scores[b][:, None]
        n, chance = (len(x), len(y)), interval(improvement, x, y)
        pairs.append(Pair(a, b, n, chance, p, corrected, min(1.0, smallest_p(*n) * len(labels))))
    return pairs


def rank_test(x: Array, y: Array) -> float:
    """Return the p value of a two-sided Mann-Whitney test over all permutations, at most 9999 random ones."""
    if min(len(x), len(y)) < 2:  # scipy needs two of each; a single run shows no difference anyway
        return 1.0
    from scipy.stats import PermutationMethod, mannwhitneyu  # late: it comes with rliable

    method = PermutationMethod(n_resamples=9999, rng=np.random.default_rng(0))
    return float(mannwhitneyu(x, y, method=method).pvalue)


def smallest_p(n: int, m: int) -> float:
    """Return the smallest p value that a two-sided rank test can give with this number of runs."""
    return min(1.0, 2 / math.comb(n + m, n))


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979)."""
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p)):
        least = max(least, min(1.0, p[i] * (len(p) - rank)))
        corrected[i] = least
    return corrected


def coverage_note(n_runs: int, path: Path = MEASURED) -> str | None:
    """Return the measured coverage of intervals of so few runs, or None if it is close to the nominal one."""
    try:
        rows = json.loads(path.read_bytes())["coverage"]
        known = {int(row["n"]): (float(row["normal"]), float(row["failures"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return f"intervals of {n_runs} runs are too narrow" if n_runs < 10 else None
    nearest = max((n for n in known if n <= n_runs), default=None)
    if nearest is None or min(known[nearest]) > LEVEL - 0.02:
        return None
    normal, failures = known[nearest]
    return (
        f"the interval of {n_runs} runs is too narrow: 95 percent intervals of {nearest} runs contained the true value "
        f"in {normal:.0%} of simulated studies with normal scores, and in {failures:.0%} where one run in five fails"
    )
