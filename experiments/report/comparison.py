"""Differences between two runs: settings, code, results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.report.metrics import CPU_SECONDS, SCORES, SECONDS
from experiments.report.runs import Run, find_runs, written

FINAL_SHARE = 0.1
"""Share of a run's steps, at its end, over which its final performance is averaged; the same as in a report."""


def read(path: Path) -> Run:
    """Read the only run in a folder.

    Raises:
        ValueError: The folder holds no run, or several.
    """
    runs = find_runs([path])
    if len(runs) > 1:
        raise ValueError(f"{path} holds {len(runs)} runs, expected the folder of one")
    return runs[0]


def changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the entries that differ, as text; a dash for a missing one."""
    keys = sorted({*a, *b})
    pairs = {key: tuple(written(side[key]) if key in side else "—" for side in (a, b)) for key in keys}
    return {key: (first, second) for key, (first, second) in pairs.items() if first != second}


def results(run: Run, metric: str) -> dict[str, float | None]:
    """Return the results of a run by name; None where it has none."""
    points = run.metrics.get(metric)

    def last(name: str) -> float | None:
        return float(run.metrics[name][-1, 1]) if name in run.metrics else None

    found: dict[str, float | None] = {
        "environment steps": float(run.n_steps),
        "planned steps": float(run.n_planned) if run.readable else None,
        f"{metric}, entries": None if points is None else float(len(points)),
        f"{metric}, mean of the last tenth": run.final(metric, FINAL_SHARE),
        f"{metric}, last": last(metric),
        f"{metric}, best": None if points is None else float(points[:, 1].max()),
    }
    found |= {f"{name}, mean of the last tenth": run.final(name, FINAL_SHARE) for name in SCORES if name != metric}
    return found | {"wall time, seconds": last(SECONDS), "CPU time, seconds": last(CPU_SECONDS)}


def print_comparison(a: Run, b: Run, metric: str, console: Console) -> None:
    """Print tables of the differences."""
    _print(console, "Settings", changed(a.settings, b.settings), a, b)
    if a.code or b.code:
        _print(console, "Code", changed(a.code, b.code), a, b)
    else:
        console.print("Code: not recorded by these runs")
    outcome = _table("Results", a, b, "difference")
    for (name, first), second in zip(results(a, metric).items(), results(b, metric).values(), strict=True):
        if first is not None or second is not None:
            gap = "" if first is None or second is None else f"{second - first:+.6g}"
            outcome.add_row(Text(name), *("—" if value is None else f"{value:.6g}" for value in (first, second)), gap)
    console.print(outcome)
    if a.notes or b.notes:
        notes = _table("Notes", a, b)
        notes.add_row("", Text("\n".join(a.notes)), Text("\n".join(b.notes)))
        console.print(notes)


def _print(console: Console, title: str, rows: Mapping[str, tuple[str, str]], a: Run, b: Run) -> None:
    if not rows:
        console.print(f"{title}: the same")
        return
    table = _table(f"{title} that differ", a, b)
    for name, values in rows.items():
        table.add_row(Text(name), *(Text(value, overflow="fold") for value in values))
    console.print(table)


def _table(title: str, a: Run, b: Run, *more: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("", *_names(a, b), *more):
        table.add_column(Text(name, overflow="fold"))  # Text: brackets in a name are no markup
    return table


def _names(a: Run, b: Run) -> tuple[str, str]:
    """Return the names of the folders; their whole paths if the names are the same."""
    return (a.name, b.name) if a.name != b.name else (str(a.path), str(b.path))
