"""The HTML of a report: one file that needs no other and no network."""

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from experiments.report.metrics import CPU_SECONDS, SECONDS
from experiments.report.runs import Run
from experiments.report.script import CHART_STYLE, SCRIPT, SCRIPT_HASH
from experiments.report.tables import Cell, Table, notes_html
from experiments.run.folder import PICTURES

MAX_BYTES = 8_000_000
"""Largest size of a picture in bytes: browsers do not open a page of hundreds of megabytes."""

KINDS = {
    "learning_curve.png": "Learning curve",
    "model.png": "Model: predicted and true change, on held-out transitions",
    "model_calibration_*.png": "Model: calibration",
    "model_open_loop_*.png": "Model: error after k steps",
    "model_disagreement_*.png": "Model: disagreement of the members against error",
    "model_predictions_*.png": "Model: predicted and true change",
    "plan*.png": "A plan and its outcome",
    "skills*.png": "Skills",
    f"{PICTURES}/*.png": "While training",
    "*.png": "Other pictures",
    "*.gif": "Video of the policy",
    f"{PICTURES}/*.gif": "Video while training",
}
"""Titles of the pictures in a run's folder by file pattern, in the order in which they are shown."""

STYLE = """
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #222;
  background: #fff; overflow-wrap: anywhere }
h1, h2, h3, h4 { line-height: 1.2 }
h2 { margin-top: 2.5rem; padding-top: .5rem; border-top: 1px solid #ccc }
a { color: #24579c }
img { display: block; max-width: 100%; height: auto }
figure { margin: 0 }
figcaption, .notes { font-size: .875rem; color: #555 }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .875rem; overflow-wrap: normal }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
th { background: #f3f3f3 }
td { max-width: 24rem }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
details { margin: .5rem 0; border: 1px solid #ddd; border-radius: .3rem; padding: .5rem .8rem }
summary { cursor: pointer; font-weight: 600 }
pre { overflow-x: auto; font-size: .8rem; background: #f6f6f6; padding: .6rem }
.warning .notes { color: #8a3b00 }
"""

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src '{script_hash}'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def page(title: str, sections: Sequence[tuple[str, str]], intro: str) -> str:
    """Return the whole HTML page.

    Args:
        title: Title of the page.
        sections: Heading and HTML of each section.
        intro: HTML below the title.
    """
    links = "".join(f'<li><a href="#part-{i}">{html.escape(name)}</a></li>' for i, (name, _) in enumerate(sections))
    parts = [f'<section id="part-{i}"><h2>{html.escape(n)}</h2>\n{b}\n</section>' for i, (n, b) in enumerate(sections)]
    head = HEAD.format(title=html.escape(title), style=STYLE + CHART_STYLE, script_hash=SCRIPT_HASH)
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", intro, f"<nav><ul>{links}</ul></nav>", *parts])
    return f"{head}{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"


def figure_html(figure: Figure, alt: str) -> str:
    """Return a matplotlib figure as embedded HTML."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return image_html(file.getvalue(), "png", alt)


def image_html(data: bytes, kind: str, alt: str, caption: str = "") -> str:
    """Return an encoded picture as embedded HTML."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" alt="{html.escape(alt)}" loading="lazy">{below}</figure>'


def pictures_html(pictures: Sequence[str]) -> str:
    """Arrange pictures side by side where there is room, else below each other."""
    return "\n".join(['<div class="pictures">', *pictures, "</div>"]) if pictures else ""


