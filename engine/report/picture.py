"""The layer stack as a picture: a column for each layer, coloured by kind, with its blocks and what it shares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from briolette.backends.formats import element_bytes
from briolette.compiler.dims import evaluate
from briolette.compiler.ir import Block, Module, Node, called, topological
from briolette.compiler.text import layer_ranges, plain, statements
from briolette.compiler.values import stem
from briolette.engine.words import size

from .page import Html, escape, table

PALETTE = 6  # kinds have so many colours; more kinds begin again
LABELS, WIDE, GAP, HEAD, REACH, CELL, ROW, BARS = 96, 26, 3, 10, 80, 34, 18, 44


@dataclass
class Layer:
    """One layer: its kind's number, its block and those it calls by stem, the layers whose cache it reads, sizes."""

    number: int
    kind: int
    block: Block
    parts: dict[str, Block] = field(default_factory=dict)
    donors: set[int] = field(default_factory=set)
    weights: float = 0
    cache: float = 0

    @property
    def colour(self) -> int:
        """The number of its kind's colour."""
        return self.kind % PALETTE


def stack(module: Module, cache_bytes: Mapping[int, float]) -> list[Layer]:
    """The layers of a module in block form. `cache_bytes`: what each keeps of K and V, in whatever unit."""
    of = {layer: place for place, (_, layers, _) in enumerate(module.kinds) for layer in layers}
    stored = {t.name: math.prod(t.shape) * element_bytes(t.format) for t in module.tensors}
    found = []
    for item in topological(module.roots):
        for number, block in item["table"] if item.op == "layers" else ():
            layer = Layer(number, of.get(number, 0), block, cache=cache_bytes.get(number, 0))
            for inner, node in _inside(block):
                layer.parts.setdefault(stem(inner.name), inner)
                if node.op == "cache":
                    layer.donors.add(evaluate(node["slot"], {"i": number}))
            names = {n["name"].replace("{i}", str(number)) for _, n in _inside(block) if "{i}" in str(n.get("name"))}
            layer.weights = sum(stored.get(name, 0) for name in names)
            layer.parts.pop(stem(block.name))
            layer.donors.discard(number)
            found.append(layer)
    return found


def version(name: str) -> str:
    """`2` of `attention.local.2`: kinds can have several versions of a block."""
    last = name.rsplit(".", 1)[-1]
    return last if last.isdigit() else ""


def _inside(block: Block) -> Iterator[tuple[Block, Node]]:
    for item in topological(block.roots):
        yield block, item
        for inner in called(item):
            yield from _inside(inner)


