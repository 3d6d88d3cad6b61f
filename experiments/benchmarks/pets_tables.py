"""What runs of PETS' tasks came to, as numbers and in Markdown: returns, rankings, models."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.benchmarks.runs import table
from experiments.run.held_out import collect, displaced, longest_episode, trajectories, transitions, world_model_of
from experiments.run.loading import load
from layeredrl.models.diagnostics.measures import evaluate_disagreement, evaluate_one_step, evaluate_open_loop

MODEL_NUMBERS = {
    "R²": "r2",
    "worst R²": "r2_min",
    "residuals": "residual_std",
    "in 90 %": "coverage_90",
    "calibration error": "calibration_error",
    **{f"error, k = {k}": f"open_loop/relative_rmse_{k}" for k in (1, 4, 16)},
}
"""Those of `judge_model` that a table has room for, by their headings there."""


def reached(curve: Iterable[Sequence[float]], value: float, within: float = math.inf) -> int | None:
    """Environment steps at which a curve of (environment steps, value) is first at least that high; None if never."""
    return next((int(n) for n, x in curve if x >= value and n <= within), None)


def judge_model(folder: Path, n_steps: int, horizon: int, seed: int) -> dict[str, dict[str, float | None]] | None:
    """What a run's world model is worth, on steps of random and of its own actions; None if it has none.

    The numbers of `experiments.diagnose`, but for those of single dimensions and members.

    Args:
        folder: Of the run.
        n_steps: Environment steps with each policy.
        horizon: Of open-loop rollouts.
        seed: Of the data.
    """
    config, agent, _ = load(folder, device="cpu")
    world = world_model_of(agent)
    if world is None:
        return None
    told = {}
    for policy, actor in (("random", None), ("agent", agent)):
        data, model = collect(config.env, actor, n_steps=n_steps, seed=seed), world.dynamics
        rows, pieces = transitions(data, world), trajectories(data, min(horizon, longest_episode(data)), world)
        numbers = evaluate_one_step(model, rows).metrics()
        numbers |= evaluate_open_loop(model, pieces, generator=torch.Generator().manual_seed(seed)).metrics()
        numbers |= evaluate_disagreement(model, rows, displaced(rows)).metrics()
        overall = {key: x for key, x in numbers.items() if not key.rpartition("/")[2].startswith(("state_", "member_"))}
        # JSON knows no other numbers; a deterministic model has no density, for instance.
        told[policy] = {key.removeprefix("model/"): x if math.isfinite(x) else None for key, x in overall.items()}
    return told


def model_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Models of runs, which have a `variant`, a `seed`, and in `model` what `judge_model` told, in Markdown."""
    rows = [
        (r["variant"], r["seed"], policy, *(rounded(numbers.get(key), 3) for key in MODEL_NUMBERS.values()))
        for r in results
        for policy, numbers in (r["model"] or {}).items()
    ]
    return table(("run", "seed", "actions", *MODEL_NUMBERS), rows)


def returns_table(results: Sequence[Mapping[str, Any]], within: float = math.inf, n_rows: int = 10) -> list[str]:
    """Returns beside their running maximum, at about that many of the `episodes` of runs, in Markdown."""
    ends = sorted({int(n) for r in results for n, _ in r["episodes"] if n <= within})
    rows = []
    for n in sorted({ends[round(i)] for i in np.linspace(0, len(ends) - 1, n_rows)}) if ends else ():
        pasts = [[x for end, x in r["episodes"] if end <= n <= r["n_total_env_steps"]] for r in results]
        rows.append((n, *(f"{past[-1]:.1f} / {max(past):.1f}" if past else "" for past in pasts)))
    return table(("environment steps", *(f"{r['variant']}, seed {r['seed']}" for r in results)), rows)


def ranking_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Variants by the mean of their running maximum, after the environment steps that all runs had, in Markdown."""
    within = min(r["n_total_env_steps"] for r in results)
    best, last = {}, {}
    for variant in dict.fromkeys(r["variant"] for r in results):
        own = [[x for n, x in r["episodes"] if n <= within] for r in results if r["variant"] == variant]
        best[variant] = np.array([max(x, default=math.nan) for x in own])
        last[variant] = np.array([np.mean(x[-5:]) if x else math.nan for x in own])
    order = sorted(best, key=lambda variant: -float(best[variant].mean()))
    draws = [bootstrap(best[variant], seed) for seed, variant in enumerate(order)]  # runs of a seed are no pairs
    above = [f"{np.mean(a > b):.2f}" for a, b in pairwise(draws)]
    rows = [
        (variant, len(best[variant]), with_interval(best[variant]), with_interval(last[variant]), share)
        for variant, share in zip(order, [*above, ""], strict=True)
    ]
    return table(("", "seeds", f"running maximum at {within}", "mean of the last five", "above the next"), rows)


def rounded(value: float | None, digits: int) -> str:
    """A number for a table; nothing if there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def best_so_far(curve: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """The running maximum of a curve of (environment steps, value)."""
    best = -math.inf
    return [(n, best := max(best, x)) for n, x in curve]


def bootstrap(values: NDArray[np.float64], seed: int = 0, n: int = 10_000) -> NDArray[np.float64]:
    """Means (n,) of values (k,) drawn anew with replacement."""
    draws = np.random.default_rng(seed).integers(len(values), size=(n, len(values)))
    return np.asarray(values[draws].mean(1))


def with_interval(values: NDArray[np.float64]) -> str:
    """Mean of values (k,), and its 95 % interval by the bootstrap."""
    low, high = np.quantile(bootstrap(values), (0.025, 0.975))
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"
