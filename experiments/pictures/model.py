"""Predictions of a run's world model against what happened."""

from collections.abc import Sequence
from pathlib import Path

from tianshou.data import Batch

from experiments.run.held_out import transitions
from layeredrl.models.diagnostics.figures import draw_predictions
from layeredrl.models.diagnostics.measures import evaluate_one_step
from layeredrl.world_model import WorldModel


def draw_model(path: Path, world: WorldModel, data: Batch, names: Sequence[str], title: str) -> dict[str, float]:
    """Draw the predicted change against the true change in one step, for each dimension of the state.

    Next states themselves would lie on the diagonal for any model, because states change little in a step.

    Args:
        path: File of the PNG.
        world: The world model.
        data: Transitions with `obs` (N, O), `act` (N, A) and `obs_next` (N, O).
        names: Names of the state's dimensions, S of them.
        title: Title of the figure.

    Returns:
        Share of the variance of the change that the model explains (R²), by name of the dimension.
    """
    report = evaluate_one_step(world.dynamics, transitions(data, world))
    draw_predictions(report, names, title=title).savefig(path, dpi=120)
    scores = zip(names, report.mixture.r2.tolist(), report.varies.tolist(), strict=True)
    return {name: r2 for name, r2, varies in scores if varies}
