"""What a program costs: floating point operations, and bytes of weights, caches and values that it moves.

Everything follows from the op table: `flops` and `reads` of each op's declaration. A weight's bytes depend on its
block format, which backends know: whoever asks says how many bytes an element of a format takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .codecs import codec_named, is_codec
from .dims import Dim, evaluate
from .ir import Block, Module, Node, Type, called, topological
from .ops import OPS, weight_below

ELEMENT_BYTES = {"f32": 4, "i32": 4, "f16": 2, "bf16": 2, "q8": 1.5}  # of values and caches


def value_bytes(type: Type) -> float:
    """Bytes that an element of a value, or of a cache plane, takes; a codec's scales among them."""
    if not is_codec(type.dtype):
        return ELEMENT_BYTES[type.dtype]
    size = type.shape[-1]
    assert isinstance(size, int)
    return codec_named(type.dtype).head_bytes(size) / size


@dataclass(frozen=True)
class Cost:
    """Operations, and bytes of weights read, of KV cache read and written, and of values read and written."""

    flops: float = 0
    weights: float = 0
    cache: float = 0
    values: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weights + other.weights,
            self.cache + other.cache,
            self.values + other.values,
        )

    @property
    def bytes(self) -> float:
        """All bytes moved."""
        return self.weights + self.cache + self.values


class Costs:
    """Costs within one module, of a step of `tokens` tokens that ends at position `context`.

    `element_bytes(format)` says how many bytes, a fraction perhaps, an element of a stored format takes.
    """

    def __init__(
        self, module: Module, element_bytes: Callable[[str], float], tokens: int = 1, context: int = 4096
    ) -> None:
        self.sizes = {"T": tokens, "C": context}
        self.element_bytes = element_bytes
        self.formats = {t.name: t.format for t in module.tensors}
        self.module = module
        self._blocks: dict[tuple[Block, int | None], Cost] = {}

    def total(self) -> Cost:
        """Of the whole step."""
        return self._sum(self.module.roots, None)

    def of_block(self, block: Block, layer: int | None = None) -> Cost:
        """Of one run of a block, in a layer where it names that layer's tensors."""
        key = block, layer
        if key not in self._blocks:
            self._blocks[key] = self._sum(block.roots, layer)
        return self._blocks[key]

    def of(self, item: Node, layer: int | None = None) -> Cost:
        """Of one node: a call costs what its block does, the layer stack what all layers do."""
        if item.op == "layers":
            parts = (self.of_block(block, index) for index, block in item["table"])
            return sum(parts, Cost())
        if item.op == "call":
            return self.of_block(item["block"], layer)
        if item.op == "fused":
            return self._fused(item, layer)
        return self._plain(item, layer, {})

    def _fused(self, item: Node, layer: int | None) -> Cost:
        """What is inside costs operations, weights and cache; values move at the ends only."""
        block = item["block"]
        bound = dict(zip(block.params, item.args, strict=True))
        inside = sum((self._plain(n, layer, bound) for n in topological(block.roots)), Cost())
        ends = [arg for arg in item.args if weight_below(arg) is None and not _is_plane(arg) and arg.op != "const"]
        ends += [] if _is_plane(item) else [item]
        values = sum(math.prod(self._shape(n.type, item)) * value_bytes(n.type) for n in ends)
        return replace(inside, values=values)

    def _plain(self, item: Node, layer: int | None, bound: Mapping[Node, Node]) -> Cost:
        """An op by itself. Inside a fused block, `bound` tells what its parameters are outside."""
        declared = OPS[item.op]
        if not item.args or "view" in declared.traits or weight_below(item) is not None:
            return Cost()
        shapes = [self._shape(t, item) for t in (item.type, *(arg.type for arg in item.args))]
        weights = cache = values = 0.0
        for arg, count in zip(item.args, declared.reads(*shapes), strict=True):
            source = bound.get(arg, arg)
            stored = weight_below(source)
            if stored is not None:
                weights += count * self._stored(stored, layer)
            elif _is_plane(source):
                cache += count * value_bytes(source.type)
            elif source.op != "const":
                values += count * value_bytes(source.type)
        if item.op == "cache_write":
            cache += math.prod(shapes[1]) * value_bytes(item.type)
        else:
            values += math.prod(shapes[0]) * value_bytes(item.type)
        return Cost(declared.flops(*shapes), weights, cache, values)

    def _sum(self, roots: tuple[Node, ...], layer: int | None) -> Cost:
        return sum((self.of(item, layer) for item in topological(roots)), Cost())

    def _stored(self, weight: Node, layer: int | None) -> float:
        """Bytes an element of a weight takes in the file."""
        name = weight["name"] if layer is None else weight["name"].replace("{i}", str(layer))
        format = weight.type.dtype if weight.type.dtype != "stored" else self.formats.get(name, "f32")
        return self.element_bytes(format)

    def _shape(self, type: Type, reader: Node) -> tuple[int, ...]:
        """A shape in numbers, as `reader` sees it: of a cache, no more than its window."""
        window = reader.get("window")
        sizes = self.sizes if window is None else {**self.sizes, "C": min(self.sizes["C"], window)}
        return tuple(evaluate(dim, sizes) for dim in type.shape)


def kv_token_bytes(module: Module, dtype: str | None = None) -> Mapping[int, int]:
    """Bytes of K and V that each cache slot (a layer's) keeps for every token; with elements of
    `dtype`, if given."""
    found: dict[int, int] = {}

    def visit(roots: tuple[Node, ...], layer: int | None) -> None:
        for item in topological(roots):
            if item.op == "cache_write" and not item["plane"].startswith("near"):
                slot = _number(item["slot"], layer)
                size = math.prod(_number(dim, layer) for dim in item.shape[1:])
                found[slot] = found.get(slot, 0) + int(
                    size * (ELEMENT_BYTES[dtype] if dtype else value_bytes(item.type))
                )
            elif item.op == "layers":
                for index, block in item["table"]:
                    visit(block.roots, index)
            else:
                for block in called(item):
                    visit(block.roots, layer)

    visit(module.roots, None)
    return dict(sorted(found.items()))


def _number(dim: Dim, layer: int | None) -> int:
    return evaluate(dim, {} if layer is None else {"i": layer})


def _is_plane(item: Node) -> bool:
    """Whether a value is a plane of the KV cache."""
    if item.op == "fused":
        item = item["block"].result
    return item.op in ("cache", "cache_write")
