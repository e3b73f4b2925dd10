"""Follows every op of block form through the compiler's stages: into which layers it went, and what became of it.

Stages carry the origins of nodes along. So origins that are nodes, put there in place of spec lines, tell after
any stage which earlier nodes a node stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from briolette.compiler.ir import Module, Node, nodes_of, topological, users
from briolette.compiler.pipeline import Form, Trace, optimise
from briolette.compiler.plan import is_view
from briolette.compiler.unroll import unroll

Events = tuple[tuple[str, str, str], ...]  # stage, what happened, the kernel it happened in (or "")


@dataclass(frozen=True)
class Program:
    """One form of a model's program after every stage.

    `stands_for` tells for the nodes of each stage which unrolled nodes they came from.
    """

    form: str
    trace: Trace
    stands_for: Mapping[str, Mapping[Node, tuple[Node, ...]]]

    @property
    def final(self) -> Module:
        return self.trace.modules["fused"]


def compiled(front: Trace, name: str, form: Form) -> Program:
    """The program of a form, followed. `front` has the stages that all forms share."""
    unrolled = front.modules["unrolled"]
    trace = Trace()
    optimise(replace(unrolled, origins={item: (item,) for item in nodes_of(unrolled)}), form, trace)
    followed = {stage: dict(module.origins) for stage, module in trace.modules.items()}
    for stage, module in trace.modules.items():
        origins = {
            item: tuple(dict.fromkeys(span for source in sources for span in unrolled.origins.get(source, ())))
            for item, sources in module.origins.items()
        }
        trace.modules[stage] = replace(module, origins={item: spans for item, spans in origins.items() if spans})
    whole = Trace({**front.modules, **trace.modules}, {**front.hits, **trace.hits}, {**front.seconds, **trace.seconds})
    return Program(name, whole, followed)


class Instances:
    """Which unrolled nodes each op of block form became, in each layer."""

    def __init__(self, elaborated: Module):
        tagged = unroll(replace(elaborated, origins={item: (item,) for item in nodes_of(elaborated)}))
        self.here: dict[tuple[str, Node], dict[int | None, list[Node]]] = {}
        self.anywhere: dict[tuple[int | None, Node], list[Node]] = {}
        for item in topological(tagged.roots):
            layer, block = tagged.places.get(item, (None, "main"))
            for source in tagged.origins.get(item, ()):
                self.here.setdefault((block, source), {}).setdefault(layer, []).append(item)
                self.anywhere.setdefault((layer, source), []).append(item)

    def of(self, block: str, item: Node, layers: tuple[int | None, ...]) -> dict[int | None, list[Node]]:
        """By layer. What is shared with another block or layer is found there."""
        here = self.here.get((block, item), {})
        return {layer: here.get(layer) or self.anywhere.get((layer, item), []) for layer in layers}


class Story:
    """What happened to unrolled nodes in one form of the program."""

    def __init__(self, program: Program):
        modules = program.trace.modules
        stages = list(modules)
        self.stages = stages[stages.index("unrolled") + 1 :]
        self.before_kernels = stages[stages.index("fused") - 1]
        self.modules = modules
        self.now: dict[str, dict[Node, list[Node]]] = {}
        for stage in self.stages:
            now: dict[Node, list[Node]] = {}
            for item in topological(modules[stage].roots):
                for source in program.stands_for[stage].get(item, ()):
                    now.setdefault(source, []).append(item)
            self.now[stage] = now
        self.merged = {
            stage: Counter(item for items in now.values() for item in items) for stage, now in self.now.items()
        }
        self.readers = {stage: users(modules[stage].roots) for stage in self.stages}
        self.kernels = self._kernels(program)

    def _kernels(self, program: Program) -> dict[Node, list[Node]]:
        """The fused nodes that compute each node of the stage before: a kernel's body is the ops it replaces."""
        before, stands_for = self.before_kernels, program.stands_for
        roots: dict[tuple[object, ...], Node] = {}
        for item in topological(self.modules[before].roots):
            roots.setdefault((stands_for[before].get(item, ()), item.op, item.shape), item)
        found: dict[Node, list[Node]] = {}
        for kernel in topological(program.final.roots):
            if kernel.op == "fused":
                body = kernel["block"].result
                root = roots.get((stands_for["fused"].get(kernel, ()), body.op, body.shape))
                for item in _replaced(root, body) if root is not None else ():
                    found.setdefault(item, []).append(kernel)
        return found

    def of(self, item: Node) -> Events:
        """What the stages did to an unrolled node, in their order; stages that left it alone are not told."""
        told: list[tuple[str, str, str]] = []
        now = [item]
        for stage in self.stages[: self.stages.index("fused")]:
            after = self.now[stage].get(item, [])
            if not after:
                told.append((stage, "dropped: nothing reads it any more", ""))
                return tuple(told)
            if len(after) > len(now) == 1:
                told.append((stage, f"made in parts: {' and '.join(map(_shape, after))}", ""))
            else:
                told += [(stage, text, "") for text in self._change(stage, now[0], after[0])]
            now = after
        told += dict.fromkeys(("fused", text, kernel) for part in now for text, kernel in self._fate(part))
        return tuple(told)

    def _change(self, stage: str, before: Node, after: Node) -> Iterator[str]:
        if after is before:
            return
        if after.op == "const" and before.op != "const":
            yield f"folded into the number {after['value']:g}"
        elif after.op != before.op and self.merged[stage][after] > 1:
            yield f"merged into the {after.op} it stood beside"
        elif after.op != before.op:
            yield f"became {after.op}{self._table(stage, after)}"
        if after.shape != before.shape and after.op == before.op:
            one = stage == "head"
            yield f"{'only the last token: ' if one else ''}{_shape(before)} is now {_shape(after)}"
        if after.type.dtype != before.type.dtype:
            yield f"kept as {after.type.dtype}"

    def _table(self, stage: str, item: Node) -> str:
        """Whether an op now reads something made once for many."""
        for arg in item.args:
            count = len(self.readers[stage][arg])
            if arg.op == "rope_table" and count > 1:
                return f" by a table of angles, which {count} ops share"
        return ""

    def _fate(self, item: Node) -> Iterator[tuple[str, str]]:
        if is_view(item):
            yield "a view: no memory moves, whoever reads it walks the strides", ""
        elif item in self.kernels:
            for kernel in self.kernels[item]:
                inside = [part.op for part in topological(kernel["block"].roots) if part.op not in ("param", "const")]
                inside.remove(item.op)
                others = ", ".join(f"{n} {op}" if n > 1 else op for op, n in Counter(inside).items())
                yield (
                    f"in a {kernel['family']} kernel{f' with {others}' if others else ', alone'}",
                    kernel["block"].name,
                )
        elif item.args:
            yield "a kernel of its own", ""


def _replaced(root: Node, body: Node) -> Iterator[Node]:
    """The nodes that a fused body stands for: both are walked from the result down to what the body is given."""
    pairs, seen = [(root, body)], set()
    while pairs:
        outside, inside = pairs.pop()
        if inside.op in ("param", "const") or outside in seen:
            continue
        seen.add(outside)
        yield outside
        pairs += zip(outside.args, inside.args, strict=True)


def _shape(item: Node) -> str:
    return f"[{', '.join(map(str, item.shape))}]"
