"""Draw what an offline W&B run recorded: `python -m tests.loggers.draw_wandb runs/NAME docs/images/wandb.png`.

The panels are grouped and ordered by the prefixes of their names, as a workspace of W&B does it; nothing else is meant
to look like W&B.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from layeredrl.loggers import STEP_COLUMN
from tests.loggers.wandb_reader import OfflineRun, read_offline_run

N_COLUMNS = 4


def draw(run: OfflineRun) -> Figure:
    """A row of panels or more for each group."""
    names = sorted({key for row in run.rows for key in row if "/" in key})
    prefixes = sorted({name.partition("/")[0] for name in names})
    groups = {prefix: [name for name in names if name.startswith(f"{prefix}/")] for prefix in prefixes}
    heights = [-(-len(group) // N_COLUMNS) for group in groups.values()]
    figure = Figure(figsize=(13, 2.3 * sum(heights)), layout="constrained")
    parts = np.ravel(figure.subfigures(len(groups), 1, height_ratios=heights))
    for (prefix, group), part in zip(groups.items(), parts, strict=True):
        part.suptitle(f"{prefix}  ({len(group)})", x=0.01, ha="left", fontweight="bold")
        panels = part.subplots(-(-len(group) // N_COLUMNS), N_COLUMNS, squeeze=False).ravel()
        for axis in panels[len(group) :]:
            axis.axis("off")
        for name, axis in zip(group, panels, strict=False):
            _panel(axis, name, [(row[STEP_COLUMN], row[name]) for row in run.rows if name in row], run.files)
    return figure


def _panel(axis: Axes, name: str, points: list[tuple[int, Any]], files: Path) -> None:
    axis.set_title(name, fontsize=9)
    steps, values = zip(*points, strict=True)
    if isinstance(values[-1], dict):
        with Image.open(files / values[-1]["path"]) as picture:
            axis.imshow(picture.convert("RGB"))
        axis.axis("off")
        return
    axis.plot(steps, [float(value) for value in values], ".-", lw=1, ms=3)
    axis.set_xlabel(STEP_COLUMN, fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)


def main() -> None:
    run, picture = map(Path, sys.argv[1:])
    draw(read_offline_run(run)).savefig(picture, dpi=80)


if __name__ == "__main__":
    main()
