"""Tables and figures of a report: learning curves, final performance, and comparisons of settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_high
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.report.figures import Curves, Lines, draw_pairs, line_style, published_style
from experiments.report.metrics import CPU_SECONDS, SECONDS
from experiments.report.references import METRICS, Published, published
from experiments.report.runs import Group, Run
from experiments.report.statistics import (
    Array,
    Pair,
    bin_curves,
    coverage_note,
    interval,
    iqm,
    mean_improvement,
)
from experiments.report.tables import Cell, Table


class Target(NamedTuple):
    """Value of the metric that runs should reach."""

    value: float
    env: str | None = None
    """Environment that it applies to; all if None."""


CLOCKS = {
    "seconds": ("wall time in seconds", SECONDS),
    "cpu-seconds": ("CPU time of the training process in seconds", CPU_SECONDS),
}
"""Label and metric of each time that learning curves are drawn against, by the end of the figure's name."""


@dataclass(frozen=True)
class Study:
    """Groups of runs, and how to compare them."""

    runs: Sequence[Run]
    groups: Sequence[Group]
    metric: str
    """Metric to compare; more is better."""
    final_share: float = 0.1
    """Share of a run's steps, at its end, whose mean is its final performance."""
    unfinished: bool = False
    """If True, runs that are not finished count, too."""
    targets: Sequence[Target] = ()
    """Values of the metric whose first step is listed."""
    in_a_row: int = 1
    """Number of entries in a row that have to reach a target."""

    @property
    def environments(self) -> list[str]:
        """Environments in the order of their first runs."""
        return list(dict.fromkeys(group.env for group in self.groups))

    def of(self, env: str) -> list[Group]:
        """Return the groups of an environment."""
        return [group for group in self.groups if group.env == env]

    def counted(self, group: Group) -> list[Run]:
        """Return the runs of a group that count."""
        return group.counted(self.metric, unfinished=self.unfinished)

    def scores(self, env: str) -> dict[str, Array]:
        """Return final performances (runs,) by label, of groups that have any."""
        found = {}
        for group in self.of(env):
            finals = [run.final(self.metric, self.final_share) for run in self.counted(group)]
            if finals:
                found[group.label] = np.array(finals, dtype=np.float64)
        return found

    def styles(self) -> dict[str, dict[str, Any]]:
        """Return the line style of each setting, the same in all figures."""
        return {label: line_style(i) for i, label in enumerate(dict.fromkeys(group.label for group in self.groups))}


def learning_curves(study: Study, env: str) -> dict[str, Curves]:
    """Return learning curves by name: against environment steps, wall time and CPU time, where runs logged these."""
    runs = [run for group in study.of(env) for run in group.runs]
    mixed = len({run.action_repeat for run in runs}) > 1
    steps = "frames: environment steps times action repeat" if mixed else "environment steps"
    found = {}
    for name, (xlabel, clock) in {"steps": (steps, None), **CLOCKS}.items():
        if clock and not any(clock in run.metrics for run in runs):
            continue
        lines = {}
        for group in study.of(env):
            points = {id(run): _points(run, study.metric, clock) for run in group.runs}
            if name == "steps" and mixed:
                points = {id(run): points[id(run)] * (run.action_repeat, 1) for run in group.runs}
            points = {key: curve for key, curve in points.items() if len(curve)}
            counted = [points[id(run)] for run in study.counted(group) if id(run) in points]
            alone = [bin_curves([curve]) for curve in points.values()]
            seeds = [curve for curve in alone if curve is not None]
            lines[group.label] = Lines(seeds, bin_curves(counted), len(counted))
        ylabel = "episode return (sum of rewards)" if study.metric in METRICS else study.metric
        found[name] = Curves(f"{env}: {study.metric}", xlabel, ylabel, lines, study.styles())
    ends = [run.n_steps * run.action_repeat for run in runs if study.metric in run.metrics]
    repeat = 1 if mixed or not runs else runs[0].action_repeat
    found["steps"] = _with_published(found["steps"], published(env, study.metric), max(ends, default=0), repeat)
    return found


def _with_published(curves: Curves, known: Sequence[Published], end: int, repeat: int) -> Curves:
    """Add published curves up to `end` frames, with `repeat` frames in a unit of the x-axis."""
    styles = {curve.label: published_style(i) for i, curve in enumerate(known)}
    points = {curve.label: curve.until(end) / (repeat, 1) for curve in known}
    first = {curve.label: f": {curve.mean[0]:g} at {curve.frames[0] / repeat:,.0f}, its first point" for curve in known}
    later = {label: first[label] for label in points if not len(points[label])}
    return replace(curves, styles={**curves.styles, **styles}, published=points, later=later)


def _points(run: Run, metric: str, clock: str | None) -> Array:
    """Return steps, or seconds of a clock, and the metric, (N, 2); empty if either was not logged."""
    points = run.metrics.get(metric, np.empty((0, 2)))
    if clock is None:
        return points
    seconds = run.seconds(points[:, 0], clock)
    return np.stack([seconds, points[: len(seconds), 1]], 1)


def final_table(study: Study, env: str) -> Table:
    """Return the final performance of each setting."""
    scores = study.scores(env)
    rows = [_final_row(group.label, study.counted(group), scores.get(group.label)) for group in study.of(env)]
    columns = (
        "setting",
        "runs",
        "IQM",
        "95 % from",
        "95 % to",
        "mean",
        "median",
        "least",
        "greatest",
        "median seconds",
    )
    return Table(f"final-{slug(env)}", f"{env}: final performance", columns, rows, _final_notes(study, env))


