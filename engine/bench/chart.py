"""Speeds as small line charts: one SVG file that stands alone, in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 230  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 52, 40  # its margins
COLOURS = ("#2f6fb3", "#3d9a6b", "#c7702e", "#8a5ab5")  # on white and on black
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #555 } .title { font-weight: 600; fill: #222 }
.grid { stroke: #ddd } .end { text-anchor: end } .middle { text-anchor: middle }
@media (prefers-color-scheme: dark) { text { fill: #aaa } .title { fill: #eee } .grid { stroke: #444 } }"""


@dataclass(frozen=True)
class Point:
    """A median with its lowest and highest."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One chart: lines by name over a few values of x, which stand side by side."""

    title: str
    x_label: str
    lines: Mapping[str, Sequence[Point]]


def figure(panels: Sequence[Panel], across: int = 2) -> str:
    """Panels beside and below one another as an SVG document. Lines of one name have one colour in all."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    rows = -(-len(panels) // across)
    parts = []
    for place, panel in enumerate(panels):
        x, y = WIDTH * (place % across), HEIGHT * (place // across)
        parts.append(f'<g transform="translate({x} {y})">{_panel(panel, colours)}</g>')
    legend, x = [], LEFT
    for name, colour in colours.items():
        legend.append(
            f'<circle cx="{x}" cy="14" r="5" fill="{colour}"/><text x="{x + 10}" y="18">{escape(name)}</text>'
        )
        x += 40 + 7 * len(name)
    width, height = WIDTH * across, HEIGHT * rows + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{STYLE}</style>{"".join(legend)}<g transform="translate(0 24)">{"".join(parts)}</g></svg>\n'
    )


def _panel(panel: Panel, colours: Mapping[str, str]) -> str:
    """Tokens a second from zero upwards; whiskers from the lowest to the highest."""
    values = sorted({point.x for points in panel.lines.values() for point in points})
    step = _step(max((p.high for points in panel.lines.values() for p in points), default=1.0))
    most = step * max(
        1, math.ceil(max((p.high for points in panel.lines.values() for p in points), default=1.0) / step)
    )
    floor, inner = HEIGHT - BOTTOM, WIDTH - LEFT - RIGHT

    def x(value: int) -> float:
        return LEFT + inner * (values.index(value) + 0.5) / len(values)

    def y(value: float) -> float:
        return floor - (floor - TOP) * value / most

    parts = [f'<text class="title" x="{LEFT}" y="{TOP - 18}">{escape(panel.title)}</text>']
    for tick in range(round(most / step) + 1):
        at = y(tick * step)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{at + 4:.1f}">{tick * step:g}</text>')
    parts += [f'<text class="middle" x="{x(v):.1f}" y="{floor + 18}">{v:,}</text>' for v in values]
    parts.append(f'<text class="middle" x="{LEFT + inner / 2}" y="{floor + 35}">{escape(panel.x_label)}</text>')
    for name, points in panel.lines.items():
        colour = colours[name]
        ordered = sorted(points, key=lambda point: point.x)
        path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in ordered)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for p in ordered:
            told = escape(f"{name}, {p.x:,}: {p.y:.1f} tok/s ({p.low:.1f} to {p.high:.1f})")
            parts.append(f'<path d="M{x(p.x):.1f} {y(p.low):.1f}V{y(p.high):.1f}" stroke="{colour}"/>')
            dot = f'<circle cx="{x(p.x):.1f}" cy="{y(p.y):.1f}" r="4" fill="{colour}">'
            parts.append(f"{dot}<title>{told}</title></circle>")
    return "".join(parts)


def _step(most: float) -> float:
    """A round distance of ticks, so that there are about four."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= most / 4)
