"""Figures of the measures in `layeredrl.models.diagnostics`. Importing this needs matplotlib; the library does not."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator
from torch import Tensor

from layeredrl.models.diagnostics.measures import BAND_LEVEL, Disagreement, OneStep, OpenLoop

BLUE, ORANGE, GREY = "#3465a4", "#e07b39", "#888888"
MAX_DOTS = 2000  # more make a figure slow and no clearer
MAX_DIMS = 32  # more do not fit on a page, and latent dimensions are many and alike


def draw_predictions(report: OneStep, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Predicted against true change in one step, for each dimension of the state.

    The next state itself would lie on the diagonal for any model, because states change little in a step.

    Args:
        report: One-step predictions.
        names: Names of the S dimensions; "state i" by default.
        title: Title of the figure.
    """
    n_shown, title = shown_dims(report.change.shape[1], title)
    figure, panels, names = panel_grid(n_shown, names, title)
    change, predicted, std = (_numpy(x) for x in (report.change, report.predicted, report.std))
    some = np.linspace(0, len(change) - 1, min(len(change), MAX_DOTS)).astype(int)
    for i, axes in enumerate(panels):
        ends = [change[:, i].min(), change[:, i].max()]
        x, y, error = change[some, i], predicted[some, i], std[some, i]
        axes.errorbar(x, y, error, fmt=".", color=BLUE, ecolor=(ORANGE, 0.4), ms=3, elinewidth=0.6)
        axes.plot(ends, ends, color=GREY, lw=1, zorder=3)
        score = f"R² {_rounded(float(report.mixture.r2[i]))}" if report.varies[i] else "constant"
        axes.set_title(f"{names[i]}: {score}", fontsize=9)
    figure.supxlabel("true change in one step (units of the state)", fontsize=9)
    figure.supylabel("predicted change ± std (units of the state)", fontsize=9)
    return figure


