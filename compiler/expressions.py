"""Expressions of an architecture, evaluated against one model file.

What depends only on the file (hyperparameters, conditions) becomes a Python value at once; what
depends on tokens becomes a node. So every conditional is settled here and none reaches the program.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from briolette.spec import syntax as ast
from briolette.spec.errors import Span, SpecError

from .dims import Dim, product, symbol
from .ir import Node, Type
from .ops import TypeRuleError, node

if TYPE_CHECKING:
    from .elaborate import Elaborator

LAYER = symbol("i")
UNKNOWN = object()  # a name that is no parameter, kind entry or dimension


class Layer(int):
    """The index of the layer at hand: a number in conditions, the symbol `i` where it names a tensor or cache slot."""


class Missing:
    """A metadata key the file does not have; only `or` accepts it."""

    def __init__(self, key: str):
        self.key = key


@dataclass(frozen=True)
class CacheSlot:
    """`cache[slot]`."""

    slot: int


@dataclass
class Frame:
    """What is known inside one block while it is elaborated."""

    values: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""  # of tensor names, such as "blk.{i}"
    layer: Layer | None = None
    effects: list[Node] = field(default_factory=list)
    stored: dict[int, tuple[Node, ...]] = field(default_factory=dict)


def dim_of(value: Any) -> Dim:
    """An index as a dimension: the layer at hand stays symbolic."""
    return LAYER if isinstance(value, Layer) else value


class Evaluator:
    """Evaluates expressions of one architecture file; `owner` knows parameters, kinds and blocks."""

    def __init__(self, owner: Elaborator):
        self.owner = owner

    # --- entry ---------------------------------------------------------------------------------------

    def value(self, expr: ast.Expr, frame: Frame) -> Any:
        """The value of an expression. Raises SpecError where it has none."""
        found = self.maybe(expr, frame)
        if isinstance(found, Missing):
            arch = self.owner.tree.name
            self.owner.fail(f'the file has no key "{arch}.{found.key}"', expr.span, self._near_key(found.key))
        return found

    def maybe(self, expr: ast.Expr, frame: Frame) -> Any:
        """As `value`, but a metadata key that is absent gives `Missing`."""
        match expr:
            case ast.Number():
                return expr.value
            case ast.Literal(value=constant):
                return constant
            case ast.Key(text=text):
                full = f"{self.owner.tree.name}.{text}"
                return self.owner.header.metadata.get(full, Missing(text))
            case ast.Name(text=name):
                return self.name(name, expr.span, frame)
            case ast.Binary(op="or"):
                return self._either(expr, frame)
            case ast.Binary(op="and"):
                return bool(self.value(expr.left, frame)) and bool(self.value(expr.right, frame))
            case ast.Binary(op=op):
                return self._binary(op, self.value(expr.left, frame), self.value(expr.right, frame), expr.span)
            case ast.Unary(op="not"):
                return not self.value(expr.value, frame)
            case ast.Unary():
                inner = self.value(expr.value, frame)
                return self._binary("*", inner, -1, expr.span) if isinstance(inner, Node) else -inner
            case ast.Choose(test=test, yes=yes, no=no):
                return self.value(yes if self.test(test, frame) else no, frame)
            case ast.Chain(value=inner, call=call):
                return self.call(call, frame, (inner,), expr.span)
            case ast.Call():
                return self.call(expr, frame, (), expr.span)
            case ast.Annotate(value=inner, shape=shape):
                return self.annotate(self.value(inner, frame), shape, frame, expr.span)
            case ast.Search():
                return self._search(expr, frame)
            case ast.Item():
                return self._item(expr, frame)
        raise TypeError(type(expr).__name__)

    def test(self, expr: ast.Expr, frame: Frame) -> bool:
        """A condition, which must be known before any token is."""
        found = self.value(expr, frame)
        if isinstance(found, Node):
            self.owner.fail("a condition cannot depend on the tokens", expr.span)
        return bool(found)

    # --- names and tensors ---------------------------------------------------------------------------

    def name(self, name: str, span: Span, frame: Frame) -> Any:
        if name in frame.values:
            return frame.values[name]
        found = self.owner.lookup(name, frame, span)
        return self.tensor(name, span, frame) if found is UNKNOWN else found

    def tensor(self, name: str, span: Span, frame: Frame) -> Node:
        """The weight a bare name stands for: `attn_q` is `blk.3.attn_q.weight` in layer 3."""
        template, full = self.tensor_name(name, frame)
        info = self.owner.header.tensors.get(full)
        if info is None:
            known = [*frame.values, *self.owner.names()]
            near = difflib.get_close_matches(name, known, 1, 0.75) or difflib.get_close_matches(
                full, list(self.owner.header.tensors), 1, 0.85
            )
            hint = f"did you mean `{near[0]}`?" if near else f"`has({name})` tells whether a file has it"
            self.owner.fail(f"`{name}` is no name here, and the file has no tensor {full}", span, hint)
        self.owner.consumed.add(full)
        # Block form leaves the storage format open, so that layers that differ in it alone stay one block.
        return self.make("weight", span, name=template, type=Type(info.shape, "stored"))

    def tensor_name(self, name: str, frame: Frame) -> tuple[str, str]:
        """A tensor's name with `{i}` for the layer, and as the file at hand spells it."""
        tensor = name if name.endswith((".scale", ".bias")) else f"{name}.weight"
        template = f"{frame.prefix}.{tensor}" if frame.prefix else tensor
        return template, template.replace("{i}", str(int(frame.layer or 0)))

    def has(self, call: ast.Call, frame: Frame) -> bool:
        if len(call.args) != 1 or not isinstance(call.args[0], ast.Name):
            self.owner.fail("has() takes the name of one tensor", call.span)
        return self.tensor_name(call.args[0].text, frame)[1] in self.owner.header.tensors

    # --- operators -----------------------------------------------------------------------------------

    def make(self, op: str, span: Span, /, *args: Node, **attrs: Any) -> Node:
        """A node that remembers its spec line; type errors point there."""
        with self.reporting(span):
            made = node(op, *args, **attrs)
        self.owner.remember(made, span)
        return made

    @contextmanager
    def reporting(self, span: Span) -> Iterator[None]:
        try:
            yield
        except TypeRuleError as error:
            self.owner.fail(str(error), span)

    def _either(self, expr: ast.Binary, frame: Frame) -> Any:
        left = self.maybe(expr.left, frame)
        if isinstance(left, bool):
            return left or bool(self.value(expr.right, frame)) if not _reads_keys(expr.left) else left
        return self.maybe(expr.right, frame) if isinstance(left, Missing) else left

    def _binary(self, op: str, left: Any, right: Any, span: Span) -> Any:
        if op in ("==", "!="):
            same = left is right if isinstance(left, Node) or isinstance(right, Node) else left == right
            return same is (op == "==")
        if isinstance(left, Node) or isinstance(right, Node):
            if op not in _NODE_OPS:
                self.owner.fail(f"`{op}` is for numbers, not for values that depend on tokens", span)
            a, b = (x if isinstance(x, Node) else self._number(x, span) for x in (left, right))
            return self.make(_NODE_OPS[op], span, self.plain(a, span), self.plain(b, span))
        if left is None or right is None or isinstance(left, str) or isinstance(right, str):
            self.owner.fail(f"`{op}` needs numbers; one side is {_describe(left if left is None or isinstance(left, str) else right)}", span)
        try:
            return _NUMBER_OPS[op](left, right)
        except ZeroDivisionError:
            self.owner.fail("division by zero", span)

    def _number(self, value: Any, span: Span) -> Node:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.owner.fail(f"a number is needed here, not {_describe(value)}", span)
        return self.make("const", span, value=float(value))

    def plain(self, value: Node, span: Span) -> Node:
        """A stored weight as f32, where it is used as a value and not as a matrix."""
        return self.make("dequant", span, value) if value.type.dtype == "stored" else value

    # --- shapes --------------------------------------------------------------------------------------

    def shape(self, exprs: tuple[ast.Expr, ...], frame: Frame) -> list[Dim | str]:
        """Sizes of an annotation; a `dim` that is not known yet stays a name."""
        sizes: list[Dim | str] = []
        for expr in exprs:
            if isinstance(expr, ast.Name) and self.owner.unknown_dim(expr.text):
                sizes.append(expr.text)
            else:
                sizes.append(self.value(expr, frame))
        return sizes

    def annotate(self, value: Any, exprs: tuple[ast.Expr, ...], frame: Frame, span: Span) -> Node:
        """Checks a shape; a value of the same size in another shape is reshaped."""
        if not isinstance(value, Node):
            self.owner.fail(f"only values that depend on tokens have a shape, and this is {_describe(value)}", span)
        wanted = self.shape(exprs, frame)
        if len(wanted) == len(value.shape):
            for place, size in enumerate(wanted):
                if isinstance(size, str):
                    self.owner.bind_dim(size, value.shape[place])
                    wanted[place] = value.shape[place]
        shape = tuple(size for size in wanted if not isinstance(size, str))
        if shape == value.shape:
            return value
        fits = len(shape) == len(wanted) and shape[:1] == value.shape[:1]
        if fits:
            try:
                fits = product(shape) == product(value.shape)
            except (ValueError, TypeError):
                fits = False
        if not fits:
            text = ", ".join(map(str, wanted))
            self.owner.fail(f"this is [{', '.join(map(str, value.shape))}], the annotation says [{text}]", span, _weights_of(value))
        return self.make("reshape", span, value, shape=shape)

    # --- subscripts ----------------------------------------------------------------------------------

    def _item(self, expr: ast.Item, frame: Frame) -> Any:
        if isinstance(expr.value, ast.Name) and expr.value.text == "cache":
            return CacheSlot(self.value(expr.subscripts[0], frame))
        if isinstance(expr.value, ast.Name) and self.owner.indexed(expr.value.text):
            index = self.value(expr.subscripts[0], frame)
            return self.owner.per_layer(expr.value.text, index, expr.span)
        value = self.value(expr.value, frame)
        if not isinstance(value, Node):
            self.owner.fail(f"{_describe(value)} has no parts; a per-layer parameter is declared `param NAME[i]`", expr.span)
        if len(expr.subscripts) > len(value.shape):
            self.owner.fail(f"{len(expr.subscripts)} subscripts for {list(value.shape)}", expr.span)
        dropped = 0
        for place, sub in enumerate(expr.subscripts):
            axis = place - dropped
            size = value.shape[axis]
            if isinstance(sub, ast.Range):
                start = self.value(sub.start, frame) if sub.start else 0
                stop = self.value(sub.stop, frame) if sub.stop else size
                if (start, stop) != (0, size):
                    value = self.make("slice", expr.span, value, axis=axis, start=start, stop=stop)
            else:
                at = dim_of(self.value(sub, frame))
                value = self.make("slice", expr.span, value, axis=axis, start=at, stop=at + 1)
                shape = (*value.shape[:axis], *value.shape[axis + 1 :])
                value = self.make("reshape", expr.span, value, shape=shape)
                dropped += 1
        return value

    def _search(self, expr: ast.Search, frame: Frame) -> int:
        bound = self.value(expr.bound, frame)
        for j in reversed(range(int(bound))):
            inner = Frame({**frame.values, expr.variable: j}, frame.prefix, frame.layer)
            if self.test(expr.test, inner):
                return j
        return self.owner.fail(f"no {expr.variable} below {bound} passes the test", expr.span)

    # --- calls ---------------------------------------------------------------------------------------

    def call(self, call: ast.Call, frame: Frame, first: tuple[ast.Expr, ...], span: Span) -> Any:
        if call.function == "has":
            return self.has(call, frame)
        args = [self.value(expr, frame) for expr in (*first, *call.args)]
        named = {key: self.value(expr, frame) for key, expr in call.named}
        if len(named) != len(call.named):
            self.owner.fail("an argument is given twice", call.span)
        block = self.owner.blocks.get(call.function)
        if block is not None:
            if named:
                self.owner.fail("blocks take their arguments by position", call.span)
            return self.owner.call_block(block, args, frame, span)
        function = FUNCTIONS.get(call.function)
        if function is None:
            near = difflib.get_close_matches(call.function, [*FUNCTIONS, *self.owner.blocks, "has"], 1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(sorted(FUNCTIONS))}"
            self.owner.fail(f"there is no function or block `{call.function}`", call.span, hint)
        try:
            return function(self, span, frame, *args, **named)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
            text = str(error).split("()", 1)[-1].strip()
            self.owner.fail(f"{call.function}: {text}", call.span)

    def tensor_arg(self, value: Any, what: str, span: Span) -> Node:
        if not isinstance(value, Node):
            self.owner.fail(f"{what} must be a value or a tensor, not {_describe(value)}", span)
        return value

    def _near_key(self, key: str) -> str:
        arch = self.owner.tree.name
        present = [k.removeprefix(f"{arch}.") for k in self.owner.header.metadata if k.startswith(f"{arch}.")]
        near = difflib.get_close_matches(key, present, 1, 0.7)
        return f'did you mean "{near[0]}"?' if near else f'write `"{key}" or VALUE` if files may leave it out'


