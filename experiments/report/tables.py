"""Tables of a report, each written as HTML, Markdown and CSV."""

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of names and numbers; None is an empty cell."""

    name: str
    """For its file."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    """Below it."""

    def html(self) -> str:
        """A table that scrolls on its own where the screen is narrow."""
        head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        body = "\n".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in self.rows)
        head = f"<thead><tr>{head}</tr></thead>\n" if any(self.columns) else ""
        table = f"<table>{head}<tbody>{body}</tbody></table>"
        title = html.escape(self.title)
        scrolling = f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">{table}</div>'
        return f"<h3>{title}</h3>\n{scrolling}\n{notes_html(self.notes)}"

    def markdown(self) -> str:
        """A section with the table."""
        lines = [f"## {_one_line(self.title)}", "", f"| {' | '.join(map(_one_line, self.columns))} |"]
        lines += ["|" + "---|" * len(self.columns)]
        lines += [f"| {' | '.join(_one_line(written(cell)) for cell in row)} |" for row in self.rows]
        lines += ["", *(f"* {_one_line(note)}" for note in self.notes), ""]
        return "\n".join(lines)

    def csv(self) -> str:
        """Numbers to their last digit."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if _missing(cell) else cell for cell in row] for row in self.rows)
        return file.getvalue()


def written(cell: Cell) -> str:
    """A cell for the eye: four digits of a number that is no count."""
    if cell is None or _missing(cell):
        return "—"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def notes_html(notes: Sequence[str]) -> str:
    """A list of remarks; nothing if there are none."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _cell_html(cell: Cell) -> str:
    kind = "" if isinstance(cell, str) else ' class="number"'
    return f"<td{kind}>{html.escape(written(cell))}</td>"


def _missing(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