def run_html(run: Run, label: str) -> str:
    """Return a collapsed section with everything that is known of one run."""
    state = "finished" if run.finished else "not finished" if run.readable else "damaged"
    parts = [notes_html(run.notes)]
    summary = Table("summary", "Summary", ("", ""), [[k, v] for k, v in run.summary.items()])
    code = Table("code", "Code", ("", ""), [[k, v] for k, v in run.code.items()])
    last = Table("last", "Last value of each metric", ("metric", "value", "at step"), _last_values(run))
    parts += [table.html() for table in (summary, code, _diagnosis(run)) if table.rows]
    parts += _pictures(run)
    parts += [f"<details><summary>Last metrics</summary>{last.html()}</details>"] if last.rows else []
    if run.settings:
        settings = html.escape(json.dumps(run.settings, indent=1))
        parts.append(f"<details><summary>Settings</summary><pre>{settings}</pre></details>")
    heading = html.escape(
        f"{run.name} — {label}, seed {run.seed}, {state}" if run.readable else f"{run.name} — {state}"
    )
    return "\n".join([f"<details><summary>{heading}</summary>", *parts, "</details>"])


def runs_table(runs: Sequence[Run], labels: Sequence[str], metric: str, share: float) -> Table:
    """Return a table with one row per run."""
    rows: list[list[Cell]] = []
    for run, label in zip(runs, labels, strict=True):
        best = float(run.metrics[metric][:, 1].max()) if metric in run.metrics else None
        rows.append(
            [
                *(run.name, run.env, label, str(run.seed) if run.readable else None),
                *(f"{run.n_steps} of {run.n_planned}" if run.readable else None, run.final(metric, share), best),
                *(_end(run, SECONDS), _end(run, CPU_SECONDS), "; ".join(run.notes)),
            ]
        )
    columns = ("run", "environment", "setting", "seed", "environment steps", "final", "best", "seconds", "CPU seconds")
    return Table("runs", "All runs", (*columns, "notes"), rows)


def _end(run: Run, metric: str) -> float | None:
    return float(run.metrics[metric][-1, 1]) if metric in run.metrics else None


def _last_values(run: Run) -> list[list[Cell]]:
    return [[name, float(points[-1, 1]), int(points[-1, 0])] for name, points in sorted(run.metrics.items())]


def _diagnosis(run: Run) -> Table:
    names = dict.fromkeys(name for numbers in run.diagnosis.values() for name in numbers)
    rows: list[list[Cell]] = [[n, *(_measure(n, numbers) for numbers in run.diagnosis.values())] for n in names]
    return Table("diagnosis", "The model on held-out data, by policy", ("number", *run.diagnosis), rows)


def _measure(name: str, numbers: Mapping[str, float]) -> Cell:
    """Return a measure of the model; R² of dimensions that do not vary is NaN."""
    value = numbers.get(name)
    return "constant" if value is not None and math.isnan(value) and name.startswith("model/r2") else value


def _pictures(run: Run) -> list[str]:
    """Return the pictures of a run by kind; of pictures drawn repeatedly while training, the newest of each name."""
    seen: set[Path] = set()
    parts, notes = [], []
    for pattern, title in KINDS.items():
        paths = [path for path in sorted(run.path.glob(pattern)) if path not in seen and path.is_file()]
        seen.update(paths)
        newest = {re.sub(r"\d+$", "", path.stem): path for path in paths}  # the number of steps has leading zeros
        shown = []
        for path in newest.values():
            problem = _problem(path)
            if problem:
                notes.append(f"{path.name} is left out: {problem}")
                continue
            shown.append(image_html(path.read_bytes(), path.suffix[1:].lower(), f"{title}: {path.stem}", path.name))
        if len(paths) > len(newest):
            notes.append(
                f"{title}: the newest of each; {len(paths) - len(newest)} earlier ones are in the run's folder"
            )
        if shown:
            parts.append(f"<h4>{html.escape(title)}</h4>\n{pictures_html(shown)}")
    return [*parts, notes_html(notes)]


def _problem(path: Path) -> str | None:
    """Return the reason why a picture cannot be shown, or None."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            return f"it has {size / 1e6:.0f} MB"
        with Image.open(path, formats=("PNG", "GIF")) as image:
            image.load()
            while image.format == "GIF" and image.tell() + 1 < getattr(image, "n_frames", 1):
                image.seek(image.tell() + 1)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return f"it is damaged ({error})" if str(error) else "it is damaged"
    return None
