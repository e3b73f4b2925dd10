"""What values of an unrolled program are called, by everyone who compares values: traces, diffs, reports.

    blk.3.attention.q      the spec's name for it, in its block and layer
    blk.3.attn_q_norm      what the tensor attn_q_norm was used for
    blk.3.attention        what the block returns
    blk.3.cache.v          what goes into the cache
    main.logits            outside of the layers; `main` is the program's output

A value may have several labels; its first is the one it is shown by. Values without any of these are numbered
within their block, by op: `blk.3.ffn.mul.1`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from .dims import symbol
from .ir import Module, Node, topological
from .ops import OPS, weight_below
from .values import bare, stem

_UNSEEN = frozenset({"const", "weight", "dequant", "pack", "position", "cache_write"})
_T = symbol("T")


def labels(module: Module) -> dict[str, Node]:
    """Every label of an unrolled module with the value it stands for, in the program's order.

    Where two values would have one label, the later has `'2` behind it, and so on.
    """
    found: dict[str, Node] = {}
    results = _results(module)
    counts: Counter[str] = Counter()
    for item in topological(module.roots):
        if item.op in _UNSEEN or _weight_of(item) is not None:
            continue
        names = dict.fromkeys(_labels(item, module, results))
        if not names:
            layer, block = module.places.get(item, (None, "main"))
            base = f"{scope(layer)}{stem(block)}.{item.op}"
            counts[base] += 1
            names = {f"{base}.{counts[base]}": None}
        for name in names:
            unique, copy = name, 2
            while unique in found:
                unique, copy = f"{name}'{copy}", copy + 1
            found[unique] = item
    return found


def per_token(module: Module) -> dict[str, Node]:
    """The labels of values with a row for each token, but for the token ids: what a run may be asked for."""
    return {name: n for name, n in labels(module).items() if n.shape[:1] == (_T,) and n.op != "tokens"}


def shown_labels(module: Module) -> dict[Node, str]:
    """The label that each value is shown by."""
    found: dict[Node, str] = {}
    for label, item in labels(module).items():
        found.setdefault(item, label)
    return found


def _labels(item: Node, module: Module, results: dict[Node, list[str]]) -> Iterator[str]:
    layer, block = module.places.get(item, (None, "main"))
    name = module.names.get(item)
    if name is not None:
        yield f"{scope(layer)}{stem(block)}.{name.removesuffix(f'.{layer}')}"
    yield from results.get(item, ())
    for arg in item.args:
        weight = _weight_of(arg)
        if weight is not None:
            yield f"{scope(layer)}{bare(weight['name'])}"


def _results(module: Module) -> dict[Node, list[str]]:
    """What leaves a block: its last value in each layer, and what it puts into the cache."""
    found: defaultdict[Node, list[str]] = defaultdict(list)
    last: dict[tuple[int | None, str], Node] = {}
    for item in topological(module.roots):
        layer, block = module.places.get(item, (None, "main"))
        if item.op == "cache_write":
            found[item.args[0]].append(f"{scope(layer)}cache.{item['plane']}")
        elif block != "main":
            last[layer, block] = item
    if module.outputs:
        found[module.outputs[0]].append("main")
    for (layer, block), item in last.items():
        if item not in module.outputs:
            found[item].append(f"{scope(layer)}{stem(block)}")
    return found


def scope(layer: int | None) -> str:
    """What labels of a layer begin with: `blk.3.`, or nothing outside of the layers."""
    return "" if layer is None else f"blk.{layer}."


def _weight_of(item: Node) -> Node | None:
    """The tensor that a value shows, or makes together with numbers alone: `1 + w` is w's."""
    while (weight := weight_below(item)) is None:
        made_of = [arg for arg in item.args if arg.op != "const"]
        if not OPS[item.op].traits & {"shows", "elementwise"} or len(made_of) != 1:
            return None
        item = made_of[0]
    return weight
