"""Hunks that say the same of layer after layer, but for a number, as one: a layer's own constant is no news."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .hunks import Change, Hunk, Line

FEWEST = 4  # hunks that are told as one; kinds of layers, which are worth telling apart, are fewer
SHOWN = 3  # numbers of which a person sees how they go on
_NUMBER = re.compile(r"(?<![\w.%])\d+(?![\w.])")


def collapsed(hunks: Iterable[Hunk]) -> list[Hunk]:
    """The hunks, those of at least FEWEST that differ in whole numbers alone as one."""
    groups: dict[object, list[Hunk]] = {}
    for hunk in hunks:
        groups.setdefault((hunk.before, hunk.after, tuple(map(_masked, hunk.lines))), []).append(hunk)
    return [one for group in groups.values() for one in ([_one(group)] if len(group) >= FEWEST else group)]


def _masked(line: Line) -> object:
    changes = tuple((c.what, _NUMBER.sub("#", c.before), _NUMBER.sub("#", c.after)) for c in line.changes)
    return line.mark, _NUMBER.sub("#", line.text), changes


def _one(group: Sequence[Hunk]) -> Hunk:
    order = sorted(group, key=lambda hunk: hunk.layers[:1])
    lines = tuple(_line([hunk.lines[at] for hunk in order]) for at in range(len(order[0].lines)))
    behind = [tuple(dict.fromkeys(span for hunk in order for span in hunk.behind[side])) for side in (0, 1)]
    return replace(
        order[0],
        lines=lines,
        blocks=tuple(dict.fromkeys(name for hunk in order for name in hunk.blocks)),
        layers=tuple(sorted({layer for hunk in order for layer in hunk.layers})),
        behind=(behind[0], behind[1]),
    )


def _line(lines: Sequence[Line]) -> Line:
    changes = tuple(_change([line.changes[at] for line in lines]) for at in range(len(lines[0].changes)))
    text = lines[0].text
    if any(line.text != text for line in lines):
        text = f"{_NUMBER.sub('…', text)}, by layer"
    return replace(lines[0], text=text, changes=changes)


def _change(changes: Sequence[Change]) -> Change:
    return replace(changes[0], before=_numbers([c.before for c in changes]), after=_numbers([c.after for c in changes]))


def _numbers(texts: Sequence[str]) -> str:
    """One text for those of several layers: `1, 2, 3, … by layer`."""
    if len(set(texts)) == 1:
        return texts[0]
    return ", ".join([*texts[:SHOWN], *(["…"] if len(texts) > SHOWN else [])]) + " by layer"
