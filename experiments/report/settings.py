"""Tables of the settings in which runs differ."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.report.runs import OWN, Run, written
from experiments.report.study import Study, slug
from experiments.report.tables import Cell, Table


def settings_tables(study: Study) -> list[Table]:
    """Return the settings that runs share and differ in, then, folded, those of single settings.

    Settings of one agent alone, such as those of its planner, would fill a table of differences and compare nothing.
    """
    tables: list[Table] = []
    for env in study.environments:
        kinds = {group.label: group.runs for group in study.of(env)}
        table = Table(f"settings-{slug(env)}", f"{env}: settings that differ", ("setting", *kinds), _rows(kinds))
        same = [i for i, other in enumerate(tables) if (other.columns, other.rows) == (table.columns, table.rows)]
        if same:  # one table for all environments in which they differ alike
            tables[same[0]] = replace(tables[same[0]], title=f"{env}, {tables[same[0]].title}")
        else:
            tables.append(table)
    by_label = {label: [g for g in study.groups if g.label == label] for label in study.styles()}
    shared = _shared({label: [run for g in groups for run in g.runs] for label, groups in by_label.items()})
    for label, groups in by_label.items():
        kinds = {group.env: group.runs for group in groups}
        title = f"{label}: settings that differ between environments"
        rows = _rows(kinds)
        tables.append(Table(f"settings-{slug(label)}", title, ("setting", *kinds), rows, folded=True))
        runs, differing = [run for group in groups for run in group.runs], {row[0] for row in rows}
        own = sorted({key for run in runs for key in run.settings} - OWN - shared - differing - {"env"})
        title = f"{label}: settings that not every agent has ({len(own)})"
        values: list[list[Cell]] = [[key, _values(runs, key)] for key in own]
        tables.append(Table(f"settings-own-{slug(label)}", title, ("setting", "value"), values, folded=True))
    return tables


def _shared(kinds: Mapping[str, Sequence[Run]]) -> set[str]:
    """Return the settings that all kinds of runs have."""
    each = [{key for run in runs for key in run.settings} for runs in kinds.values()]
    return set.intersection(*each) if each else set()


def _rows(kinds: Mapping[str, Sequence[Run]]) -> list[list[Cell]]:
    """Return one row for each setting that at least two kinds of runs have, with different values."""
    rows: list[list[Cell]] = []
    keys = sorted({key for runs in kinds.values() for run in runs for key in run.settings} - OWN - {"env"})
    for key in keys:
        cells = {label: _values(runs, key) for label, runs in kinds.items()}
        having = [cells[label] for label, runs in kinds.items() if any(key in run.settings for run in runs)]
        if len(set(having)) > 1 or any(" / " in cell and _mixed(kinds[label], key) for label, cell in cells.items()):
            rows.append([key, *cells.values()])
    return rows


def _mixed(runs: Sequence[Run], key: str) -> bool:
    return len({written(run.settings.get(key)) for run in runs}) > 1


def _values(runs: Sequence[Run], key: str) -> str:
    found = dict.fromkeys(written(run.settings[key]) if key in run.settings else "—" for run in runs)
    return " / ".join(found)