_NODE_OPS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_NUMBER_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "**": lambda a, b: float(a) ** b if b < 0 else a**b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _reads_keys(expr: ast.Expr) -> bool:
    """Whether `or` after this expression means "or else", rather than the logical or."""
    return isinstance(expr, ast.Key) or (isinstance(expr, ast.Binary) and expr.op == "or" and _reads_keys(expr.right))


def _describe(value: Any) -> str:
    if value is None:
        return "`none`"
    if isinstance(value, CacheSlot):
        return f"cache {int(value.slot)}"
    return f"the list of {len(value)} values" if isinstance(value, list) else repr(value)


def _weights_of(value: Node) -> str:
    """A hint naming the tensor a wrongly shaped value came from."""
    while value.op in ("reshape", "rms_norm", "rope", "slice") and value.args:
        value = value.args[0]
    if value.op == "linear":
        w = value.args[1]
        size = "x".join(map(str, w.shape))
        return f"{w.get('name', 'the weight')} is {size}" if w.op == "weight" else f"the weight slice is {size}"
    return ""


# --- the functions of the language --------------------------------------------------------------------


def _rms(e: Evaluator, span: Span, frame: Frame, x: Any, w: Any = None, eps: Any = None) -> Node:
    x = e.plain(e.tensor_arg(x, "rms", span), span)
    eps = e.name("eps", span, frame) if eps is None else eps
    weights = () if w is None else (e.plain(e.tensor_arg(w, "the weight of rms", span), span),)
    return e.make("rms_norm", span, x, *weights, eps=float(eps))