def _final_row(label: str, runs: Sequence[Run], scores: Array | None) -> list[Cell]:
    if scores is None:
        return [label, 0, *[None] * 8]
    times = [run.metrics[SECONDS][-1, 1] for run in runs if SECONDS in run.metrics]
    found = interval(iqm, scores[:, None])
    return [
        *(label, len(scores), *(float(part[0]) for part in found)),
        *(float(scores.mean()), float(np.median(scores)), float(scores.min()), float(scores.max())),
        float(np.median(times)) if times else None,
    ]


def _final_notes(study: Study, env: str) -> list[str]:
    """Return limitations of the final performances."""
    notes, steps = [], {}
    by_number: dict[int, list[str]] = {}
    for group in study.of(env):
        notes += [f"{group.label}: {note}" for note in group.notes()]
        counted = study.counted(group)
        left_out = len(group.runs) - len(counted)
        if left_out:
            n = "the only run is" if len(group.runs) == 1 else f"{left_out} of {len(group.runs)} runs are"
            notes.append(f"{group.label}: {n} left out: not finished, or without the metric")
        if counted:
            steps[group.label] = max(run.n_steps for run in counted)
            early = sum(run.n_steps < run.n_planned and run.finished for run in counted)
            if early:
                notes.append(f"{group.label}: {early} of {len(counted)} runs ended early, at trainer.stop_at_return")
            by_number.setdefault(len(counted), []).append(group.label)
    for n, labels in by_number.items():
        note = coverage_note(n) if n > 1 else "a single run has no interval"
        notes += [f"{', '.join(labels)}: {note}"] if note else []
    if len(set(steps.values())) > 1:
        listed = ", ".join(f"{label} {n}" for label, n in steps.items())
        notes.append(f"settings are compared at different numbers of environment steps: {listed}")
    return notes


def reached_table(study: Study, env: str) -> Table:
    """Return the first environment step at which each setting reached each target of an environment."""
    rows = [
        _reached_row(study, group, target.value)
        for target in study.targets
        if target.env in (None, env)
        for group in study.of(env)
        if study.counted(group)
    ]
    columns = (study.metric, "setting", "runs", "reached", "first", "median", "last", "by seed")
    row = f", {study.in_a_row} times in a row" if study.in_a_row > 1 else ""
    title = f"{env}: first environment step at which {study.metric} was reached{row}"
    return Table(f"reached-{slug(env)}", title, columns, rows)


def _reached_row(study: Study, group: Group, value: float) -> list[Cell]:
    runs = study.counted(group)
    steps = [run.reached(study.metric, value, study.in_a_row) for run in runs]
    # A run that never reached the value counts as infinitely late; the number after "within" bounds it from below.
    late = [math.inf if step is None else step for step in steps]
    known = [run.n_steps if step is None else step for run, step in zip(runs, steps, strict=True)]
    found = [
        int(choose(late)) if choose(late) < math.inf else f"not within {choose(known)}"
        for choose in (min, median_high, max)
    ]
    seeds = [
        f"{run.seed}: {f'not within {run.n_steps}' if step is None else step}"
        for run, step in zip(runs, steps, strict=True)
    ]
    return [value, group.label, len(runs), sum(step is not None for step in steps), *found, ", ".join(seeds)]


PAIR_COLUMNS = ("environment", "first", "second", "runs", "P(first better)", "95 % from", "95 % to")
TEST_COLUMNS = ("p", "p (Holm)", "difference")


def pairs_figure(env: str, pairs: Sequence[Pair]) -> Figure:
    """Return a figure of the probabilities of improvement."""
    return draw_pairs(pairs, f"{env}: probability of improvement")


def pairs_table(env: str, pairs: Sequence[Pair]) -> Table:
    """Return the comparison of each two settings in an environment."""
    rows: list[list[Cell]] = [
        [
            *(env, pair.first, pair.second, f"{pair.n[0]} and {pair.n[1]}"),
            *(float(part[0]) for part in pair.improvement),
            *(pair.p, pair.p_holm, pair.verdict),
        ]
        for pair in pairs
    ]
    notes = ["difference: two-sided Mann-Whitney test over permutations, 5 percent, corrected for the pairs (Holm)"]
    if any(pair.least >= 0.05 for pair in pairs):
        notes.append(
            "too few runs to tell: even if every run of one beat every run of the other, p would be 0.05 or more"
        )
    if any(min(pair.n) < 10 for pair in pairs):
        notes.append("with few runs the interval of the probability is too narrow; rely on the test")
    title = f"{env}: probability of improvement"
    return Table(f"improvement-{slug(env)}", title, PAIR_COLUMNS + TEST_COLUMNS, rows, notes)


def overall_table(study: Study) -> Table:
    """Return the comparison of settings over the environments in which both have runs."""
    by_env = {env: study.scores(env) for env in study.environments}
    labels = list(dict.fromkeys(label for scores in by_env.values() for label in scores))
    rows: list[list[Cell]] = []
    for i, first in enumerate(labels):
        for second in labels[i + 1 :]:
            shared = [scores for scores in by_env.values() if first in scores and second in scores]
            if len(shared) > 1:
                arrays = [scores[label][:, None] for scores in shared for label in (first, second)]
                found = interval(mean_improvement, *arrays)
                rows.append([f"{len(shared)} of {len(by_env)}", first, second, *(float(part[0]) for part in found)])
    columns = ("environments", "first", "second", *PAIR_COLUMNS[4:])
    notes = [
        "mean of the probabilities over the environments in which both have runs; seeds are resampled in each",
        "settings of one name may differ between environments: see below",
    ]
    return Table("improvement-overall", "Probability of improvement over all environments", columns, rows, notes)


def slug(env: str) -> str:
    """Return an environment's id as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in env)
