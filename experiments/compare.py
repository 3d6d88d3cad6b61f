"""Compare two runs: `python -m experiments.compare runs/a runs/b`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from experiments.report.comparison import print_comparison, read
from experiments.report.metrics import RETURN, require_metric
from experiments.run.command_line import command, command_line, fail, program


@dataclass(frozen=True)
class CompareConfig:
    """Compare the settings, code and results of two runs."""

    a: tyro.conf.Positional[Path]
    """Folder of a run."""
    b: tyro.conf.Positional[Path]
    """Folder of another run."""
    metric: str = RETURN
    """Column of metrics.csv to compare."""


@command()
def main() -> None:
    """Read both runs and print tables of their differences."""
    try:
        config: CompareConfig = command_line(CompareConfig, sys.argv[1:], prog=program("compare"))
        a, b = read(config.a), read(config.b)
        if a.metrics or b.metrics:
            require_metric(config.metric, [*a.metrics, *b.metrics])
    except (ValueError, OSError) as error:
        fail(error)
    print_comparison(a, b, config.metric, Console())


if __name__ == "__main__":
    main()
