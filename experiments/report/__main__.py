"""Report on runs: `python -m experiments.report runs/a runs/b ... --output report.html`.

Writes one HTML page that opens from disk; beside it its tables as Markdown and CSV, and its figures as PNG and PDF.
"""

import html
import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from matplotlib.figure import Figure

from experiments.report.chart import HINT, chart_html
from experiments.report.figures import draw_curves
from experiments.report.metrics import RETURN, require_metric
from experiments.report.overview import overview_table, published_table, title_of
from experiments.report.page import figure_html, page, pictures_html, run_html, runs_table
from experiments.report.runs import find_runs, group_runs
from experiments.report.settings import settings_tables
from experiments.report.statistics import compare_pairs
from experiments.report.study import (
    Study,
    Target,
    final_table,
    learning_curves,
    overall_table,
    pairs_figure,
    pairs_table,
    reached_table,
    slug,
)
from experiments.report.tables import Table, notes_html, one_line
from experiments.run.command_line import command, command_line, fail, program
from experiments.run.flags import did_you_mean
from experiments.run.folder import write_whole
from layeredrl.checks import require_count

HOW = (
    "Runs of one setting have the same settings except for the seed, the device and others that do not change what is "
    "learned; --group-by makes larger groups. Runs that are not finished are left out unless --unfinished is given.",
    "Curves: up to 40 bins of equal width reach from 0 to the end of the shortest run of a setting. A run's value in a "
    "bin is the mean of its entries there; bins without entries are interpolated linearly. The thick line is the "
    "interquartile mean of the runs, the band its interval at each point; thin lines are single runs, binned alone.",
    "Wall time depends on the machine and on its load: compare it only between runs made side by side.",
    "Final performance of a run: the mean of the metric over the last tenth of its environment steps (--final-share), "
    "or the last value if there is none in them.",
    "First step at which a return was reached (--reached): the step of the first entry of the metric that is at least "
    "the return, or of the last of several such entries in a row (--in-a-row). A run that never reached it counts as "
    "later than its last step, in the median too.",
    "IQM: interquartile mean, without the lowest and the highest quarter of the runs (rounded down). Intervals: 95 "
    "percent percentile intervals of a stratified bootstrap of the runs with 2000 resamples, by rliable.",
    "P(first better): share of pairs of a run of the first setting and a run of the second in which the first is "
    "better; ties count half.",
    "Difference: a two-sided Mann-Whitney test over permutations of the runs, corrected for the number of pairs in the "
    "environment (Holm), at 5 percent.",
)
"""Definitions of the numbers of a page."""
_NO_DEFAULT = tyro.conf.arg(help_behavior_hint="")
"""Else the help has an empty default."""


