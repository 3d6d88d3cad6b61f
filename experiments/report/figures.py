"""Figures of a report."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.report.statistics import Array, Curve, Pair

STYLE = ("-", "--", "-.", ":")
LETTERS = 80
"""Width of a figure's legend."""


class Lines(NamedTuple):
    """Curves of one setting."""

    seeds: Sequence[Curve]
    """Curve of each run alone, including runs that are left out of the statistics."""
    curve: Curve | None
    """Curve of the runs that count; None if there is none."""
    n_counted: int
    """Number of runs that count."""


def line_style(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th setting: ten colours, then the same colours with other dashes."""
    return {"color": matplotlib.colormaps["tab10"](i % 10), "ls": STYLE[i // 10 % len(STYLE)]}


def published_style(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th published curve: greys, which no setting has."""
    return {"color": ("#555555", "#999999")[i // 3 % 2], "ls": STYLE[1:][i % 3]}


@dataclass(frozen=True)
class Curves:
    """Learning curves of the settings in an environment."""

    title: str
    xlabel: str
    """Quantity and unit of the x-axis."""
    ylabel: str
    """Quantity of the y-axis."""
    lines: Mapping[str, Lines]
    """Curves by the label of the setting."""
    styles: Mapping[str, dict[str, Any]]
    """Line style by label, of settings and of published curves."""
    published: Mapping[str, Array] = field(default_factory=dict)
    """Published x and values, (N, 2), by label; empty if all of a curve lies beyond the x-axis."""
    later: Mapping[str, str] = field(default_factory=dict)
    """First point of those curves, in words."""

    def legend(self) -> dict[str, str]:
        """Return the text of the legend by label."""
        texts = {label: f"{label}{_count(line)}" for label, line in self.lines.items()}
        return texts | {label: f"{label}{self.later.get(label, '')}" for label in self.published}


def _count(line: Lines) -> str:
    if line.curve is None:
        return ": no common steps" if line.n_counted else ": no finished run"
    n = len(line.curve.each)
    return f", {n} seed{'s' * (n != 1)}"


def draw_curves(curves: Curves) -> Figure:
    """Draw interquartile means with their intervals, or a single run, with each run as a thin line behind."""
    legend = {label: textwrap.fill(text, LETTERS) for label, text in curves.legend().items()}
    columns = 1 if max(map(len, legend.values())) > LETTERS // 2 else min(2, len(legend))
    n_rows = sum(text.count("\n") + 1 for text in legend.values()) / columns
    figure = Figure(figsize=(6.4, 4 + 0.2 * n_rows), layout="constrained")
    axes = figure.subplots()
    for label, line in curves.lines.items():
        style = curves.styles[label]
        for seed in line.seeds:
            marker = "." if len(seed.x) == 1 else ""
            axes.plot(seed.x, seed.each[0], marker=marker, alpha=0.35, lw=0.8, color=style["color"])
        _draw_mean(axes, line, legend[label], style)
    for label, points in curves.published.items():
        axes.plot(*np.reshape(points, (-1, 2)).T, lw=1, **curves.styles[label], label=legend[label])
    axes.set(title=curves.title, xlabel=curves.xlabel, ylabel=curves.ylabel, xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return figure


def _draw_mean(axes: Axes, line: Lines, label: str, style: dict[str, Any]) -> None:
    if line.curve is None:
        axes.plot([], [], **style, label=label)
        return
    x, each, value = line.curve
    axes.plot(x, value.point, marker="" if len(x) > 1 else "o", lw=2, **style, label=label)
    if len(each) > 1:
        axes.fill_between(x, value.low, value.high, color=style["color"], alpha=0.2, lw=0)


def draw_pairs(pairs: Sequence[Pair], title: str) -> Figure:
    """Draw probabilities of improvement with their intervals, one line per pair."""
    figure = Figure(figsize=(6.4, 1.4 + 0.5 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    for i, pair in enumerate(pairs):
        point, low, high = (float(part[0]) for part in pair.improvement)
        axes.plot([low, high], [i, i], color="#3366aa", lw=6, alpha=0.35, solid_capstyle="butt")
        axes.plot(point, i, "o", color="#3366aa")
    axes.axvline(0.5, color="#777777", lw=1, ls="--")
    axes.set(title=title, xlabel="probability that a run of the first setting is better", xlim=(-0.02, 1.02))
    axes.set_yticks(range(len(pairs)), [f"{pair.first}\nover {pair.second}" for pair in pairs], fontsize=8)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.grid(alpha=0.3, axis="x")
    return figure
