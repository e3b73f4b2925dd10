"""Charts of memory and of the roofline, as HTML and SVG that need no script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from briolette.engine.memory import MemoryPlan
from briolette.engine.words import size

from .ceilings import Machine
from .page import Html, escape, table
from .picture import PALETTE
from .work import Work, total

Share = tuple[str, float, str, str]  # name, bytes, colour's class, what it is


def shares(title: str, parts: Sequence[Share]) -> str:
    """Bytes as one bar with a legend."""
    whole = sum(part[1] for part in parts) or 1
    bar = "".join(
        f'<i class="{css}" style="flex-grow:{count / whole:.5f}" title="{escape(f"{name}: {size(count)}")}"></i>'
        for name, count, css, _ in parts
        if count
    )
    rows = [
        [Html(f'<i class="dot {css}"></i>{escape(name)}'), size(count), f"{count / whole:.1%}", about]
        for name, count, css, about in parts
    ]
    legend = table(rows, right="lrr", css="legend")
    head = f"<h3>{escape(title)} <b>{size(whole)}</b></h3>"
    return f'<div class="shares">{head}<div class="bar-parts">{bar}</div>{legend}</div>'


def kv_chart(plan: MemoryPlan) -> str:
    """How the KV cache grows with the position, by kind of layer: rings stop at their window."""
    kinds = [kind for kind in plan.kv if kind.bytes]
    context = plan.options.context
    if not kinds:
        return ""
    left, right, top, bottom = 76, 640, 14, 200
    most = plan.kv_bytes
    marks = sorted({0, context, *(min(context, kind.positions) for kind in kinds)})

    def x(position: int) -> float:
        return left + (right - left) * position / context

    def y(count: float) -> float:
        return bottom - (bottom - top) * count / most

    parts, below = [], dict.fromkeys(marks, 0.0)
    for kind in kinds:
        here = {at: below[at] + kind.token_bytes * min(at, kind.positions) for at in marks}
        outline = [(x(at), y(here[at])) for at in marks] + [(x(at), y(below[at])) for at in reversed(marks)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in outline)
        colour = plan.kv.index(kind) % PALETTE
        told = f"{kind.kind}: {size(kind.token_bytes)} a token, {size(kind.bytes)} at {context} tokens"
        parts.append(f'<polygon class="f{colour} soft" points="{points}"><title>{escape(told)}</title></polygon>')
        below = here
    parts += [
        f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>',
        *(
            f'<text class="tick end" x="{left - 8}" y="{y(most * part) + 4:.0f}">{escape(size(most * part))}</text>'
            for part in (0, 0.5, 1)
        ),
        *(
            f'<text class="tick" x="{x(round(context * part)):.0f}" y="{bottom + 18}">{round(context * part):,}</text>'
            for part in (0, 0.25, 0.5, 0.75, 1)
        ),
    ]
    return (
        '<div class="scroll"><svg class="chart" viewBox="0 0 680 226" role="img" '
        f'aria-label="KV cache by position">{"".join(parts)}</svg></div>'
    )


FROM, TO = 2.0**-2, 2.0**12  # operations a byte, the ends of the roofline's axis
LEFT, RIGHT, TOP, FLOOR, LANE = 92, 860, 26, 220, 26


def roofline(steps: Mapping[str, Sequence[Work]], machine: Machine) -> str:
    """The roof, each whole step on it, and below it a lane for each block of the spec with its ops by intensity."""
    high, low = machine.peak * 1.6, min(machine.peak, machine.bandwidth * FROM) / 1.6

    def x(intensity: float) -> float:
        part = math.log(min(max(intensity, FROM), TO) / FROM) / math.log(TO / FROM)
        return LEFT + (RIGHT - LEFT) * part

    def y(rate: float) -> float:
        return FLOOR - (FLOOR - TOP) * math.log(rate / low) / math.log(high / low)

    def roof(intensity: float) -> float:
        return min(machine.peak, machine.bandwidth * intensity)

    ridge = min(max(machine.ridge, FROM), TO)
    shown = {name: list(_visible(works, machine)) for name, works in steps.items()}
    blocks = list(dict.fromkeys(work.block for works in shown.values() for work, _ in works))
    end = FLOOR + 34 + LANE * len(blocks)
    parts = [
        f'<rect class="bound" x="{LEFT}" y="{TOP}" width="{x(ridge) - LEFT:.1f}" height="{end - TOP}"/>',
        f'<path class="roof" d="M{LEFT} {y(roof(FROM)):.1f}L{x(ridge):.1f} {y(machine.peak):.1f}H{RIGHT}"/>',
        f'<path class="ridge" d="M{x(ridge):.1f} {y(machine.peak):.1f}V{end}"/>',
        f'<text class="note" x="{LEFT + 8}" y="{TOP + 14}">memory: {machine.bandwidth / 1e9:.1f} GB/s</text>',
        f'<text class="note end" x="{RIGHT}" y="{TOP + 14}">arithmetic: {machine.peak / 1e9:.0f} GFLOP/s</text>',
    ]
    for power in range(round(math.log2(FROM)), round(math.log2(TO)) + 1, 2):
        at = x(2.0**power)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{end}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{FLOOR + 16}">{2.0**power:g}</text>')
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        parts.append(f'<path class="grid" d="M{LEFT} {y(10.0**power):.1f}H{RIGHT}"/>')
        parts.append(
            f'<text class="tick end" x="{LEFT - 8}" y="{y(10.0**power) + 4:.0f}">{10.0 ** (power - 9):g} GFLOP/s</text>'
        )
    for place, block in enumerate(blocks):
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{FLOOR + 46 + LANE * place}">{escape(block)}</text>')
    for name, works in steps.items():
        whole = total(works, name)
        parts += _whole(whole, x(whole.intensity), y(max(low, roof(whole.intensity))), roof(whole.intensity))
        for work, share in shown[name]:
            told = f"{work.block}: {work.name}, {name}: {work.intensity:.3g} operations a byte, {share:.1%} of the step"
            at = FLOOR + 42 + LANE * blocks.index(work.block)
            parts.append(
                f'<circle class="dot-{name}" data-op="{escape(work.first)}" cx="{x(work.intensity):.1f}" cy="{at}" '
                f'r="{2.5 + 15 * math.sqrt(share) / 2:.1f}"><title>{escape(told)}</title></circle>'
            )
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{end + 18}">operations a byte of weights and KV cache</text>')
    return (
        f'<div class="scroll"><svg class="chart roofline" viewBox="0 0 {RIGHT + 16} {end + 26}" role="img" '
        f'aria-label="Roofline">{"".join(parts)}</svg></div>'
    )


def _visible(works: Sequence[Work], machine: Machine) -> Iterator[tuple[Work, float]]:
    """What is worth a dot, largest first, with its part of the step's least time."""
    seconds = sum(work.seconds(machine) for work in works) or 1
    for work in sorted(works, key=lambda w: -w.seconds(machine)):
        if work.bytes and work.seconds(machine) > 0.002 * seconds:
            yield work, work.seconds(machine) / seconds