def _linear(e: Evaluator, span: Span, frame: Frame, x: Any, w: Any, ids: Any = None) -> Node:
    x, w = e.tensor_arg(x, "linear", span), e.tensor_arg(w, "the weight of linear", span)
    if ids is not None:
        return e.make("expert_linear", span, x, w, e.tensor_arg(ids, "expert ids", span))
    flat = product(x.shape[1:]) if len(x.shape) > 2 else None
    if flat is not None and x.shape[-1] != w.shape[-1] and flat == w.shape[-1]:
        x = e.make("reshape", span, x, shape=(x.shape[0], flat))  # heads side by side
    return e.make("linear", span, x, w)


def _rope(
    e: Evaluator,
    span: Span,
    frame: Frame,
    x: Any,
    theta: Any,
    dims: Any = None,
    freqs: Any = None,
    scale: Any = 1.0,
    interleaved: Any = False,
) -> Node:
    x = e.tensor_arg(x, "rope", span)
    dims = x.shape[-1] if dims is None else int(dims)
    rest = () if freqs is None else (e.plain(e.tensor_arg(freqs, "freqs", span), span),)
    attrs = {"theta": float(theta), "dims": dims, "scale": float(scale), "interleaved": bool(interleaved)}
    return e.make("rope", span, x, e.owner.position(x.shape[0]), *rest, **attrs)


