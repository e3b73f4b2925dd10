"""An architecture meets a model file: syntax tree + header -> module in block form.

Each layer's block is elaborated for that layer; layers whose blocks come out equal share one. Every
tensor and every metadata key of the architecture must be read, or ignored by name, or it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from briolette.spec import syntax as ast
from briolette.spec.errors import Span, SpecError

from .coverage import check_keys, check_tensors, check_used
from .dims import Dim, symbol
from .expressions import LAYER, UNKNOWN, CacheSlot, Evaluator, Frame, Layer, dim_of
from .header import Header
from .ir import Block, Module, Node, Type
from .ops import node

TOKENS = symbol("T")


def elaborate(tree: ast.Architecture, header: Header) -> Module:
    """The program of `tree` for the file `header` describes, in block form.

    Raises SpecError, with the spec's line, where the two do not fit each other.
    """
    return Elaborator(tree, header).module()


class Elaborator:
    """Knows the declarations of one architecture and the file they are read against."""

    def __init__(self, tree: ast.Architecture, header: Header):
        self.tree, self.header = tree, header
        if header.architecture and header.architecture != tree.name:
            raise SpecError(f"{header.source} is of architecture {header.architecture}, the spec is for {tree.name}")
        self.params = {p.name: p for p in tree.of(ast.Param)}
        self.lets = {p.name: p for p in tree.of(ast.Let)}
        self.kinds = list(tree.of(ast.Kind))
        self.blocks = {b.name: b for b in tree.of(ast.Block)}
        self.dims: dict[str, Dim | None] = {n: None for d in tree.of(ast.DimDecl) for n in d.names} | {"T": TOKENS}
        self.evaluator = Evaluator(self)
        self.known: dict[Any, Any] = {}  # parameters and kinds already evaluated
        self.consumed: set[str] = set()
        self.ignored: set[str] = set()
        self.caches: dict[int, tuple[Type, ...]] = {}
        self.variants: dict[str, dict[tuple[Any, ...], Block]] = {}
        self.origins: dict[Node, tuple[Span, ...]] = {}
        self.value_names: dict[Node, str] = {}
        self.layer_count = 0
        self.now: Layer | None = None  # the layer being elaborated, for messages

    def module(self) -> Module:
        models = list(self.tree.of(ast.Model))
        if len(models) != 1:
            raise SpecError(f"{self.tree.span.file}: an architecture has one `model`, this has {len(models)}")
        check_used(self.tree, self.fail)
        model, frame = models[0], Frame()
        if len(model.args) != 1:
            self.fail("model takes one argument, the tokens", model.span)
        frame.values[model.args[0].name] = node("tokens", rows=TOKENS)
        result = self.run(model.body, frame)
        if result is None:
            self.fail("model returns nothing", model.span)
        result = self.evaluator.annotate(result, model.result, frame, model.span)
        check_keys(self.tree, self.header)
        check_tensors(self.tree, self.header, self.consumed | self.ignored)
        return Module(
            self.tree.name,
            "blocks",
            outputs=(result,),
            tensors=tuple(t for name, t in self.header.tensors.items() if name in self.consumed),
            kinds=tuple(self._kind_table()),
            origins=self.origins,
            names=self.value_names,
        )

    # --- what the evaluator asks ---------------------------------------------------------------------

    def fail(self, message: str, span: Span, hint: str = "") -> NoReturn:
        if self.now is not None:
            kind = self.kind_of(self.now)
            message += f" (in layer {int(self.now)}{f', {kind}' if kind else ''})"
        raise SpecError(message, span, self.tree.source, hint) from None

    def remember(self, made: Node, span: Span) -> None:
        seen = self.origins.get(made, ())
        if span not in seen:
            self.origins[made] = (*seen, span)

    def names(self) -> list[str]:
        entries = {e.name for k in self.kinds for e in k.body.lines if isinstance(e, ast.Entry)}
        return [*self.params, *self.lets, *self.dims, *sorted(entries)]

    def lookup(self, name: str, frame: Frame, span: Span) -> Any:
        """A parameter, a dimension, or what the layer's kind says; UNKNOWN where `name` is none of these."""
        if name in self.dims:
            if self.dims[name] is None:
                self.fail(f"the size of `{name}` is not known yet", span)
            return self.dims[name]
        if self.indexed(name):
            self.fail(f"`{name}` has a value per layer: write `{name}[i]`", span)
        for declared in (self.params, self.lets):
            if name in declared:
                return self._once(name, lambda: self.evaluator.value(declared[name].value, Frame()))
        if frame.layer is not None:
            kind = self._kind(frame.layer)
            for entry in kind.body.lines if kind else ():
                if isinstance(entry, ast.Entry) and entry.name == name:
                    return self._once((name, int(frame.layer)), lambda: self._entry(kind, entry, frame.layer))
        return UNKNOWN

    def indexed(self, name: str) -> bool:
        declared = self.params.get(name) or self.lets.get(name)
        return name == "kind" or (declared is not None and declared.index is not None)

    def per_layer(self, name: str, index: Any, span: Span) -> Any:
        """`KV[i]`: the file's value for a layer, be it one for all or one for each."""
        if not isinstance(index, int) or isinstance(index, bool):
            self.fail(f"`{name}` is indexed by a layer number", span)
        if name == "kind":
            return self.kind_of(index)
        declared = self.params.get(name) or self.lets[name]
        return self._once((name, int(index), type(index)), lambda: self._indexed(declared, index, span))

    def kind_of(self, layer: int) -> str:
        kind = self._kind(layer)
        return kind.name if kind else ""

    def unknown_dim(self, name: str) -> bool:
        return name in self.dims and self.dims[name] is None

    def bind_dim(self, name: str, size: Dim) -> None:
        self.dims[name] = size

    def position(self, rows: Dim) -> Node:
        return node("position", rows=rows)

    def read_cache(self, cache: CacheSlot, frame: Frame, span: Span) -> tuple[Node, ...]:
        slot = cache.slot
        if isinstance(slot, bool) or not isinstance(slot, int):
            self.fail("a cache slot is a layer number", span)
        if int(slot) in frame.stored:
            return frame.stored[int(slot)]
        types = self.caches.get(int(slot))
        if types is None:
            self.fail(f"nothing has been stored in cache[{int(slot)}] before this", span)
        at = dim_of(slot)
        return tuple(node("cache", slot=at, plane=p, type=t) for p, t in zip("kv", types, strict=True))

    def call_block(self, block: ast.Block, args: list[Any], frame: Frame, span: Span) -> Node:
        made, values = self.block(block, args, frame, span)
        return self.evaluator.make("call", span, *values, block=made)

    # --- blocks and statements -----------------------------------------------------------------------

    def block(self, block: ast.Block, args: list[Any], outer: Frame, span: Span) -> tuple[Block, tuple[Node, ...]]:
        """The block elaborated for these arguments; those that depend on tokens become its parameters."""
        if len(args) != len(block.args):
            names = ", ".join(a.name for a in block.args)
            self.fail(f"{block.name} takes {len(block.args)} arguments ({names}), not {len(args)}", span)
        layer = next((a for a in args if isinstance(a, Layer)), outer.layer)
        frame = Frame(prefix=block.prefix or outer.prefix, layer=layer)
        params: list[Node] = []
        values: list[Node] = []
        for declared, value in zip(block.args, args, strict=True):
            bound = value
            if isinstance(value, Node):
                value = self.evaluator.plain(value, span)
                bound = node("param", name=declared.name, type=value.type)
                params.append(bound)
                values.append(value)
                if declared.shape is not None:
                    self.evaluator.annotate(bound, declared.shape, frame, span)
            frame.values[declared.name] = bound
        result = self.run(block.body, frame)
        if result is None:
            self.fail(f"block {block.name} returns nothing", block.span)
        result = self.evaluator.annotate(result, block.result, frame, block.span)
        return self._variant(block.name, layer, tuple(params), result, tuple(frame.effects)), tuple(values)

    def _variant(self, name: str, layer: Layer | None, *content: Any) -> Block:
        """One block per distinct content, named after its kind of layer."""
        if layer is not None and self.kind_of(layer):
            name = f"{name}.{self.kind_of(layer)}"
        known = self.variants.setdefault(name, {})
        if content not in known:
            known[content] = Block(name if not known else f"{name}.{len(known) + 1}", *content)
        return known[content]

    def run(self, body: ast.Body, frame: Frame) -> Any:
        """Runs statements; the value of `return`, or None where there is none."""
        for line in body.lines:
            match line:
                case ast.Assign(name=name, value=value, when=when):
                    if when is None or self.evaluator.test(when, frame):
                        self.assign(name, self.evaluator.value(value, frame), frame, line.span)
                case ast.Store():
                    self.store(line, frame)
                case ast.Branch(test=test, then=then, otherwise=otherwise):
                    chosen = then if self.evaluator.test(test, frame) else otherwise
                    result = self.run(chosen, frame) if chosen is not None else None
                    if result is not None:
                        return result
                case ast.Loop():
                    self.loop(line, frame)
                case ast.Unread(names=names):
                    self.ignored |= {self.evaluator.tensor_name(n.text, frame)[1] for n in names}
                case ast.Return(value=value):
                    result = self.evaluator.value(value, frame)
                    if not isinstance(result, Node):
                        self.fail("a block returns a value that depends on tokens", line.span)
                    return result
        return None

    def assign(self, name: str, value: Any, frame: Frame, span: Span) -> None:
        if name in self.params or name in self.lets or name in self.dims:
            self.fail(f"`{name}` is a parameter of the architecture and cannot be assigned", span)
        if isinstance(value, Node) and value.op not in ("param", "weight"):
            self.value_names.setdefault(value, name)
        frame.values[name] = value

    def store(self, line: ast.Store, frame: Frame) -> None:
        slot = self.evaluator.value(line.slot, frame)
        if line.cache != "cache" or len(line.values) != 2:
            self.fail("a layer stores its keys and values with `cache[i] <- k, v`", line.span)
        if not isinstance(slot, Layer):
            self.fail("a layer stores into its own cache, cache[i]", line.slot.span)
        planes = []
        for plane, expr in zip("kv", line.values, strict=True):
            value = self.evaluator.tensor_arg(self.evaluator.value(expr, frame), plane, expr.span)
            pos = self.position(value.shape[0])
            planes.append(self.evaluator.make("cache_write", line.span, value, pos, slot=LAYER, plane=plane))
        frame.effects += planes
        frame.stored[int(slot)] = tuple(planes)
        self.caches[int(slot)] = tuple(p.type for p in planes)

    def loop(self, line: ast.Loop, frame: Frame) -> None:
        """`for i in L { x = layer(x, ..., i) }` becomes the layer stack."""
        lines = line.body.lines
        step = lines[0] if len(lines) == 1 else None
        if not (isinstance(step, ast.Assign) and isinstance(step.value, ast.Call) and step.when is None):
            self.fail("the body of a loop is one line, such as `x = layer(x, i)`", line.span)
        block = self.blocks.get(step.value.function)
        if block is None:
            self.fail(f"there is no block `{step.value.function}`", step.value.span)
        count = self.evaluator.value(line.count, frame)
        if not isinstance(count, int) or count < 1:
            self.fail(f"a loop runs a positive number of times, not {count}", line.count.span)
        self.layer_count = count
        table, values = [], ()
        for index in range(count):
            self.now = Layer(index)
            inner = Frame({**frame.values, line.variable: self.now}, frame.prefix, self.now)
            args = [self.evaluator.value(expr, inner) for expr in step.value.args]
            made, values = self.block(block, args, inner, step.value.span)
            if not values or values[0] is not frame.values.get(step.name) or made.result.type != values[0].type:
                self.fail(f"the loop must pass `{step.name}` first and get back the same shape", step.span)
            table.append((index, made))
        self.now = None
        stack = self.evaluator.make("layers", line.span, *values, table=tuple(table))
        self.assign(step.name, stack, frame, line.span)

    # --- parameters and kinds ------------------------------------------------------------------------

    def _once(self, key: Any, compute: Any) -> Any:
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def _indexed(self, declared: ast.Param | ast.Let, index: int, span: Span) -> Any:
        assert declared.index is not None
        value = self.evaluator.value(declared.value, Frame({declared.index: index}))
        if isinstance(value, list):
            if not 0 <= index < len(value):
                self.fail(f"`{declared.name}` has {len(value)} values, layer {int(index)} has none", span)
            return value[index]
        return value

    def _kind(self, layer: int) -> ast.Kind | None:
        found: ast.Kind | None = self._once(("kind", int(layer)), lambda: self._find_kind(layer))
        return found

    def _find_kind(self, layer: int) -> ast.Kind | None:
        for kind in self.kinds:
            if kind.test is None or self.evaluator.test(kind.test, Frame({"i": int(layer)})):
                return kind
        return None

    def _entry(self, kind: ast.Kind, wanted: ast.Entry, layer: Layer | None) -> Any:
        """A kind's entry; entries above it are visible to it."""
        frame = Frame({"i": layer}) if layer is not None else Frame()
        for entry in kind.body.lines:
            assert isinstance(entry, ast.Entry)
            frame.values[entry.name] = self.evaluator.value(entry.value, frame)
            if entry is wanted:
                break
        return frame.values[wanted.name]

    def _kind_table(self) -> Iterable[tuple[str, tuple[int, ...], tuple[tuple[str, Any], ...]]]:
        for kind in self.kinds:
            layers = tuple(i for i in range(self.layer_count) if self._kind(i) is kind)
            if not layers:
                continue
            frame = Frame(layer=Layer(layers[0]))
            rows = []
            for entry in kind.body.lines:
                assert isinstance(entry, ast.Entry)
                value = self.evaluator.name(entry.name, entry.span, frame)
                rows.append((entry.name, value["name"] if isinstance(value, Node) and value.op == "weight" else value))
            yield kind.name, layers, tuple(rows)
