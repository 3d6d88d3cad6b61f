"""Learning curves as inline SVG that can be hovered and zoomed, without a network or a library."""

import html
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.report.figures import Curves
from experiments.report.statistics import Array

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 68, 16, 10, 48
INNER = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
"""Size of the plot inside the axes, in the units of the SVG."""

DASHES = {"-": "", "--": "6 3", "-.": "6 3 1.5 3", ":": "1.5 3"}
"""Dash patterns of matplotlib's line styles."""

HINT = (
    "Learning curves: hover for values; drag a box to zoom in; click, then turn the wheel or press + - 0 and arrows; "
    "double-click to reset."
)
"""Description of the controls."""


def chart_html(curves: Curves) -> str:
    """Return curves as a focusable figure: SVG, legend and a place for the values under the pointer."""
    span = _range(curves)
    body = "".join([*_bands(curves, span), *_seeds(curves, span), *_published(curves, span), *_means(curves, span)])
    width, height = INNER
    plot = (
        f'<svg class="plot" x="{LEFT}" y="{TOP}" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="none"><rect x="-9999" y="-9999" width="29999" height="29999" fill="#fff0"/>{body}'
        '<line class="cross" visibility="hidden"/><rect class="box" visibility="hidden"/></svg>'
    )
    frame = f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{width}" height="{height}"/>'
    title = html.escape(curves.title)
    xlabel, ylabel = html.escape(curves.xlabel), html.escape(curves.ylabel)
    across = f'<text x="{LEFT + width / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">{xlabel}</text>'
    up = f'<text transform="translate(14 {TOP + height / 2:g}) rotate(-90)" text-anchor="middle">{ylabel}</text>'
    name = html.escape(f"{curves.title} against {curves.xlabel}, by setting")
    ends = " ".join(f"{end:.9g}" for end in span)
    return (
        f'<figure><div class="chart" tabindex="0" data-range="{ends}" data-frame="{LEFT} {TOP} {width} {height}" '
        f'data-x="{xlabel}"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f'<g class="ticks">{"".join(_ticks(span))}</g>{plot}{frame}{across}{up}</svg><div class="values"></div></div>'
        f'<ul class="legend">{"".join(_legend(curves))}</ul>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _range(curves: Curves) -> tuple[float, float, float, float]:
    """Return the ends of the axes: x from 0, y around all curves, as in the figure."""
    xs, ys = [np.array([0.0])], []
    for line in curves.lines.values():
        for curve in (*line.seeds, *([line.curve] if line.curve is not None else [])):
            xs.append(curve.x)
            ys.append(curve.each.ravel())
    for points in filter(len, curves.published.values()):
        xs.append(points[:, 0] / 1.03)
        ys.append(points[:, 1])
    values = np.concatenate(ys) if ys else np.array([0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return 0.0, 1.03 * float(max(x.max() for x in xs)) or 1.0, low - pad, high + pad


def _place(x: Array, y: Array, span: Sequence[float]) -> str:
    """Return points in the units of the plot, as an attribute of SVG."""
    x0, x1, y0, y1 = span
    across, down = (x - x0) / (x1 - x0) * INNER[0], (y1 - y) / (y1 - y0) * INNER[1]
    return " ".join(f"{u:.2f},{v:.2f}" for u, v in zip(across, down, strict=True))


def _line(kind: str, points: str, style: dict[str, Any], name: str = "") -> str:
    dashes = DASHES[style["ls"]] if kind != "seed" else ""
    attributes = f' stroke-dasharray="{dashes}"' if dashes else ""
    if " " not in points:  # a dot: a line of no length with round ends
        points, attributes = f"{points} {points}", ' style="stroke-width: 7"'
    named = f' data-name="{html.escape(name)}"' if name else ""
    title = f"<title>{html.escape(name)}</title>" if name else ""
    colour = to_hex(style["color"])
    return f'<polyline class="{kind}" points="{points}" stroke="{colour}"{attributes}{named}>{title}</polyline>'


def _bands(curves: Curves, span: Sequence[float]) -> Iterator[str]:
    for label, line in curves.lines.items():
        if line.curve is not None and len(line.curve.each) > 1:
            x, low, high = line.curve.x, line.curve.value.low, line.curve.value.high
            points = _place(np.append(x, x[::-1]), np.append(low, high[::-1]), span)
            yield f'<polygon class="band" points="{points}" fill="{to_hex(curves.styles[label]["color"])}"/>'


def _seeds(curves: Curves, span: Sequence[float]) -> Iterator[str]:
    for label, line in curves.lines.items():
        for seed in line.seeds:
            yield _line("seed", _place(seed.x, seed.each[0], span), curves.styles[label])


def _published(curves: Curves, span: Sequence[float]) -> Iterator[str]:
    for label, points in curves.published.items():
        if len(points):
            yield _line("published", _place(points[:, 0], points[:, 1], span), curves.styles[label], label)


def _means(curves: Curves, span: Sequence[float]) -> Iterator[str]:
    for label, line in curves.lines.items():
        if line.curve is not None:
            points = _place(line.curve.x, line.curve.value.point, span)
            yield _line("mean", points, curves.styles[label], label)


def _legend(curves: Curves) -> Iterator[str]:
    for label, text in curves.legend().items():
        style = curves.styles[label]
        dashes = f' stroke-dasharray="{DASHES[style["ls"]]}"' if DASHES[style["ls"]] else ""
        width = 1 if label in curves.published else 2.5
        line = f'<line x1="0" x2="30" y1="5" y2="5" stroke="{to_hex(style["color"])}" stroke-width="{width}"{dashes}/>'
        yield f'<li><svg viewBox="0 0 30 10" aria-hidden="true">{line}</svg>{html.escape(text)}</li>'


def _ticks(span: Sequence[float]) -> Iterator[str]:
    """Yield grid and tick labels for readers without scripts; the script draws its own after a zoom."""
    x0, x1, y0, y1 = span
    number = EngFormatter(sep="")
    for tick in MaxNLocator(6).tick_values(x0, x1):
        if x0 <= tick <= x1:
            x = LEFT + (tick - x0) / (x1 - x0) * INNER[0]
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + INNER[1]}"/>'
            yield f'<text x="{x:.1f}" y="{TOP + INNER[1] + 16}" text-anchor="middle">{number(tick)}</text>'
    for tick in MaxNLocator(6).tick_values(y0, y1):
        if y0 <= tick <= y1:
            y = TOP + (y1 - tick) / (y1 - y0) * INNER[1]
            text = f"{0.0 if math.isclose(tick, 0, abs_tol=1e-9 * (y1 - y0)) else tick:g}"
            yield f'<line class="grid" x1="{LEFT}" x2="{LEFT + INNER[0]}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
