"""An architecture meets a model file: syntax tree + header -> module in block form.

Each layer's block is elaborated for that layer; layers whose blocks come out equal share one. Every
tensor and every metadata key of the architecture must be read, or ignored by name, or it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

from briolette.spec import tree as ast
from briolette.spec.check import check
from briolette.spec.errors import Span, SpecError

from .coverage import check_keys, check_tensors
from .dims import Dim, symbol
from .expressions import Evaluator
from .functions import FUNCTIONS
from .header import Header
from .ir import Block, Module, Node, Type
from .ops import node
from .values import LAYER, UNKNOWN, CacheSlot, Frame, Layer, describe, dim_of, shape_of

TOKENS = symbol("T")
Lines: TypeAlias = dict[Span, None]  # in the order in which they were read


def elaborate(tree: ast.Architecture, header: Header, strict: bool = True) -> Module:
    """The program of `tree` for the file `header` describes, in block form.

    Raises SpecError, with the spec's line, where the two do not fit each other. `strict=False` is for trees
    with something taken out: declarations, keys and tensors that nothing reads any more are no mistake then.
    """
    try:
        return Elaborator(tree, header).module(strict)
    except RecursionError:
        raise SpecError(f"{tree.span.file}: expressions are nested too deeply, or refer to each other") from None


class Elaborator:
    """Knows the declarations of one architecture and the file they are read against."""

    def __init__(self, tree: ast.Architecture, header: Header):
        self.tree, self.header = tree, header
        if header.architecture and header.architecture != tree.name:
            hint = f"this spec is for {tree.name}; each architecture has a file of its own"
            message = f"{header.source} is a model of the architecture {header.architecture}"
            raise SpecError(message, tree.lines[0].span, tree.source, hint)
        self.params = {p.name: p for p in tree.of(ast.Param)}
        self.lets = {p.name: p for p in tree.of(ast.Let)}
        self.kinds = list(tree.of(ast.Kind))
        self.blocks = {b.name: b for b in tree.of(ast.Block)}
        self.dims: dict[str, Dim | None] = {n: None for d in tree.of(ast.DimDecl) for n in d.names}
        self.dims["T"] = TOKENS
        self.evaluator = Evaluator(self)
        self.known: dict[Any, Any] = {}  # parameters and kinds already evaluated
        self.sources: dict[Any, Lines] = {}  # and the lines that each was made of
        self.computing: dict[Any, None] = {}  # and those being evaluated
        self.lists: dict[str, int] = {}  # lengths of the lists that per-layer parameters come from
        self.consumed: set[str] = set()
        self.ignored: set[str] = set()
        self.caches: dict[int, tuple[Type, ...]] = {}
        self.variants: dict[str, dict[tuple[Any, ...], Block]] = {}
        self.origins: dict[Node, tuple[Span, ...]] = {}
        self.behind: dict[Node, tuple[Span, ...]] = {}
        self.read: Lines = {}  # lines behind the names that the statement at hand has read
        self.value_names: dict[Node, str] = {}
        self.layer_count = 0
        self.now: Layer | None = None  # the layer being elaborated, for messages

    def module(self, strict: bool = True) -> Module:
        for block in self.blocks.values():
            if block.name in FUNCTIONS or block.name == "has":
                self.fail(f"`{block.name}` is a function of the language", block.span, "choose another name")
        if strict:
            check(self.tree)
        for line in self.tree.of(ast.Require):
            self.require(line)
        model, frame = next(self.tree.of(ast.Model)), Frame()
        if len(model.args) != 1:
            self.fail("model takes one argument, the tokens", model.span, "such as `model(tokens: [T]) -> [T, V]`")
        tokens = node("tokens", rows=TOKENS)
        if model.args[0].shape is not None:
            self.evaluator.annotate(tokens, model.args[0].shape, frame, model.args[0].span)
        frame.values[model.args[0].name] = tokens
        result = self.run(model.body, frame)
        if result is None:
            self.fail("model returns nothing", model.span)
        result = self.returned(result, model.result, frame, "model")
        self.check_lists()
        if strict:
            check_keys(self.tree, self.header)
            check_tensors(self.tree, self.header, self.consumed | self.ignored)
        return Module(
            self.tree.name,
            "blocks",
            outputs=(result,),
            tensors=tuple(t for name, t in self.header.tensors.items() if name in self.consumed),
            kinds=tuple(self._kind_table()),
            params=tuple(self._param_table()),
            origins=self.origins,
            names=self.value_names,
            behind=self.behind,
        )

    # --- what the evaluator asks ---------------------------------------------------------------------

    def fail(self, message: str, span: Span, hint: str = "") -> NoReturn:
        if self.now is not None:
            kind = self.known.get(("kind", int(self.now)))
            message += f" (in layer {int(self.now)}{f', {kind.name}' if kind else ''})"
        raise SpecError(message, span, self.tree.source, hint) from None

    def remember(self, made: Node, span: Span) -> None:
        seen = self.origins.get(made, ())
        if span not in seen:
            self.origins[made] = (*seen, span)
        self.behind.setdefault(made, tuple(self.read))

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
        declared = self.params.get(name) or self.lets.get(name)
        if declared is not None:
            line = declared
            self.read[line.span] = None
            return self._read(name, lambda: self.evaluator.value(line.value, Frame()), span)
        if frame.layer is not None:
            kind = self._kind(frame.layer)
            for entry in kind.body.lines if kind else ():
                if isinstance(entry, ast.Entry) and entry.name == name:
                    self.read |= self.sources["kind", int(frame.layer)] | {entry.span: None}
                    return self._entry(entry, frame.layer, span)
        return UNKNOWN

    def indexed(self, name: str) -> bool:
        declared = self.params.get(name) or self.lets.get(name)
        return name == "kind" or (declared is not None and declared.index is not None)

    def per_layer(self, name: str, index: Any, span: Span) -> Any:
        """`KV[i]`: the file's value for a layer, be it one for all or one for each."""
        if name == "kind":
            found = self.kind_of(index, span)
            self.read |= self.sources["kind", int(index)]
            return found
        declared = self.params.get(name) or self.lets[name]
        self.read[declared.span] = None
        return self._read((name, int(index), type(index)), lambda: self._indexed(declared, index, span), span)

    def kind_of(self, layer: int, span: Span | None = None) -> str:
        kind = self._kind(layer, span)
        return kind.name if kind else ""

    def unknown_dim(self, name: str) -> bool:
        return name in self.dims and self.dims[name] is None

    def bind_dim(self, name: str, size: Dim) -> None:
        self.dims[name] = size

    def position(self, rows: Dim) -> Node:
        return node("position", rows=rows)

    def read_cache(self, cache: CacheSlot, frame: Frame, span: Span) -> tuple[Node, ...]:
        slot = cache.slot
        if int(slot) in frame.stored:
            return frame.stored[int(slot)]
        types = self.caches.get(int(slot))
        if types is None:
            hint = "a layer stores with `cache[i] <- k, v` before it or a later layer reads"
            self.fail(f"nothing has been stored in cache[{int(slot)}] before this", span, hint)
        at = dim_of(slot)
        planes = zip("kv", types, strict=True)
        return tuple(self.evaluator.make("cache", span, slot=at, plane=p, type=t) for p, t in planes)

    def call_block(self, block: ast.Block, args: list[Any], frame: Frame, span: Span) -> Node:
        made, values = self.block(block, args, frame, span)
        return self.evaluator.make("call", span, *values, block=made)

    # --- blocks and statements -----------------------------------------------------------------------

    def block(self, block: ast.Block, args: list[Any], outer: Frame, span: Span) -> tuple[Block, tuple[Node, ...]]:
        """The block elaborated for these arguments; those that depend on tokens become its parameters."""
        if len(args) != len(block.args):
            names = ", ".join(a.name for a in block.args)
            plural = "s" * (len(block.args) != 1)
            message = f"{block.name} takes {len(block.args)} argument{plural}, not {len(args)}"
            self.fail(message, span, f"it is {block.name}({names})")
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
                what, takes = f"`{declared.name}`", f"{block.name} takes"
                shaped = self.evaluator.annotate(bound, declared.shape, frame, span, what, takes)
                if shaped is not bound:
                    self.fail(f"{what} is {shape_of(bound)}, {takes} {shape_of(shaped)}", span)
            frame.values[declared.name] = bound
        result = self.run(block.body, frame)
        if result is None:
            self.fail(f"block {block.name} returns nothing", block.span)
        result = self.returned(result, block.result, frame, block.name)
        return self._variant(block.name, layer, tuple(params), result, tuple(frame.effects)), tuple(values)

    def returned(self, result: Node, shape: tuple[ast.Expr, ...], frame: Frame, name: str) -> Node:
        first, last = shape[0].span, shape[-1].span
        span = Span(first.line, first.col, last.end_line, last.end_col, first.file)
        return self.evaluator.annotate(result, shape, frame, span, f"what {name} returns", "its header says")

    def _variant(self, name: str, layer: Layer | None, *content: Any) -> Block:
        """One block per distinct content, named after its kind of layer."""
        if layer is not None and self.kind_of(layer):
            name = f"{name}.{self.kind_of(layer)}"
        known = self.variants.setdefault(name, {})
        if content not in known:
            known[content] = Block(name if not known else f"{name}.{len(known) + 1}", *content)
        return known[content]

    def run(self, body: ast.Body, frame: Frame, condition: Lines | None = None) -> Any:
        """Runs statements; the value of `return`, or None where there is none. What a `condition` that they stand
        under was made of is behind each of them."""
        outer = self.read
        try:
            return self._run(body, frame, condition or {})
        finally:
            self.read = outer

    def _run(self, body: ast.Body, frame: Frame, condition: Lines) -> Any:
        for line in body.lines:
            self.read = dict(condition)
            match line:
                case ast.Assign(name=name, value=value, when=when):
                    if when is None or self.evaluator.test(when, frame):
                        self.assign(name, self.evaluator.value(value, frame), frame)
                        frame.given[name] = line.span
                case ast.Store():
                    self.store(line, frame)
                case ast.Branch(test=test, then=then, otherwise=otherwise):
                    chosen = then if self.evaluator.test(test, frame) else otherwise
                    result = self.run(chosen, frame, self.read) if chosen is not None else None
                    if result is not None:
                        return result
                case ast.Loop():
                    self.loop(line, frame)
                case ast.Unread(names=names):
                    self.ignored |= {self.evaluator.tensor_name(n.text, frame, n.span)[1] for n in names}
                case ast.Return(value=value):
                    result = self.evaluator.value(value, frame)
                    if not isinstance(result, Node):
                        self.fail(
                            f"a block returns a value that depends on tokens, not {describe(result)}",
                            line.span,
                        )
                    return self.evaluator.plain(result, line.span)
        return None

    def assign(self, name: str, value: Any, frame: Frame) -> None:
        if isinstance(value, Node) and value.op not in ("param", "weight"):
            self.value_names.setdefault(value, name)
        frame.values[name] = value

    def store(self, line: ast.Store, frame: Frame) -> None:
        slot = self.evaluator.value(line.slot, frame)
        if not isinstance(slot, Layer):
            hint = "`i` is the layer that the block is called with"
            self.fail("a layer stores into its own cache, `cache[i]`", line.slot.span, hint)
        if int(slot) in self.caches:
            self.fail(f"cache[{int(slot)}] has been stored already", line.span, "a layer stores once")
        planes = []
        for plane, expr in zip("kv", line.values, strict=True):
            value = self.evaluator.value_of(self.evaluator.value(expr, frame), "a cache", expr.span)
            if len(value.shape) != 3:
                self.fail(f"a cache takes heads [T, H, D], not {shape_of(value)}", expr.span)
            pos = self.position(value.shape[0])
            planes.append(self.evaluator.make("cache_write", line.span, value, pos, slot=LAYER, plane=plane))
        frame.effects += planes
        frame.stored[int(slot)] = tuple(planes)
        self.caches[int(slot)] = tuple(p.type for p in planes)

    def loop(self, line: ast.Loop, frame: Frame) -> None:
        """`for i in L { x = layer(x, ..., i) }` becomes the layer stack."""
        lines = line.body.lines
        step = lines[0] if len(lines) == 1 else None
        call = step.value if isinstance(step, ast.Assign) and step.when is None else None
        if not isinstance(step, ast.Assign) or not isinstance(call, ast.Call) or call.named:
            self.fail("the body of a loop is one line, such as `x = layer(x, i)`", line.span)
        block = self.blocks.get(call.function)
        if block is None:
            self.fail(f"a loop calls a block, and `{call.function}` is none", call.span)
        if self.layer_count:
            self.fail("a second loop", line.span, "a model has one stack of layers")
        count = self.evaluator.integer(self.evaluator.value(line.count, frame), "the number of layers", line.count.span)
        self.layer_count = count
        for expr in call.args:
            if not isinstance(expr, ast.Name):
                hint = "give the value a name before the loop, or take its part inside the block"
                self.fail("a loop passes names", expr.span, hint)
        table: list[tuple[int, Block]] = []
        values: tuple[Node, ...] = ()
        for index in range(count):
            self.now = Layer(index)
            inner = Frame({**frame.values, line.variable: self.now}, frame.prefix, self.now)
            args = [self.evaluator.value(expr, inner) for expr in call.args]
            made, values = self.block(block, args, inner, call.span)
            if not args or not isinstance(args[0], Node) or args[0] is not frame.values.get(step.name):
                self.fail(f"a loop passes `{step.name}` on: it must be the first argument", call.span)
            if made.result.type != values[0].type:
                shapes = f"{shape_of(values[0])} becomes {shape_of(made.result)}"
                self.fail(f"a layer keeps the shape of `{step.name}`: {shapes}", call.span)
            if table and tuple(p.type for p in made.params) != tuple(p.type for p in table[0][1].params):
                self.fail("every layer takes the same arguments", call.span)
            table.append((index, made))
        self.now = None
        stack = self.evaluator.make("layers", line.span, *values, table=tuple(table))
        self.assign(step.name, stack, frame)

    # --- parameters and kinds ------------------------------------------------------------------------

    def require(self, line: ast.Require) -> None:
        if self.evaluator.test(line.test, Frame()):
            return
        names = dict.fromkeys(n.text for n in ast.walk(line.test) if isinstance(n, ast.Name))
        found = [f"`{n}` is {describe(self.known[n]).removeprefix('the text ')}" for n in names if n in self.known]
        hint = f"here {', '.join(found)}" if found else ""
        self.fail(f"{self.header.source}: {line.why}", line.test.span, hint)

    def check_lists(self) -> None:
        """A list has a value per layer: too short is an error where it is read, too long is one here."""
        for name, length in self.lists.items():
            if length > self.layer_count:
                line = self.params.get(name) or self.lets[name]
                self.fail(f"`{name}` has {length} values for {self.layer_count} layers", line.span)

    def _once(self, key: Any, compute: Callable[[], Any], span: Span) -> Any:
        if key not in self.known:
            if key in self.computing:
                name = key if isinstance(key, str) else key[0]
                self.fail(f"`{name}` depends on itself", span)
            self.computing[key] = None
            outer, self.read = self.read, {}
            self.known[key] = compute()
            self.sources[key], self.read = self.read, outer
            del self.computing[key]
        return self.known[key]

    def _read(self, key: Any, compute: Callable[[], Any], span: Span) -> Any:
        """What is computed once; the lines behind it are behind everyone who reads it."""
        value = self._once(key, compute, span)
        self.read |= self.sources[key]
        return value

    def _indexed(self, declared: ast.Param | ast.Let, index: int, span: Span) -> Any:
        assert declared.index is not None
        value = self.evaluator.value(declared.value, Frame({declared.index: index}))
        if isinstance(value, list):
            self.lists[declared.name] = len(value)
            if index >= len(value):
                hint = f"line {declared.span.line} reads the list"
                count = f"{len(value)} value{'s' * (len(value) != 1)}"
                self.fail(f"`{declared.name}` has {count} and none for layer {int(index)}", span, hint)
            return value[index]
        return value

    def _kind(self, layer: int, span: Span | None = None) -> ast.Kind | None:
        found: ast.Kind | None = self._once(
            ("kind", int(layer)), lambda: self._find_kind(layer), span or self.tree.span
        )
        return found

    def _find_kind(self, layer: int) -> ast.Kind | None:
        for kind in self.kinds:
            if kind.test is None or self.evaluator.test(kind.test, Frame({"i": int(layer)})):
                return kind
        return None

    def _entry(self, wanted: ast.Entry, layer: Layer, span: Span) -> Any:
        """A kind's entry in a layer; it sees the other entries."""
        frame = Frame({"i": layer}, layer=layer)
        return self._read((wanted.name, int(layer)), lambda: self.evaluator.value(wanted.value, frame), span)

    def _param_table(self) -> Iterable[tuple[str, Any]]:
        """The hyperparameters that were read; of those with an index, each layer's value, or the one of all."""
        for name, line in self.params.items():
            if line.index is None and name in self.known:
                yield name, self.known[name]
            elif line.index is not None:
                read = {key[1]: value for key, value in self.known.items() if isinstance(key, tuple) and key[0] == name}
                values = tuple(read.get(layer) for layer in range(self.layer_count))
                if read:
                    yield name, next(iter(read.values())) if len(set(read.values())) == 1 else values

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
