"""Draw what the skills of a run do: `python -m experiments.plot_skills runs/NAME`.

The same skills are carried out from the same starts, without exploration. The figure shows where they led and where
the world model predicted their ends; the table says how far apart they end, and how predictably.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from experiments.pictures.fans import FanSettings, draw_fan, make_fan
from experiments.pictures.mazes import layout_of
from experiments.run.command_line import FAULT, command, command_line, fail, program
from experiments.run.loading import load
from layeredrl.faults import Fault
from layeredrl.loggers import closing_table


@dataclass(frozen=True)
class PlotSkillsConfig(FanSettings):
    """Draw what the skills of a run do."""

    run: tyro.conf.Positional[Path] = field(kw_only=True)
    """Folder of the run; the figure is written there."""


@command()
def main() -> None:
    """Load the run, carry out its skills, draw them, and print how diverse and how predictable they are."""
    try:
        args: PlotSkillsConfig = command_line(PlotSkillsConfig, sys.argv[1:], prog=program("plot_skills"))
        config, agent, n_steps = load(args.run)
        fan = make_fan(config, agent, args)
    except Fault as error:
        fail(error, FAULT)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    path = args.run / "skills.png"
    title = f"{config.agent} on {config.env}, {n_steps} environment steps"
    try:
        draw_fan(fan, title, layout_of(config.environment)).savefig(path, dpi=120)
    except OSError as error:
        fail(error, FAULT)
    rows = {name: f"{value:.3f}" for name, value in fan.numbers().items()}
    closing_table({**rows, "picture": str(path)}, title="Skills")


if __name__ == "__main__":
    main()
