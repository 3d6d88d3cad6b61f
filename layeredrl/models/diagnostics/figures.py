"""Pictures of what `layeredrl.models.diagnostics` measured. Importing this needs matplotlib; the library does not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from layeredrl.models.diagnostics.measures import BAND_LEVEL, Disagreement, OneStep, OpenLoop

BLUE, ORANGE, GREY = "#3465a4", "#e07b39", "#888888"
MAX_DOTS = 2000  # more make a picture slow and no clearer


def draw_predictions(report: OneStep, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """The change that the model predicts against the change that happened, for each dimension of the state.

    The next state itself would lie on the diagonal for any model: states change little in a step.

    Args:
        report: What was measured.
        names: Of the dimensions.
        title: Above the picture.
    """
    figure, panels, names = panel_grid(report.change.shape[1], names, title)
    change, predicted, std = (_numpy(x) for x in (report.change, report.predicted, report.std))
    some = np.linspace(0, len(change) - 1, min(len(change), MAX_DOTS)).astype(int)
    for i, axes in enumerate(panels):
        ends = [change[:, i].min(), change[:, i].max()]
        axes.errorbar(
            change[some, i], predicted[some, i], std[some, i], fmt=".", color=BLUE, ecolor=ORANGE, ms=3, elinewidth=0.6
        )
        axes.plot(ends, ends, color=GREY, lw=1, zorder=3)
        axes.set_title(f"{names[i]}: R² {float(report.mixture.r2[i]):.4f}", fontsize=9)
    figure.supxlabel("true change in one step", fontsize=9)
    figure.supylabel("predicted change ± std", fontsize=9)
    return figure


def draw_calibration(report: OneStep, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Observed against expected coverage of central intervals; below the diagonal the model is overconfident.

    Args:
        report: What was measured.
        names: Of the dimensions.
        title: Above the picture.
    """
    figure, panels, names = panel_grid(report.change.shape[1], names, title)
    levels = [0.0, *report.levels.tolist()]
    mixture, members = _numpy(report.mixture.coverage), _numpy(report.members.coverage)
    for i, axes in enumerate(panels):
        axes.plot([0, 1], [0, 1], color=GREY, lw=1)
        for m, member in enumerate(members):
            axes.plot(levels, [0, *member[:, i]], color=ORANGE, lw=0.8, label="members" if m == 0 else None)
        axes.plot(levels, [0, *mixture[:, i]], color=BLUE, marker=".", ms=4, lw=1.5, label="ensemble")
        spread = float(report.mixture.residual_std[i])
        axes.set_title(f"{names[i]}: std of residuals {spread:.2f}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panels[0].legend(fontsize=7)
    figure.supxlabel("probability of the central interval", fontsize=9)
    figure.supylabel("share of outcomes inside", fontsize=9)
    return figure


def draw_open_loop(report: OpenLoop, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Error against horizon, with the spread that the ensemble itself expects.

    Args:
        report: What was measured.
        names: Of the dimensions.
        title: Above the picture.
    """
    figure, panels, names = panel_grid(report.rmse.shape[1], names, title)
    rmse, members, band, epistemic, baseline, coverage = (
        _numpy(x)
        for x in (report.rmse, report.member_rmse, report.band, report.epistemic, report.baseline, report.coverage)
    )
    steps = np.arange(len(rmse))
    for i, axes in enumerate(panels):
        axes.fill_between(steps, band[:, i], color=ORANGE, alpha=0.25, lw=0, label="std of particles")
        axes.plot(steps, epistemic[:, i], color=ORANGE, lw=1, label="std of members' means")
        for m, member in enumerate(members):
            axes.plot(steps, member[:, i], color=BLUE, lw=0.6, alpha=0.4, label="error of members" if m == 0 else None)
        axes.plot(steps, rmse[:, i], color=BLUE, lw=1.8, label="error of the mean")
        # A state that hardly moves would be flattened by the baseline of one that runs away.
        highest = 1.15 * max(members[..., i].max(), band[:, i].max(), 1e-12)
        axes.plot(steps, baseline[:, i], color=GREY, lw=1, ls="--", label='error of "no change"')
        axes.set(xlim=(0, steps[-1]), ylim=(0, highest))
        inside = f"{100 * BAND_LEVEL:g} % band holds {100 * float(coverage[-1, i]):.0f} %"
        axes.set_title(f"{names[i]}: {inside} at {steps[-1]}", fontsize=8)
    panels[0].legend(fontsize=6, loc="upper left")
    figure.supxlabel("steps ahead, open loop", fontsize=9)
    figure.supylabel("root mean square, units of the state", fontsize=9)
    return figure


def draw_disagreement(report: Disagreement, names: Sequence[str] | None = None, *, title: str = "") -> Figure:
    """Error against disagreement for each dimension; and the disagreement on familiar and unfamiliar data.

    Args:
        report: What was measured.
        names: Of the dimensions.
        title: Above the picture.
    """
    n_dims = report.error.shape[1]
    names = [f"state {i}" for i in range(n_dims)] if names is None else names
    figure, (*panels, last), _ = panel_grid(n_dims + 1, [*names, ""], title)
    disagreement, error = _numpy(report.epistemic_std), _numpy(report.error)
    some = np.linspace(0, len(error) - 1, min(len(error), MAX_DOTS)).astype(int)
    for i, axes in enumerate(panels):
        axes.plot(disagreement[some, i], error[some, i], ".", color=BLUE, ms=2, alpha=0.3)
        order = np.argsort(disagreement[:, i])
        groups = np.array_split(order, min(10, len(order)))
        centers = [disagreement[group, i].mean() for group in groups]
        typical = [np.sqrt(np.square(error[group, i]).mean()) for group in groups]
        axes.plot(centers, typical, color=ORANGE, marker="o", ms=3, lw=1.2, label="rms error of tenths")
        axes.set_title(f"{names[i]}: rank correlation {float(report.rank_correlation[i]):.2f}", fontsize=8)
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.set_xlabel("std of members' means", fontsize=8)
        axes.set_ylabel("absolute error", fontsize=8)
    panels[0].legend(fontsize=7)
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
    last.legend(fontsize=7)
    return figure


def panel_grid(n: int, names: Sequence[str] | None, title: str) -> tuple[Figure, list[Any], Sequence[str]]:
    """A figure with n panels, at most four in a row, the panels, and their names ("state i" by default)."""
    columns = min(n, 4)
    rows = -(-n // columns)
    figure = Figure((max(2.7 * columns, 4.0), 2.7 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels:
        axes.tick_params(labelsize=7)
    for axes in panels[n:]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure, panels[:n], [f"state {i}" for i in range(n)] if names is None else names


def _numpy(x: Tensor) -> Any:
    return x.detach().cpu().numpy()
