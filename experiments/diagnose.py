"""How good is a run's world model? `python -m experiments.diagnose runs/NAME` prints numbers, draws figures."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich import print as show
from rich.table import Table

from experiments.evaluate import EvaluateConfig, load
from experiments.pictures.of_a_run import world_model_of
from experiments.run.command_line import command_line, fail
from experiments.run.held_out import collect, displaced, longest_episode, trajectories, transitions
from experiments.run.parts import DIAGNOSIS, write_whole
from layeredrl.checks import require_counts
from layeredrl.models.diagnostics.figures import draw_calibration, draw_disagreement, draw_open_loop, draw_predictions
from layeredrl.models.diagnostics.measures import evaluate_disagreement, evaluate_one_step, evaluate_open_loop


@dataclass(frozen=True)
class DiagnoseConfig:
    """Judge a run's world model by random and the agent's own actions; off the data: states 3 times as far out."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; the figures go there."""
    steps: int = 1000
    """Environment steps to collect with each policy."""
    horizon: int = 20
    """Of open-loop rollouts; the longest episode's length, if that is shorter."""
    seed: int = 2_000_000
    """Of the data; far from those of training and evaluation."""
    device: str | None = None
    """Where the model computes; where it was trained by default."""

    def __post_init__(self) -> None:
        require_counts(self, steps=2, horizon=1, seed=0)


def main() -> None:
    """Load, collect, measure, tell, draw."""
    try:
        args = command_line(DiagnoseConfig, sys.argv[1:], prog="python -m experiments.diagnose")
        config, agent, n_trained = load(EvaluateConfig(args.run, device=args.device))
        world = world_model_of(agent)
        if world is None:
            raise ValueError(f"{args.run} holds {config.agent}, which does not plan the environment's own actions")
    except (ValueError, TypeError) as error:
        fail(error)
    columns: dict[str, dict[str, float]] = {}
    for policy, actor in (("random", None), ("agent", agent)):
        data, model = collect(config.env, actor, n_steps=args.steps, seed=args.seed), world.dynamics
        rows, pieces = transitions(data, world), trajectories(data, min(args.horizon, longest_episode(data)), world)
        one_step, disagreement = evaluate_one_step(model, rows), evaluate_disagreement(model, rows, displaced(rows))
        open_loop = evaluate_open_loop(model, pieces, generator=torch.Generator(model.device).manual_seed(args.seed))
        metrics = one_step.metrics() | open_loop.metrics() | disagreement.metrics()
        told = {key: value for key, value in metrics.items() if "/member_" not in key}
        columns[policy] = {"n_total_env_steps": n_trained, **told}
        title = f"{config.agent} on {config.env}, {policy} actions"
        draw_predictions(one_step, title=title).savefig(args.run / f"model_predictions_{policy}.png", dpi=120)
        draw_calibration(one_step, title=title).savefig(args.run / f"model_calibration_{policy}.png", dpi=120)
        draw_open_loop(open_loop, title=title).savefig(args.run / f"model_open_loop_{policy}.png", dpi=120)
        draw_disagreement(disagreement, title=title).savefig(args.run / f"model_disagreement_{policy}.png", dpi=120)
    write_whole(args.run / DIAGNOSIS, json.dumps(columns, indent=2) + "\n")
    table = Table(
        "number", *columns, caption=f"{DIAGNOSIS} and figures, model_*.png, in the run's folder", caption_justify="left"
    )
    for key in columns["random"] | columns["agent"]:
        table.add_row(key, *(_shown(key, column.get(key)) for column in columns.values()))
    show(table)


def _shown(key: str, value: float | None) -> str:
    """A number of the table; R² of a dimension that does not vary is NaN."""
    if value is None:
        return ""
    return "constant" if key.startswith("model/r2/state_") and math.isnan(value) else f"{value:.4g}"


if __name__ == "__main__":
    main()
