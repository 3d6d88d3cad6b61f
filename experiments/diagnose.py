"""Measure how good a run's world model is: `python -m experiments.diagnose runs/NAME` prints numbers, draws figures."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import print as show
from rich.table import Table

from experiments.pictures.diagnosis import diagnose
from experiments.run.command_line import FAULT, command, command_line, fail, program
from experiments.run.folder import DIAGNOSIS, write_whole
from experiments.run.held_out import world_model_of
from experiments.run.loading import load
from layeredrl.checks import require_counts
from layeredrl.environments import UnknownEnvironmentError
from layeredrl.faults import Fault


@dataclass(frozen=True)
class DiagnoseConfig:
    """Measure a run's world model on random actions and on the agent's own.

    Data off the distribution are states moved 3 times as far from their mean.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the run; the figures are written there."""
    steps: int = 1000
    """Environment steps to collect with each policy."""
    horizon: int = 20
    """Steps of open-loop rollouts; at most the length of the longest episode is used."""
    seed: int = 2_000_000
    """Random seed of the data; the default is far from the seeds of training and evaluation."""
    device: str | None = None
    """Device of the model: cpu, cuda, cuda:1; the one it was trained on by default."""

    def __post_init__(self) -> None:
        require_counts(self, steps=2, horizon=1, seed=0)


@command()
def main() -> None:
    """Load the run, collect data, measure, draw, and print a table of the metrics."""
    try:
        args: DiagnoseConfig = command_line(DiagnoseConfig, sys.argv[1:], prog=program("diagnose"))
        config, agent, n_trained = load(args.run, device=args.device)
        world = world_model_of(agent)
        if world is None:
            raise ValueError(f"{args.run} holds {config.agent}, which does not plan the environment's own actions")
    except Fault as error:
        fail(error, FAULT)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    columns: dict[str, dict[str, float]] = {}
    try:
        for policy, actor in (("random", None), ("agent", agent)):
            env, n_steps = config.environment, args.steps
            found = diagnose(world, env, actor, n_steps=n_steps, horizon=args.horizon, seed=args.seed)
            columns[policy] = {"n_total_env_steps": n_trained, **found.metrics()}
            found.draw(args.run, policy, title=f"{config.agent} on {config.env}, {policy} actions")
        numbers = {
            policy: {key: None if math.isnan(value) else value for key, value in column.items()}  # JSON has no NaN
            for policy, column in columns.items()
        }
        write_whole(args.run / DIAGNOSIS, json.dumps(numbers, indent=2) + "\n")
    except (Fault, UnknownEnvironmentError, OSError) as error:
        fail(error, FAULT)
    table = Table(
        "metric", *columns, caption=f"{DIAGNOSIS} and figures, model_*.png, in the run's folder", caption_justify="left"
    )
    for key in columns["random"] | columns["agent"]:
        table.add_row(key, *(_shown(key, column.get(key)) for column in columns.values()))
    show(table)


def _shown(key: str, value: float | None) -> str:
    """A number of the table; R² of a dimension that does not vary is NaN."""
    if value is None:
        return ""
    return "constant" if key.startswith("model/r2") and math.isnan(value) else f"{value:.4g}"


if __name__ == "__main__":
    main()