def _whole(work: Work, x: float, y: float, rate: float) -> list[str]:
    told = f"{work.name}: {work.intensity:.3g} operations a byte, at most {rate / 1e9:.3g} GFLOP/s"
    return [
        f'<circle class="whole dot-{work.name}" cx="{x:.1f}" cy="{y:.1f}" r="7"><title>{escape(told)}</title></circle>',
        f'<text class="note strong" x="{x + 12:.1f}" y="{y + 16:.1f}">{escape(work.name)}</text>',
    ]


def times(step: str, works: Sequence[Work], machine: Machine, tokens: int, shown: int = 12) -> str:
    """Where a step's least time goes, the largest parts first."""
    seconds = sum(work.seconds(machine) for work in works) or 1
    order = sorted(works, key=lambda w: -w.seconds(machine))
    rows = [_time_row(work, seconds, machine) for work in order[:shown]]
    rest = order[shown:]
    if rest:
        whole, left = total(rest, "rest"), sum(work.seconds(machine) for work in rest)
        sizes = [size(whole.weights), size(whole.cache), f"{whole.flops / 1e9:.3g}", "", ""]
        rows.append([f"{len(rest)} more", *sizes, _time(left), _meter(left / seconds)])
    head = [
        "op, over all layers",
        "weights",
        "KV cache",
        "GFLOP",
        "FLOP/byte",
        "limited by",
        "least time",
        "of the step",
    ]
    source = "measurements" if machine.measured else "figures"
    said = f"<p>By these {source} a step takes about <b>{_time(seconds)}</b> at best: "
    said += f"about <b>{_rate(tokens / seconds)} tokens a second</b>.</p>"
    return f'<div class="of-form" data-form="{step}">{said}{table(rows, head, "lrrrrlrr", "times")}</div>'


def _time_row(work: Work, seconds: float, machine: Machine) -> list[object]:
    limit = "memory" if work.bytes / machine.bandwidth >= work.flops / machine.peak else "arithmetic"
    name = escape(f"{work.block}: {work.name}")
    return [
        Html(f'<button class="link" data-op="{escape(work.first)}">{name}</button>'),
        size(work.weights) if work.weights else "",
        size(work.cache) if work.cache else "",
        f"{work.flops / 1e9:.3g}",
        f"{work.intensity:.3g}" if work.bytes else "",
        limit,
        _time(work.seconds(machine)),
        _meter(work.seconds(machine) / seconds),
    ]


def _meter(share: float) -> Html:
    return Html(f'<i class="meter" style="--s:{share:.4f}"></i>{share:.1%}')


def _rate(count: float) -> str:
    return f"{count:,.0f}" if count >= 10 else f"{count:.2g}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 100 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
