"""Tables of a report, each written as HTML, Markdown and CSV."""

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Table of names and numbers; None is an empty cell."""

    name: str
    """Name in the name of its CSV file."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    """Remarks below the table."""
    folded: bool = False
    """If True, pages show the title only until the reader opens it."""

    def html(self) -> str:
        """Return the table as HTML; it scrolls by itself on a narrow screen."""
        head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in self.columns)
        body = "\n".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in self.rows)
        head = f"<thead><tr>{head}</tr></thead>\n" if any(self.columns) else ""
        table = f"<table>{head}<tbody>{body}</tbody></table>"
        title = html.escape(self.title)
        scrolling = f'<div class="scroll" role="region" aria-label="{title}" tabindex="0">{table}</div>'
        if self.folded:
            return f"<details><summary>{title}</summary>\n{scrolling}\n{notes_html(self.notes)}</details>"
        return f"<h3>{title}</h3>\n{scrolling}\n{notes_html(self.notes)}"

    def markdown(self) -> str:
        """Return a Markdown section with the table."""
        lines = [f"## {one_line(self.title)}", "", f"| {' | '.join(map(one_line, self.columns))} |"]
        lines += ["|" + "---|" * len(self.columns)]
        lines += [f"| {' | '.join(one_line(written(cell)) for cell in row)} |" for row in self.rows]
        lines += ["", *(f"* {one_line(note)}" for note in self.notes), ""]
        if self.folded:
            lines = [f"<details><summary>{html.escape(self.title)}</summary>", "", *lines[2:], "</details>", ""]
        return "\n".join(lines)

    def csv(self) -> str:
        """Return the table as CSV, with all digits."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(["" if _missing(cell) else cell for cell in row] for row in self.rows)
        return file.getvalue()


def written(cell: Cell) -> str:
    """Format a cell: four significant digits for a float, a dash for an empty cell."""
    if cell is None or _missing(cell):
        return "—"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def notes_html(notes: Sequence[str]) -> str:
    """Return remarks as an HTML list; empty text if there are none."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _cell_html(cell: Cell) -> str:
    kind = "" if isinstance(cell, str) else ' class="number"'
    return f"<td{kind}>{html.escape(written(cell))}</td>"


def _missing(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def one_line(text: str) -> str:
    """Return text as Markdown that shows it literally, in one line, also within a cell of a table.

    Names, settings and notes of a run folder may hold anything: links, HTML, formulas, or a cell's border.
    """
    line = re.sub(r"[\\`*\[\]|~#$&]", r"\\\g<0>", " ".join(text.split()))
    line = re.sub(r"<(?=.*>)", r"\\<", line)  # of a tag; a sign alone may stay
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # within a word it has no meaning
    line = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp|www)(?=[:.])(.)", r"\1\\\2", line)  # these become links by themselves
    line = re.sub(r"^>|^[-+=](?=\s|$)", r"\\\g<0>", line)  # a quotation or a list
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)
