"""The program as plain data for a page: blocks and their ops with lines, tensors, costs, stories; stages with IR."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from briolette.backends.formats import element_bytes
from briolette.compiler.ir import Block, Module, Node, called, layers_of_blocks, nodes_of, topological
from briolette.compiler.ops import OPS, weight_below
from briolette.compiler.pipeline import Trace
from briolette.compiler.text import layer_ranges, statements

from .costs import MAIN, BlockCosts, Layers, Step, numbers
from .follow import Instances, Program, Story

# What becomes of ops that exist in block form only, or that come from outside of the program.
ENDS = {
    "call": "inlined: the block's own ops stand here",
    "layers": "every layer written out",
    "cache": "stands for what that layer wrote",
    "tokens": "given to each step",
    "position": "given to each step",
}


def blocks_data(front: Trace, programs: Sequence[Program], steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Every block of block form, `main` first, then callers before what they call."""
    module = front.modules["elaborated"]
    layers, instances = layers_of_blocks(module), Instances(module)
    stories = {program.form: Story(program) for program in programs}
    costs = {step.name: BlockCosts(module, layers, instances, stories[step.name], step) for step in steps}
    stored = {t.name: t for t in module.tensors}
    found = []
    for block in (None, *_callers_first(module)):
        name = MAIN if block is None else block.name
        where: Layers = (None,) if block is None else layers.get(name, (None,))
        ops = []
        for at, (item, label, text) in enumerate(statements(module, block)):
            ops.append(
                {
                    "id": f"{name}/{at}",
                    "name": label,
                    "op": item.op,
                    "text": text,
                    "type": str(item.type),
                    "lines": spans(module, item),
                    "args": [str(arg.type) for arg in item.args],
                    "tensors": _tensors(item, where, stored),
                    "calls": [inner.name for inner in called(item)],
                    "cost": {key: numbers(c.of(name, item, where)) for key, c in costs.items()},
                    "story": {
                        form: _story(item, story, instances.of(name, item, where)) for form, story in stories.items()
                    },
                }
            )
        roots = module.outputs if block is None else (block.result,)
        names = {item: label for item, label, _ in statements(module, block)}
        totals = {key: numbers(c.total() if block is None else c.of_block(block, where)) for key, c in costs.items()}
        found.append(
            {
                "name": name,
                "params": [] if block is None else [[f"%{p['name']}", str(p.type)] for p in block.params],
                "result": [names.get(root, "") for root in roots],
                "type": str(roots[0].type),
                "layers": "" if block is None else layer_ranges(layer for layer in where if layer is not None),
                "count": len(where),
                "cost": totals,
                "ops": ops,
            }
        )
    return found


def _callers_first(module: Module) -> Iterable[Block]:
    """Every block, in the order in which somebody reads who follows the calls."""
    found: dict[Block, None] = {}

    def visit(roots: Iterable[Node]) -> None:
        inner = [block for item in topological(roots) for block in called(item)]
        for block in dict.fromkeys(inner):
            if block not in found:
                found[block] = None
                visit(block.roots)

    visit(module.roots)
    return found


def spans(module: Module, item: Node) -> list[list[int]]:
    """The stretches of the spec that a node came from: line, column, and the column where it ends (0: a later line)."""
    return [[s.line, s.col, s.end_col if s.end_line == s.line else 0] for s in module.origins.get(item, ())]


def _tensors(item: Node, layers: Layers, stored: dict[str, Any]) -> list[dict[str, Any]]:
    """The tensors that an op is given, each with its shape, and with its formats and bytes over the layers."""
    found = []
    for weight in _weights(item):
        formats_of: dict[str, list[int]] = {}
        size = 0.0
        for layer in layers:
            tensor = stored.get(weight["name"].replace("{i}", str(layer)))
            if tensor is not None:
                formats_of.setdefault(tensor.format, []).append(-1 if layer is None else layer)
                size += math.prod(tensor.shape) * element_bytes(tensor.format)
            if "{i}" not in weight["name"]:
                break  # one tensor for all layers
        found.append(
            {
                "name": weight["name"],
                "shape": str(weight.type).split("]")[0] + "]",
                "formats": {name: layer_ranges(i for i in which if i >= 0) for name, which in formats_of.items()},
                "bytes": round(size),
            }
        )
    return found


def _weights(item: Node) -> Iterable[Node]:
    return filter(None, map(weight_below, item.args))


def _story(item: Node, story: Story, instances: dict[int | None, list[Node]]) -> list[dict[str, Any]]:
    """What happened to an op, once for all layers in which the same did."""
    if item.op in ENDS:
        return [{"layers": "", "events": [["unrolled", ENDS[item.op], []]]}]
    groups: dict[tuple[tuple[str, str], ...], tuple[list[int], list[dict[str, None]]]] = {}
    for layer, nodes in instances.items():
        events = story.of(nodes[0]) if nodes else (("unrolled", "computed in another block, once for all", ""),)
        which, kernels = groups.setdefault(
            tuple((stage, text) for stage, text, _ in events), ([], [{} for _ in events])
        )
        if layer is not None:
            which.append(layer)
        for names, (_, _, kernel) in zip(kernels, events, strict=True):
            names |= {kernel: None} if kernel else {}
    return [
        {
            "layers": layer_ranges(which),
            "events": [[stage, text, list(names)] for (stage, text), names in zip(told, kernels, strict=True)],
        }
        for told, (which, kernels) in groups.items()
    ]


def stages_data(trace: Trace) -> list[dict[str, Any]]:
    """Every stage: nodes, seconds, how often each rule applied, and its whole IR, deflated."""
    return [
        {
            "name": name,
            "nodes": sum(1 for _ in nodes_of(module)),
            "seconds": round(trace.seconds[name], 4),
            "hits": dict(trace.hits[name].most_common()),
            "ir": packed(sections(module)),
        }
        for name, module in trace.modules.items()
    ]


def packed(value: object) -> str:
    """JSON, deflated, in base64: a page unpacks it when somebody looks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def sections(module: Module) -> list[dict[str, Any]]:
    """A module's IR in parts to open one by one: its blocks, and `main`, layer by layer once layers are written out."""
    found = []
    for block in module.blocks():
        params = ", ".join(f"%{p['name']}: {p.type}" for p in block.params)
        rows = [_row(module, *statement) for statement in statements(module, block)]
        found.append({"title": block.name, "about": f"({params})", "group": "blocks", "rows": rows})
    rows = list(statements(module))
    places = [module.places.get(item, (None, ""))[0] for item, _, _ in rows]
    inner = [at for at, layer in enumerate(places) if layer is not None]
    parts: dict[str, list[list[Any]]] = {"main, before the layers" if inner else "main": []}
    for at, (layer, row) in enumerate(zip(places, rows, strict=True)):
        outside = "main, after the layers" if inner and at > inner[-1] else next(iter(parts))
        parts.setdefault(outside if layer is None else f"layer {layer}", []).append(_row(module, *row))
    found += [{"title": title, "about": "", "group": "main", "rows": of} for title, of in parts.items() if of]
    return found


def _row(module: Module, item: Node, name: str, text: str) -> list[Any]:
    return [f"{name} = {text} : {item.type}", [s.line for s in module.origins.get(item, ())]]


def op_docs(blocks: Iterable[dict[str, Any]]) -> dict[str, str]:
    """What each op that is used means, in the op table's words."""
    return {name: OPS[name].doc for name in sorted({op["op"] for block in blocks for op in block["ops"]})}