@dataclass(frozen=True)
class ReportConfig:
    """Report on runs, on one page."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(help_behavior_hint="(required)")]
    """Folders of runs, or folders that contain runs."""
    output: Path = Path("report.html")
    """HTML page to write; its tables go beside it."""
    metric: str = RETURN
    """Column of metrics.csv to compare; more is better."""
    group_by: Annotated[tuple[str, ...], _NO_DEFAULT] = ()
    """Settings to compare by, such as agent or n_envs; by default all except the seed. Environments are never
    mixed."""
    final_share: float = 0.1
    """Share of a run's steps, at its end, whose mean is its final performance."""
    reached: Annotated[tuple[str, ...], _NO_DEFAULT] = ()
    """Returns, such as 175 -50, or ENVIRONMENT=RETURN for one environment alone: a table lists the first environment
    step at which each run reached them."""
    in_a_row: int = 1
    """Number of entries in a row that have to reach a return."""
    unfinished: bool = False
    """Include runs that are not finished, as far as they are."""
    formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")
    """Formats of the files of the figures; without a value, none are written."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no runs are given, expected their folders")
        if self.output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"output is {self.output}, expected a name that ends in .html")
        if not os.access(self.output.parent, os.W_OK) or self.output.is_dir():
            raise ValueError(f"output {self.output} cannot be written: no folder to write to, or a folder itself")
        if not 0 < self.final_share <= 1:
            raise ValueError(f"final_share is {self.final_share}, expected more than 0 and at most 1")
        require_count("in_a_row", self.in_a_row)
        self.targets()

    def targets(self) -> tuple[Target, ...]:
        """Parse `reached`."""
        found = []
        for word in self.reached:
            env, _, number = word.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise ValueError(f"reached is {word!r}, expected a return, or ENVIRONMENT=RETURN")
            found.append(Target(value, env or None))
        return tuple(found)


def read_study(config: ReportConfig) -> Study:
    """Find, read and group the runs.

    Raises:
        ValueError: There are no runs, none has the metric, or `reached` names an environment without runs.
    """
    runs = find_runs(config.runs)
    require_metric(config.metric, (name for run in runs for name in run.metrics))
    groups = group_runs(runs, config.group_by)
    study = Study(runs, groups, config.metric, config.final_share, config.unfinished, config.targets(), config.in_a_row)
    for target in study.targets:
        if target.env is not None and target.env not in study.environments:
            hint = did_you_mean(target.env, study.environments)
            raise ValueError(f"reached names {target.env!r}, expected one of {', '.join(study.environments)}{hint}")
    return study


@dataclass
class Report:
    """HTML page, its tables, and what draws its figures, by name."""

    text: str
    tables: list[Table]
    figures: dict[str, Callable[[], Figure]]


def make_report(study: Study, command: str) -> Report:
    """Return the page with its tables and figures."""
    tables: list[Table] = []
    figures: dict[str, Callable[[], Figure]] = {}

    def put(table: Table) -> str:
        if not table.rows:
            return ""
        tables.append(table)
        return table.html()

    overview = "\n".join(filter(None, map(put, (overview_table(study), overall_table(study)))))
    sections = [("All environments", overview)] if overview else []
    for env in study.environments:
        curves = learning_curves(study, env)
        figures |= {f"{slug(env)}-{name}": partial(draw_curves, one) for name, one in curves.items()}
        parts = [pictures_html([*map(chart_html, curves.values())])]
        parts += map(put, (final_table(study, env), published_table(study, env), reached_table(study, env)))
        pairs = compare_pairs(study.scores(env))
        if pairs:
            draw = figures[f"{slug(env)}-improvement"] = partial(pairs_figure, env, pairs)
            alt = f"{env}: probability of improvement, with 95 percent intervals"
            parts += [put(pairs_table(env, pairs)), pictures_html([figure_html(draw(), alt)])]
        sections.append((env, "\n".join(filter(None, parts))))
    settings = "\n".join(filter(None, map(put, settings_tables(study))))
    sections.append(("Settings", settings or "<p>All runs have the same settings, except for the seed.</p>"))
    labels = {id(run): group.label for group in study.groups for run in group.runs}
    names = [labels.get(id(run), "") for run in study.runs]
    every = [run_html(run, name) for run, name in zip(study.runs, names, strict=True)]
    sections.append(("Runs", "\n".join([put(runs_table(study.runs, names, study.metric, study.final_share)), *every])))
    sections.append(("Definitions of these numbers", notes_html(HOW)))
    return Report(page(title_of(study), sections, _intro(study, command)), tables, figures)


def _intro(study: Study, command: str) -> str:
    n_finished = sum(run.finished for run in study.runs)
    summary = f"{len(study.runs)} runs, {n_finished} of them finished; compared by {study.metric}."
    damaged = [f"{run.name}: {'; '.join(run.notes)}" for run in study.runs if run.notes]
    warning = f'<div class="warning">{notes_html(damaged)}</div>' if damaged else ""
    return f"<p>{html.escape(summary)} {html.escape(HINT)}</p>\n<pre>{html.escape(command)}</pre>\n{warning}"


def write_report(study: Study, output: Path, command: str, formats: Sequence[str] = ()) -> list[Path]:
    """Write the page, its tables in one Markdown file and each as CSV, and its figures; return the paths.

    Args:
        study: The runs.
        output: File of the page.
        command: Command that makes the report.
        formats: Formats of the figures, which go to a folder of the page's name.
    """
    report = make_report(study, command)
    title = f"# {one_line(title_of(study))}"
    tables = "\n".join([title, "", *map(Table.markdown, report.tables)])
    files = {output: report.text, output.with_suffix(".md"): tables}
    files |= {output.with_name(f"{output.stem}-{table.name}.csv"): table.csv() for table in report.tables}
    for path, content in files.items():
        write_whole(path, content)
    folder = output.with_name(f"{output.stem}-figures")
    for name, draw in report.figures.items() if formats else ():
        folder.mkdir(exist_ok=True)
        figure = draw()
        for kind in formats:
            dated = {"pdf": "CreationDate", "svg": "Date"}.get(kind)  # the same runs make the same file
            figure.savefig(folder / f"{name}.{kind}", dpi=150, metadata={dated: None} if dated else None)
            figure.set_layout_engine("none")  # the layout of the first format, which takes most of the time
    return [*files, *([folder] if formats else [])]


@command()
def main() -> None:
    """Read the runs, compare them, and write the report."""
    args = sys.argv[1:]
    try:
        config: ReportConfig = command_line(ReportConfig, args, prog=program("report"))
        study = read_study(config)
        words = shlex.join([*program("report").split(), *args])
        written = write_report(study, config.output, words, config.formats)
    except (ValueError, OSError) as error:
        fail(error)
    print(f"{len(study.runs)} runs: {written[0]}")
    print(f"tables and figures: {', '.join(str(path) for path in written[1:])}")


if __name__ == "__main__":
    main()