def picture(layers: Sequence[Layer], kinds: Sequence[str], cache_unit: str) -> str:
    """The SVG, or nothing for a model without layers."""
    if not layers:
        return ""
    wide = min(WIDE, max(12, 900 // len(layers)))
    at = {layer.number: LABELS + place * wide for place, layer in enumerate(layers)}
    width = LABELS + wide * len(layers) + 8
    shared = [(layer, donor) for layer in layers for donor in sorted(layer.donors) if donor in at]
    reach = max((abs(layer.number - donor) for layer, donor in shared), default=0)
    top = HEAD + min(REACH, 4 * reach) if shared else 8
    parts = [_arc(at[layer.number], at[donor], wide, top, layer.colour) for layer, donor in shared]
    y = top
    for layer in layers:
        x, name = at[layer.number], kinds[layer.kind] if layer.kind < len(kinds) else ""
        told = f"layer {layer.number}{f', {name}' if name else ''}: {layer.block.name}"
        parts.append(
            f'<g class="layer" data-block="{escape(layer.block.name)}"><title>{escape(told)}</title>'
            f'<rect class="f{layer.colour}" x="{x}" y="{y}" width="{wide - GAP}" height="{CELL}" rx="4"/>'
            f'<text class="in" x="{x + (wide - GAP) / 2}" y="{y + 21}">{layer.number}</text></g>'
        )
    parts.append(_label("layer", y + 21))
    y += CELL + 8
    for name in dict.fromkeys(name for layer in layers for name in layer.parts):
        parts.append(_label(name, y + 13))
        for layer in layers:
            part = layer.parts.get(name)
            x = at[layer.number]
            if part is None:
                parts.append(f'<rect class="none" x="{x}" y="{y + 7}" width="{wide - GAP}" height="2"/>')
                continue
            mark = version(part.name)
            parts.append(
                f'<g class="part{" other" if mark else ""}" data-block="{escape(part.name)}"><title>'
                f"layer {layer.number}: {escape(part.name)}</title>"
                f'<rect class="f{layer.colour}" x="{x}" y="{y}" width="{wide - GAP}" height="{ROW - 3}" rx="3"/>'
                f'<text class="in" x="{x + (wide - GAP) / 2}" y="{y + 11.5}">{mark}</text></g>'
            )
        y += ROW
    for name, sizes, unit in (
        ("weights", [layer.weights for layer in layers], "in the file"),
        ("KV cache", [layer.cache for layer in layers], cache_unit),
    ):
        parts += _bars(name, sizes, unit, layers, at, wide, y)
        y += BARS + 8
    return (
        f'<div class="scroll"><svg class="stack" viewBox="0 0 {width} {y + 4}" style="min-width:{width * 0.95:.0f}px;'
        f'max-width:{width * 1.25:.0f}px" role="img" aria-label="The stack of {len(layers)} layers">'
        f"{''.join(parts)}</svg></div>"
    )


def _label(text: str, y: float) -> str:
    return f'<text class="label" x="{LABELS - 10}" y="{y}">{escape(text)}</text>'


def _arc(x: float, donor: float, wide: int, top: int, colour: int) -> str:
    """From a layer without a cache of its own to the layer whose cache it reads."""
    a, b, y = x + (wide - GAP) / 2, donor + (wide - GAP) / 2, top - 3
    high = y - min(REACH, 4 * abs(a - b) / wide) / 0.75  # such a curve goes up three quarters of the way
    return (
        f'<path class="arc s{colour}" d="M{a} {y}C{a} {high:.1f} {b} {high:.1f} {b} {y - 4}"/>'
        f'<path class="tip f{colour}" d="M{b - 3.5} {y - 5}h7l-3.5 6z"/>'
    )


def _bars(
    name: str, sizes: Sequence[float], unit: str, layers: Sequence[Layer], at: Mapping[int, int], wide: int, y: int
) -> Iterator[str]:
    """A row of bars, the highest as high as there is room."""
    most = max(sizes) or 1
    yield _label(name, y + BARS - 4)
    yield f'<text class="label small" x="{LABELS - 10}" y="{y + 11}">{escape(size(most))}</text>'
    for layer, count in zip(layers, sizes, strict=True):
        high = (BARS - 4) * count / most
        yield (
            f"<g><title>layer {layer.number}: {escape(size(count))} {escape(unit)}</title>"
            f'<rect class="f{layer.colour} soft" x="{at[layer.number]}" y="{y + BARS - high:.1f}" '
            f'width="{wide - GAP}" height="{high:.1f}" rx="2"/></g>'
        )
    yield f'<path class="axis" d="M{LABELS} {y + BARS + 0.5}H{LABELS + wide * len(layers) - GAP}"/>'


def kinds_table(module: Module) -> str:
    """The legend: what each kind sets."""
    keys = list(dict.fromkeys(key for _, _, entries in module.kinds for key, _ in entries))
    rows = [
        [
            Html(f'<i class="dot f{place % PALETTE}"></i><b>{escape(name)}</b>'),
            len(layers),
            layer_ranges(layers),
            *(plain(dict(entries).get(key)) for key in keys),
        ]
        for place, (name, layers, entries) in enumerate(module.kinds)
    ]
    return table(rows, ["kind", "layers", "which", *keys], "lr", "kinds") if rows else ""


def versions(module: Module, layers: Sequence[Layer]) -> str:
    """What tells the versions of a block apart within one kind: statements of one that the other has not."""
    blocks = {part.name: part for layer in layers for part in (layer.block, *layer.parts.values())}
    items = []
    for name, block in blocks.items():
        if not version(name):
            continue
        first = blocks.get(name.rsplit(".", 1)[0])
        if first is None:
            continue
        ours, theirs = _essence(module, block), _essence(module, first)
        gone = [text for text in theirs if text not in ours]
        new = [text for text in ours if text not in theirs]
        which = layer_ranges(layer.number for layer in layers if block in (layer.block, *layer.parts.values()))
        said = "".join(f'<span class="del">{escape(text)}</span>' for text in gone)
        said += "".join(f'<span class="ins">{escape(text)}</span>' for text in new)
        if said:
            link = f'<button class="link" data-block="{escape(name)}">{escape(name)}</button>'
            items.append([Html(link), which, Html(f'<span class="delta">{said}</span>')])
    return table(items, ["version", "layers", "what is gone and what is new"], css="versions") if items else ""


def _essence(module: Module, block: Block) -> list[str]:
    """A block's statements without the names of values, which say nothing about what is computed."""
    found = []
    for item, _, text in statements(module, block):
        if item.op in ("reshape", "position", "call"):
            continue
        weights = re.findall(r"@(?:blk\.\{i\}\.)?([\w.]+?)(?:\.weight)?(\[[^\]]*\])", text)
        attrs = re.search(r"\{(?!i\})[^}]*\}$", text)
        plane = f" {item['plane']} of layer {item['slot']}" if item.op == "cache" else ""
        inside = " ".join(f"{name}{shape}" for name, shape in weights)
        kept = attrs[0] if attrs and item.op not in ("cache", "cache_write", "rms_norm") else ""
        kept = f" {item['plane']}" if item.op == "cache_write" else kept
        found.append(" ".join(f"{item.op}{plane} {inside}{kept}".split()))
    return found
