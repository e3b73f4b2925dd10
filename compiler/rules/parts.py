"""Values made for all layers at once, of which the tokens before the last need only the first layers' parts.

`head` narrows what only the last token needs, value by value. Gemma's per-layer inputs are one value with a part for
each layer, [T, L, D], and one product makes all of them. Where slices of the first parts are read for every token and
those of the others for the last one alone, the value is made twice: the first parts, and the others, from the rows of
weights that are theirs. Then `head` can narrow the second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..dims import evaluate
from ..ir import Module, Node, Rebuilder, carry, users
from ..ops import OPS, node, with_args
from .head import has_tokens, needed_in_full


def parted(module: Module, hits: Counter[str] | None = None) -> Module:
    """The unrolled module with such values in two parts."""
    full, readers = needed_in_full(module), users(module.roots)
    cuts = {item: cut for item in readers if item in full and (cut := _cut(item, readers, full))}
    if not cuts:
        return module
    parts: dict[Node, tuple[Node, Node]] = {}
    pieces: list[tuple[Node, Node]] = []

    def visit(item: Node, args: tuple[Node, ...]) -> Node:
        made = with_args(item, args)
        if item in cuts:
            cut, size = cuts[item], evaluate(item.shape[1], {})
            parts[item] = _part(made, 0, cut, pieces), _part(made, cut, size, pieces)
            if hits is not None:
                hits["parts-of-layers"] += 1
        if item.op != "slice" or item.args[0] not in parts:
            return made
        (whole,) = item.args
        late = item["start"] >= cuts[whole]
        before = cuts[whole] if late else 0
        return node("slice", parts[whole][late], axis=1, start=item["start"] - before, stop=item["stop"] - before)

    rebuild = Rebuilder(visit)
    outputs, effects = rebuild(module.outputs), rebuild(module.effects)
    known = carry(module, rebuild.done)
    for whole, piece in pieces:  # they come from the same lines, but are not what these lines name
        for of_nodes in (known["origins"], known["places"]):
            if whole in of_nodes:
                of_nodes.setdefault(piece, of_nodes[whole])
    return replace(module, outputs=outputs, effects=effects, **known)


def _cut(item: Node, readers: dict[Node, list[Node]], full: frozenset[Node]) -> int | None:
    """Where the parts end that are read for every token, if those behind it are read for the last one alone."""
    if not has_tokens(item) or len(item.shape) != 3 or not all(isinstance(size, int) for size in item.shape[1:]):
        return None
    if not _from_product(item) or not _read_once(item, readers):
        return None
    if not all(reader.op == "slice" and reader["axis"] == 1 for reader in readers[item]):
        return None
    always = [reader["stop"] for reader in readers[item] if reader in full]
    late = [reader["start"] for reader in readers[item] if reader not in full]
    return max(always) if always and late and max(always) <= min(late) else None


def _part(item: Node, start: int, stop: int, pieces: list[tuple[Node, Node]]) -> Node:
    """`slice(item, axis=1)`, moved up to the rows of weights where products make the item. Notes what came of what."""
    if not _from_product(item):
        made = node("slice", item, axis=1, start=start, stop=stop)
    elif item.op == "linear":
        x, w = item.args
        made = with_args(item, (x, node("slice", w, axis=0, start=start, stop=stop)))
    elif item.op == "reshape":
        rows, depth = item.shape[0], evaluate(item.shape[2], {})
        flat = _part(item.args[0], start * depth, stop * depth, pieces)
        made = node("reshape", flat, shape=(rows, stop - start, depth))
    else:
        args = (_part(arg, start, stop, pieces) if arg.shape == item.shape else arg for arg in item.args)
        made = with_args(item, tuple(args))
    pieces.append((item, made))
    return made


def _from_product(item: Node) -> bool:
    """Whether a product makes it, and what follows on that acts on each part alone."""
    if item.op == "linear":
        return len(item.shape) == 2
    if item.op == "reshape":
        (x,) = item.args
        return (len(item.shape), len(x.shape)) == (3, 2) and item.shape[0] == x.shape[0] and _from_product(x)
    by_itself = item.op == "rms_norm" and len(item.shape) == 3
    if "elementwise" in OPS[item.op].traits:
        by_itself = all(arg.op == "const" or arg.shape == item.shape for arg in item.args)
    return by_itself and any(_from_product(arg) for arg in item.args if arg.shape == item.shape)


def _read_once(item: Node, readers: dict[Node, list[Node]]) -> bool:
    """Whether nothing else reads what is between an item and its products: it would be made whole as well."""
    between = [arg for arg in item.args if _from_product(arg)] if item.op != "linear" else []
    return all(len(readers[arg]) == 1 and _read_once(arg, readers) for arg in between)
