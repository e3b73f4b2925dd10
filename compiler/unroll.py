"""Block form to unrolled form: every layer inline, tensor names and storage formats concrete."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .dims import Dim, evaluate
from .errors import BrioletteError
from .ir import Block, Module, Node, Type, rebuilt, substitute_attr, topological
from .ops import attributes, node


def unroll(module: Module) -> Module:
    """The module with calls and layers inlined. A cache slot becomes the writes of its layer.

    Raises BrioletteError where a layer reads a slot that no earlier layer wrote.
    """
    return _Inliner(module).run()


class _Inliner:
    def __init__(self, module: Module):
        self.module = module
        self.formats = {t.name: t.format for t in module.tensors}
        self.planes: dict[tuple[int, str], Node] = {}
        self.origins: dict[Node, tuple[Any, ...]] = {}
        self.names: dict[Node, str] = {}
        self.places: dict[Node, tuple[int | None, str]] = {}
        self.behind: dict[Node, tuple[Any, ...]] = {}

    def run(self) -> Module:
        outputs = self.inline(self.module.outputs, {}, None, "main")
        known: dict[str, Any] = {"origins": self.origins, "names": self.names, "places": self.places}
        return replace(self.module, form="unrolled", outputs=outputs, **known, behind=self.behind)

    def inline(
        self, roots: tuple[Node, ...], bound: dict[Node, Node], layer: int | None, block: str
    ) -> tuple[Node, ...]:
        done = dict(bound)
        for item in topological(roots):
            if item not in done:
                done[item] = self.rebuild(item, tuple(done[arg] for arg in item.args), layer)
                self.carry(item, done[item], layer)
                self.places.setdefault(done[item], (layer, block))
        return tuple(done[root] for root in roots)

    def rebuild(self, item: Node, args: tuple[Node, ...], layer: int | None) -> Node:
        values: dict[str, Dim] = {} if layer is None else {"i": layer}
        attrs = {key: substitute_attr(value, values) for key, value in attributes(item).items()}
        match item.op:
            case "weight":
                attrs["type"] = Type(attrs["type"].shape, self.formats[attrs["name"]])
            case "dequant" if args[0].type.dtype == "f32":
                return args[0]
            case "cache":
                return self.plane(evaluate(attrs["slot"], {}), attrs["plane"])
            case "call":
                return self.apply(attrs["block"], args, layer)
            case "layers":
                state = args[0]
                for index, block in attrs["table"]:
                    state = self.apply(block, (state, *args[1:]), index)
                return state
        made = node(item.op, *args, **attrs)
        if item.op == "cache_write":
            self.planes[evaluate(attrs["slot"], {}), attrs["plane"]] = made
        return made

    def apply(self, block: Block, args: tuple[Node, ...], layer: int | None) -> Node:
        roots = (*block.effects, block.result)
        return self.inline(roots, dict(zip(block.params, args, strict=True)), layer, block.name)[-1]

    def plane(self, slot: int, plane: str) -> Node:
        found = self.planes.get((slot, plane))
        if found is None:
            raise BrioletteError(f"cache[{slot}] is read before any layer has stored into it")
        return found

    def carry(self, before: Node, after: Node, layer: int | None) -> None:
        lines = self.module.origins.get(before, ())
        if lines:
            self.origins[after] = tuple(dict.fromkeys((*self.origins.get(after, ()), *lines)))
        if before in self.module.behind:
            self.behind.setdefault(after, self.module.behind[before])
        name = self.module.names.get(before)
        if name is not None:
            self.names.setdefault(after, name if layer is None else f"{name}.{layer}")


def bind(module: Module, values: dict[str, Dim]) -> Module:
    """The module with symbols fixed, such as T = 1 for a decode step."""

    def visit(item: Node, args: tuple[Node, ...]) -> Node:
        attrs = {key: substitute_attr(value, values) for key, value in attributes(item).items()}
        return node(item.op, *args, **attrs)

    return rebuilt(module, visit)
