"""Draw a plan and what then happened: `python -m experiments.plot_plan runs/NAME --step 50`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.pictures.plans import compare, draw_comparison
from experiments.run.command_line import FAULT, command, command_line, fail, program
from experiments.run.loading import load
from layeredrl.checks import require_counts
from layeredrl.faults import Fault
from layeredrl.levels import PlannerLevel
from layeredrl.loggers import closing_table


@dataclass(frozen=True)
class PlotPlanConfig:
    """Draw the particles that a plan was chosen by over what happens when it is carried out."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    step: int = 0
    """Environment step of the episode at which the plan is made."""
    seed: int = 1_000_000
    """Random seed of the episode."""
    particles: int = 20
    """Particles of each member, rounded up to a multiple of the particles that the model follows for each row."""
    output: Path | None = None
    """File of the figure; plan.png in the run's folder by default."""
    device: str | None = None
    """Device of the agent: cpu, cuda, cuda:1; the one it was trained on by default."""

    def __post_init__(self) -> None:
        require_counts(self, step=0, seed=0, particles=1)


@command()
def main() -> None:
    """Load the run, make a plan, carry it out, draw both, and print their returns."""
    try:
        args: PlotPlanConfig = command_line(PlotPlanConfig, sys.argv[1:], prog=program("plot_plan"))
        config, agent, _ = load(args.run, device=args.device)
        level = agent.levels[0]
        if not isinstance(level, PlannerLevel) or len(agent.levels) != 1:
            raise ValueError(f"{args.run} holds {config.agent}, which does not plan the environment's own actions")
        found = compare(config.environment, agent, level, step=args.step, seed=args.seed, n_particles=args.particles)
    except Fault as error:
        fail(error, FAULT)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    path = args.output or args.run / "plan.png"
    title = f"{config.agent} on {config.env}: the plan at step {args.step}, {found.horizon} steps ahead"
    try:
        draw_comparison(found, level, title).savefig(path, dpi=120)
    except OSError as error:
        fail(error, FAULT)
    closing_table({**found.rows(), "figure": str(path)}, title="Plan")


if __name__ == "__main__":
    main()
