"""The learning curve of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from layeredrl.models.diagnostics.figures import BLUE, ORANGE


def draw_learning_curve(path: Path, episodes: Sequence[tuple[int, float]], title: str) -> None:
    """Draw the returns of the training episodes over environment steps.

    Args:
        path: File of the PNG.
        episodes: Pairs (total environment steps at its end, return), one for each episode.
        title: Title of the figure.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    steps, returns = [n for n, _ in episodes], [r for _, r in episodes]
    many = len(episodes) > 50
    axes.plot(steps, returns, ".", color=BLUE, alpha=0.3 if many else 1.0, label="episode")
    if many:
        window = len(episodes) // 25
        mean = np.convolve(returns, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], mean, color=BLUE, label=f"mean of {window} episodes")
    else:
        axes.plot(steps, returns, color=BLUE, alpha=0.4)
    if returns:
        axes.step(steps, np.maximum.accumulate(returns), where="post", color=ORANGE, lw=1, label="best so far")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.set(xlabel="total environment steps", ylabel="episode return (sum of rewards)", title=title, xlim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