def _attend(
    e: Evaluator, span: Span, frame: Frame, q: Any, cache: Any, scale: Any, window: Any = None, softcap: Any = None
) -> Node:
    q = e.tensor_arg(q, "the query", span)
    if not isinstance(cache, CacheSlot):
        e.owner.fail("attend reads a cache: attend(q, cache[i], scale=...)", span)
    k, v = e.owner.read_cache(cache, frame, span)
    attrs = {"scale": float(scale), "window": window, "softcap": float(softcap) if softcap else None}
    return e.make("attend", span, q, k, v, e.owner.position(q.shape[0]), **attrs)


def _embed(e: Evaluator, span: Span, frame: Frame, table: Any, ids: Any) -> Node:
    return e.make("embed", span, e.tensor_arg(table, "the table", span), e.tensor_arg(ids, "the ids", span))


def _softcap(e: Evaluator, span: Span, frame: Frame, x: Any, cap: Any) -> Node:
    return e.make("softcap", span, e.tensor_arg(x, "softcap", span), cap=float(cap))


def _top(e: Evaluator, span: Span, frame: Frame, x: Any, k: Any) -> Node:
    return e.make("top", span, e.tensor_arg(x, "top", span), k=int(k))


def _isbool(e: Evaluator, span: Span, frame: Frame, value: Any) -> bool:
    """Whether a metadata value is a flag; converters write patterns as flags or as a period."""
    return isinstance(value, bool)


def _pointwise(op: str) -> Callable[..., Node]:
    def build(e: Evaluator, span: Span, frame: Frame, *args: Any) -> Node:
        return e.make(op, span, *(e.plain(e.tensor_arg(a, op, span), span) for a in args))

    return build


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "rms": _rms,
    "linear": _linear,
    "rope": _rope,
    "attend": _attend,
    "embed": _embed,
    "softcap": _softcap,
    "top": _top,
    "isbool": _isbool,
    **{name: _pointwise(name) for name in ("gelu", "silu", "tanh", "exp", "softmax", "sum", "take", "combine")},
}
