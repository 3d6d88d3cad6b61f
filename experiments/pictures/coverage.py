"""Figures of which states an agent has visited, and how often."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from envs.maze2d_layouts import Layout
from experiments.pictures.states import label_states
from layeredrl.models.diagnostics.figures import BLUE


def draw_coverage(visited: NDArray[np.float32], names: Sequence[str], title: str, layout: Layout | None) -> Figure:
    """Draw how often states were visited: a map of the first two dimensions, or a histogram of the only one.

    Args:
        visited: States, (N, S).
        names: Names of the state's dimensions, S of them.
        title: Title of the figure.
        layout: Layout of the maze in which states are positions; None if they are no positions.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axis = figure.subplots()
    if visited.shape[1] == 1:
        axis.hist(visited[:, 0], bins=80, color=BLUE)
        axis.set(xlabel=f"{names[0]} (environment's units)", ylabel="number of visits")
    else:
        label_states(axis, names, layout)
        extent = None if layout is None else [(0, layout.size[0]), (0, layout.size[1])]
        *_, cells = axis.hist2d(*visited[:, :2].T, bins=80, range=extent, cmin=1, norm=LogNorm())
        bar = figure.colorbar(cells, ax=axis, shrink=0.8, ticks=LogLocator(subs=(1, 2, 5)), format="%d")
        bar.set_label(f"number of visits, of {len(visited)} states")
        bar.minorticks_off()
    axis.set_title(title, fontsize=10)
    return figure
