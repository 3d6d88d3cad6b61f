"""Figures of a report."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.report.statistics import Curve, Pair

STYLE = ("-", "--", "-.", ":")


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


def draw_curves(
    lines: Mapping[str, Lines], styles: Mapping[str, dict[str, Any]], *, title: str, xlabel: str, ylabel: str
) -> Figure:
    """Draw interquartile means with their intervals, or a single run, with each run as a thin line behind.

    Args:
        lines: Curves by the label of the setting.
        styles: Line style by the label of the setting.
        title: Title of the figure.
        xlabel: Quantity and unit of the x-axis.
        ylabel: Quantity of the y-axis.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, line in lines.items():
        style = styles[label]
        for seed in line.seeds:
            marker = "." if len(seed.x) == 1 else ""
            axes.plot(seed.x, seed.each[0], marker=marker, alpha=0.35, lw=0.8, color=style["color"])
        _draw_mean(axes, line, label, style)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(0, None))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(2, len(lines)), fontsize=9, frameon=False)
    return figure


def _draw_mean(axes: Axes, line: Lines, label: str, style: dict[str, Any]) -> None:
    if line.curve is None:
        reason = "no common steps" if line.n_counted else "no finished run"
        axes.plot([], [], **style, label=f"{label}: {reason}")
        return
    x, each, value = line.curve
    n = len(each)
    axes.plot(x, value.point, marker="" if len(x) > 1 else "o", lw=2, **style, label=f"{label}, {_seeds(n)}")
    if n > 1:
        axes.fill_between(x, value.low, value.high, color=style["color"], alpha=0.2, lw=0)


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n != 1)}"


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
