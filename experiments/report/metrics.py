"""The reader of metrics.csv; it loads no torch."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.run.flags import did_you_mean
from layeredrl.loggers import STEP_COLUMN

SECONDS = "time/seconds"
CPU_SECONDS = "time/cpu_seconds"
RETURN = "env/episode_return"
SCORES = (RETURN, "env/success", "eval/episode_return", "eval/success")
"""Columns of metrics.csv that measure the performance of any agent; more is better."""


class Metrics(NamedTuple):
    """Content of a metrics.csv."""

    columns: dict[str, NDArray[np.float64]]
    """Environment steps and value of each metric, (N, 2), in the order of steps; finite values only."""
    n_steps: int
    """Largest number of environment steps in the file."""
    notes: list[str]
    """Remarks on what is missing or damaged."""


def require_metric(name: str, found: Iterable[str]) -> None:
    """Raise unless a metric is one of those that the runs have.

    Raises:
        ValueError: No run has it.
    """
    found = sorted(set(found))
    if name not in found:
        usual = f" (there are {', '.join(x for x in found if x in SCORES) or found[0]}, ...)" if found else ""
        hint = did_you_mean(name, found) or usual or "; nothing was logged yet"
        raise ValueError(f"no run has a metric {name!r}{hint}")


def _whole_lines(file: Iterable[str], damaged: list[str]) -> Iterator[str]:
    """Yield lines, but a last one without its end, which may lack digits; its number joins `damaged`."""
    for n, line in enumerate(file, 1):
        if line.endswith("\n"):
            yield line
        else:
            damaged.append(str(n))


def read_metrics(path: Path) -> Metrics:
    """Read every column by its name; damaged lines are left out, with a note."""
    points: dict[str, list[tuple[float, float]]] = {}
    damaged: list[str] = []
    notes, last = [], 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(_whole_lines(file, damaged))
            header = next(reader, [])
            for row in reader:
                try:
                    values = [float(cell) if cell else np.nan for cell in row]
                    cells = dict(zip(header, values, strict=True))  # a line that a killed process left is too short
                    step = cells.pop(STEP_COLUMN)
                    last = max(last, int(step))
                except (ValueError, KeyError):
                    damaged.append(str(reader.line_num))
                    continue
                for name, value in cells.items():
                    if np.isfinite(value):
                        points.setdefault(name, []).append((step, value))
    except FileNotFoundError:
        notes.append(f"there is no {path.name}: nothing was logged yet")
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read to its end: {error}")
    if damaged:
        more = ", ..." if len(damaged) > 5 else ""
        notes.append(f"{path.name} is damaged in line {', '.join(damaged[:5])}{more}; left out")
    columns = {name: np.array(rows) for name, rows in points.items()}
    ordered = {name: rows[np.argsort(rows[:, 0], kind="stable")] for name, rows in columns.items()}
    return Metrics(ordered, last, notes)