def draw_calibration(report: OneStep, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Observed against nominal coverage of central intervals; below the diagonal the model is overconfident.

    Args:
        report: One-step predictions.
        names: Names of the S dimensions; "state i" by default.
        title: Title of the figure.
    """
    n_shown, title = shown_dims(report.change.shape[1], title)
    figure, panels, names = panel_grid(n_shown, names, title)
    levels = [0.0, *report.levels.tolist()]
    mixture, members = _numpy(report.mixture.coverage), _numpy(report.members.coverage)
    for i, axes in enumerate(panels):
        axes.plot([0, 1], [0, 1], color=GREY, lw=1)
        for m, member in enumerate(members):
            axes.plot(levels, [0, *member[:, i]], color=ORANGE, lw=0.8, label="members" if m == 0 else None)
        axes.plot(levels, [0, *mixture[:, i]], color=BLUE, marker=".", ms=4, lw=1.5, label="ensemble")
        spread = float(report.mixture.residual_std[i])
        axes.set_title(f"{names[i]}: std of residuals {_rounded(spread)}", fontsize=9)
        ticks = (0, 0.5, 1)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=ticks, yticks=ticks, aspect="equal")
        axes.set_xlabel("probability of the central interval", fontsize=8)
    _legend(figure, panels[:1])
    figure.supylabel("share of outcomes inside", fontsize=9)
    return figure


def draw_open_loop(report: OpenLoop, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Error of open-loop predictions against the horizon, beside the ensemble's own standard deviation.

    Args:
        report: Open-loop rollouts.
        names: Names of the S dimensions; "state i" by default.
        title: Title of the figure.
    """
    n_shown, title = shown_dims(report.rmse.shape[1], title)
    figure, panels, names = panel_grid(n_shown, names, title)
    rmse, members, band, epistemic, baseline, coverage = (
        _numpy(x)
        for x in (report.rmse, report.member_rmse, report.band, report.epistemic, report.baseline, report.coverage)
    )
    steps = np.arange(len(rmse))
    for i, axes in enumerate(panels):
        axes.fill_between(steps, band[:, i], color=ORANGE, alpha=0.25, lw=0, label="standard deviation of particles")
        axes.plot(steps, epistemic[:, i], color=ORANGE, lw=1, label="standard deviation of members' means")
        for m, member in enumerate(members):
            axes.plot(steps, member[:, i], color=BLUE, lw=0.6, alpha=0.4, label="error of members" if m == 0 else None)
        axes.plot(steps, rmse[:, i], color=BLUE, lw=1.8, label="error of the mean")
        # The baseline may be far above all else, and must not set the scale.
        highest = 1.15 * max(members[..., i].max(), band[:, i].max(), 1e-12)
        axes.plot(steps, baseline[:, i], color=GREY, lw=1, ls="--", label='error of "no change"')
        axes.set(xlim=(0, steps[-1]), ylim=(0, highest))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("environment steps ahead", fontsize=8)
        inside = f"{100 * BAND_LEVEL:g} % band holds {100 * float(coverage[-1, i]):.0f} %"
        axes.set_title(f"{names[i]}: {inside} at {steps[-1]}", fontsize=8)
    _legend(figure, panels[:1])
    figure.supylabel("root mean square (units of the state)", fontsize=9)
    return figure


def draw_disagreement(report: Disagreement, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Error against disagreement for each dimension, and histograms of the disagreement on and off the distribution.

    Args:
        report: Disagreement of the members.
        names: Names of the S dimensions; "state i" by default.
        title: Title of the figure.
    """
    n_shown, title = shown_dims(report.error.shape[1], title)
    names = [f"state {i}" for i in range(n_shown)] if names is None else names
    figure, (*panels, last), _ = panel_grid(n_shown + 1, names, title)
    disagreement, error = _numpy(report.epistemic_std), _numpy(report.error)
    some = np.linspace(0, len(error) - 1, min(len(error), MAX_DOTS)).astype(int)
    for i, axes in enumerate(panels):
        axes.plot(disagreement[some, i], error[some, i], ".", color=BLUE, ms=2, alpha=0.3)
        order = np.argsort(disagreement[:, i])
        groups = np.array_split(order, min(10, len(order)))
        centers = [disagreement[group, i].mean() for group in groups]
        typical = [np.sqrt(np.square(error[group, i]).mean()) for group in groups]
        axes.plot(
            centers,
            typical,
            color=ORANGE,
            marker="o",
            ms=3,
            lw=1.2,
            label="root mean squared error of each tenth of the rows",
        )
        axes.set_title(f"{names[i]}: rank correlation {float(report.rank_correlation[i]):.2f}", fontsize=8)
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.set_xlabel("std of members' means (state units)", fontsize=8)
        axes.set_ylabel("absolute error (state units)", fontsize=8)
    scores = [(report.score, BLUE, "held out")]
    if report.off_score is not None:
        scores.append((report.off_score, ORANGE, "off the distribution"))
    tiny = max(1e-12, 1e-3 * float(report.score.max()))
    values = [np.log10(np.maximum(_numpy(score), tiny)) for score, *_ in scores]
    edges = np.histogram_bin_edges(np.concatenate(values), 40)
    for value, (_, color, label) in zip(values, scores, strict=True):
        last.hist(value, edges, density=True, color=color, alpha=0.6, label=label)
    last.set_title(f"AUROC {report.auroc:.3f}", fontsize=8)
    last.set_xlabel("log10 (disagreement / std of change)", fontsize=8)
    last.set_ylabel("density", fontsize=8)
    _legend(figure, [panels[0], last])
    return figure


def shown_dims(n_dims: int, title: str) -> tuple[int, str]:
    """Number of dimensions that get a panel, the first ones, and the title, which says so where not all do."""
    if n_dims <= MAX_DIMS:
        return n_dims, title
    return MAX_DIMS, f"{title}\nthe first {MAX_DIMS} of {n_dims} dimensions of the state".lstrip("\n")


def panel_grid(n: int, names: Sequence[str] | None, title: str) -> tuple[Figure, list[Any], Sequence[str]]:
    """Make a figure with n panels, at most four in a row.

    Returns:
        The figure, its panels (axes of matplotlib), and their names, "state i" by default.
    """
    columns = min(n, 4)
    rows = -(-n // columns)
    figure = Figure((max(2.7 * columns, 4.0), 2.8 * rows + 0.6), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels:
        axes.tick_params(labelsize=7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], min_n_ticks=3))  # few ticks with few digits
            axis.set_major_formatter(_ShortLabels())
    for axes in panels[n:]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure, panels[:n], [f"state {i}" for i in range(n)] if names is None else names


class _ShortLabels(Formatter):
    """Tick labels such as 0.02 and 5e-7: only as many digits as needed, and no common factor beside the axis."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}"

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        ticks = np.unique(values)
        step = float(np.diff(ticks).min()) if len(ticks) > 1 else float(np.abs(ticks).max(initial=0)) or 1.0
        return [_short(x, step, fixed=1e-3 <= np.abs(ticks).max() < 1e5) for x in values]


def _short(x: float, step: float, *, fixed: bool) -> str:
    """Format a number with the digits needed for ticks at a distance of `step`, as a power of ten unless `fixed`."""
    if abs(x) <= 1e-6 * step:
        return "0"
    place = math.floor(math.log10(step) + 1e-6)
    if fixed:
        return f"{x:.{max(0, -place)}f}"
    mantissa, exponent = f"{x:.{max(0, math.floor(math.log10(abs(x)) + 1e-6) - place)}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def _rounded(x: float) -> str:
    """Format a score with three decimals, or as a power of ten if it is large."""
    return f"{x:.3f}" if abs(x) < 100 or not math.isfinite(x) else f"{x:.0e}"


def _legend(figure: Figure, panels: Sequence[Any]) -> None:
    """One legend below all panels, with the labels of those given."""
    entries = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=7)


def _numpy(x: Tensor) -> Any:
    return x.detach().cpu().numpy()
