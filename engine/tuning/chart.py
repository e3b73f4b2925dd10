"""The frontier and the sensitivities of a model as an SVG document, and that in a page with its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from briolette.engine.words import size

from .run import Row, Tuned

WIDTH, HEIGHT = 520, 320  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 48, 46  # its margins
COLOURS = ("#2f6fb3", "#c7702e", "#3d9a6b", "#8a5ab5")  # on white and on black
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #555 } .title { font-weight: 600; fill: #222 }
.grid { stroke: #ddd } .end { text-anchor: end } .middle { text-anchor: middle }
@media (prefers-color-scheme: dark) { text { fill: #aaa } .title { fill: #eee } .grid { stroke: #444 } }"""
PAGE = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 14px system-ui, sans-serif; margin: 2em; color-scheme: light dark }}
td, th {{ padding: 2px 12px 2px 0; text-align: right }} td:first-child, th:first-child {{ text-align: left }}
code {{ font-size: 12px }} .chosen {{ font-weight: 600 }}</style>
<h1>{title}</h1>{svg}{table}</html>
"""


@dataclass
class Series:
    """Points (x, y) under a name: joined by a line, or dots. labels: what is told of each."""

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    line: bool = True
    dashed: bool = False

    def add(self, x: float, y: float, label: str) -> None:
        """A divergence of nothing, or less by rounding, has no place on a logarithmic axis."""
        if y > 0:
            self.points.append((x, y))
            self.labels.append(label)


def svg(tuned: Tuned) -> str:
    """Both panels beside one another; it stands alone, in light and in dark."""
    frontier, sensitivities = _frontier(tuned.rows), _sensitivities(tuned)
    panels = [
        _panel(f"Mean KLD, by bytes of the cache at {tuned.context:,} tokens", frontier, lambda x: size(x), 0),
        _panel("Mean KLD with one side of one layer coded alone", sensitivities, lambda x: f"{x:g}", WIDTH),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" width="{2 * WIDTH}" '
        f'height="{HEIGHT}"><style>{STYLE}</style>{"".join(panels)}</svg>\n'
    )


def page(tuned: Tuned, title: str, cells: Sequence[Sequence[str]]) -> str:
    """A page for a browser: the charts, and a table whose first row is its head."""
    head, *body = ("".join(f"<{{0}}>{escape(cell)}</{{0}}>" for cell in row) for row in cells)
    marks = ['<tr class="chosen">' if row.chosen else "<tr>" for row in tuned.rows]
    lines = "".join(f"{mark}{row.format('td')}</tr>" for mark, row in zip(marks, body, strict=True))
    return PAGE.format(title=escape(title), svg=svg(tuned), table=f"<table><tr>{head.format('th')}</tr>{lines}</table>")


def _frontier(rows: Sequence[Row]) -> list[Series]:
    measured, predicted = Series("measured"), Series("predicted", dashed=True)
    presets, chosen = Series("presets", line=False), Series("chosen", line=False)
    for row in rows:
        mean = row.found.kld.mean
        told = f"{row.name or row.policy}: {size(row.bytes)}, mean KLD {mean:.6f}"
        if row.name is not None:
            presets.add(row.bytes, mean, told)
            continue
        measured.add(row.bytes, mean, told)
        if row.predicted is not None:
            predicted.add(row.bytes, row.predicted, f"{size(row.bytes)}: predicted {row.predicted:.6f}")
        if row.chosen:
            chosen.add(row.bytes, mean, told)
    return [measured, predicted, presets, chosen]


def _sensitivities(tuned: Tuned) -> list[Series]:
    """By layer; K and V in each of the codecs that were measured."""
    found: dict[str, Series] = {}
    for (slot, plane), by_codec in sorted(tuned.sensitivities.items()):
        for codec, kld in by_codec.items():
            name = f"{plane.upper()} {codec}"
            series = found.setdefault(name, Series(name, dashed=plane == "v"))
            series.add(slot, kld, f"{name} in layer {slot}: {kld:.6f}")
    return [found[name] for name in sorted(found)]


def _panel(title: str, series: Sequence[Series], told: Callable[[float], str], shift: int) -> str:
    """Values above zero on a logarithmic axis, over a linear one."""
    points = [point for each in series for point in each.points]
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    if not points:
        return f'<g transform="translate({shift} 0)">{"".join(parts)}</g>'
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    least = math.floor(math.log10(min(y for _, y in points)))
    most = max(least + 1, math.ceil(math.log10(max(y for _, y in points))))
    floor = HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((value - low) / (high - low) if high > low else 0.5)

    def y(value: float) -> float:
        return floor - (floor - TOP) * (math.log10(value) - least) / (most - least)

    for power in range(least, most + 1):
        at = y(10.0**power)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{at + 4:.1f}">{10.0**power:g}</text>')
    for part in range(5 if high > low else 1):
        value = low + (high - low) * part / 4
        parts.append(f'<text class="middle" x="{x(value):.1f}" y="{floor + 20}">{escape(told(value))}</text>')
    along = LEFT
    for place, each in enumerate(series):
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<circle cx="{along}" cy="34" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{along + 9}" y="38">{escape(each.name)}</text>')
        along += 34 + 7 * len(each.name)
        if each.line and each.points:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in sorted(each.points))
            dashes = ' stroke-dasharray="5 4"' if each.dashed else ""
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        for (a, b), label in zip(each.points, each.labels, strict=True):
            dot = f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="4" fill="{colour}">'
            parts.append(f"{dot}<title>{escape(label)}</title></circle>")
    return f'<g transform="translate({shift} 0)">{"".join(parts)}</g>'
