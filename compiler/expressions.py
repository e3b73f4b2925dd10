"""Expressions of an architecture, evaluated against one model file.

What depends only on the file (hyperparameters, conditions) becomes a Python value at once; what
depends on tokens becomes a node. So every conditional is settled here and none reaches the program.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from briolette.spec import tree as ast
from briolette.spec.errors import Span

from .dims import Affine, Dim, product
from .functions import FUNCTIONS
from .ir import Node, Type
from .ops import TypeRuleError, node
from .values import UNKNOWN, CacheSlot, Frame, Missing, bare, describe, dim_of, shape_of

if TYPE_CHECKING:
    from .elaborate import Elaborator

_LARGEST = 1e38  # of numbers in a spec and in metadata: f32's range


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
            message = f'{self.owner.header.source} has no key "{arch}.{found.key}"'
            self.owner.fail(message, expr.span, self._near_key(found.key))
        return found

    def maybe(self, expr: ast.Expr, frame: Frame) -> Any:
        """As `value`, but a metadata key that is absent gives `Missing`."""
        match expr:
            case ast.Number() | ast.Literal():
                return expr.value
            case ast.Text(text=text):
                return text
            case ast.Key(text=text):
                found = self.owner.header.metadata.get(f"{self.owner.tree.name}.{text}", Missing(text))
                return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else found
            case ast.Name(text="kind"):
                self.owner.fail("`kind` is asked for a layer", expr.span, "write `kind[i]`")
            case ast.Name(text=name):
                return self.name(name, expr.span, frame)
            case ast.Binary(op="or"):
                return self._either(expr, frame)
            case ast.Binary(op="and"):
                return self.test(expr.left, frame) and self.test(expr.right, frame)
            case ast.Binary():
                return self._binary(expr, self.value(expr.left, frame), self.value(expr.right, frame))
            case ast.Unary(op="not"):
                return not self.test(expr.value, frame)
            case ast.Unary():
                return self._minus(self.value(expr.value, frame), expr)
            case ast.Choose(test=test, yes=yes, no=no):
                return self.value(yes if self.test(test, frame) else no, frame)
            case ast.Chain(value=inner, call=call):
                return self.call(call, frame, (inner,))
            case ast.Call():
                return self.call(expr, frame, ())
            case ast.Annotate(value=inner, shape=shape):
                return self.annotate(self.value(inner, frame), shape, frame, expr.span)
            case ast.Search():
                return self._search(expr, frame)
            case ast.Item():
                return self._item(expr, frame)
        self.owner.fail("a range stands alone in a subscript of a value", expr.span)

    def test(self, expr: ast.Expr, frame: Frame) -> bool:
        """A condition, which must be known before any token is."""
        found = self.value(expr, frame)
        if isinstance(found, Node | Affine):
            self.owner.fail("a condition cannot depend on the tokens", expr.span)
        if not isinstance(found, int) or found not in (0, 1):  # files have flags as 0 and 1, too
            hint = ""
            if isinstance(expr, ast.Name) or isinstance(found, int):
                hint = "compare it with something, such as `> 0`; `or` gives another value only to a key"
            self.owner.fail(f"a condition is true or false, not {describe(found)}", expr.span, hint)
        return bool(found)

    # --- what an argument must be --------------------------------------------------------------------

    def number(self, value: Any, what: str, span: Span, above: float = -math.inf) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.owner.fail(f"{what} must be a number, not {describe(value)}", span)
        if not above < value or not abs(value) < math.inf:
            wanted = f"above {above:g}" if math.isfinite(above) else "finite"
            self.owner.fail(f"{what} must be {wanted}, not {value}", span)
        return float(value)

    def integer(self, value: Any, what: str, span: Span, hint: str = "") -> int:
        """A whole number from 1."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.owner.fail(f"{what} must be a whole number from 1, not {describe(value)}", span, hint)
        return int(value)

    def flag(self, value: Any, what: str, span: Span) -> bool:
        if not isinstance(value, bool):
            self.owner.fail(f"{what} must be true or false, not {describe(value)}", span)
        return value

    def tensor_arg(self, value: Any, what: str, span: Span) -> Node:
        if not isinstance(value, Node):
            self.owner.fail(f"{what} takes a value or a tensor, not {describe(value)}", span)
        return value

    def value_of(self, value: Any, what: str, span: Span) -> Node:
        """As `tensor_arg`; a stored weight is read as f32."""
        return self.plain(self.tensor_arg(value, what, span), span)

    def plain(self, value: Node, span: Span) -> Node:
        """A stored weight as f32, where it is used as a value and not as a matrix."""
        return self.make("dequant", span, value) if value.type.dtype == "stored" else value

    # --- names and tensors ---------------------------------------------------------------------------

    def name(self, name: str, span: Span, frame: Frame) -> Any:
        if name in frame.values:
            if name in frame.given:
                self.owner.read[frame.given[name]] = None
            return frame.values[name]
        found = self.owner.lookup(name, frame, span)
        return self.tensor(name, span, frame) if found is UNKNOWN else found

    def declared(self, name: str, frame: Frame, span: Span) -> bool:
        return name in frame.values or self.owner.lookup(name, frame, span) is not UNKNOWN

    def tensor(self, name: str, span: Span, frame: Frame) -> Node:
        """The weight a bare name stands for: `attn_q` is `blk.3.attn_q.weight` in layer 3."""
        template, full = self.tensor_name(name, frame, span)
        info = self.owner.header.tensors.get(full)
        if info is None:
            known = [*frame.values, *self.owner.names()]
            near = difflib.get_close_matches(name, known, 1, 0.75)
            hint = f"did you mean `{near[0]}`?" if near else self._near_tensor(name, full)
            message = f"`{name}` has no value here, and {self.owner.header.source} has no tensor {full}"
            self.owner.fail(message, span, hint)
        self.owner.consumed.add(full)
        # Block form leaves the storage format open, so that layers that differ in it alone stay one block.
        return self.make("weight", span, name=template, type=Type(info.shape, "stored"))

    def tensor_name(self, name: str, frame: Frame, span: Span) -> tuple[str, str]:
        """A tensor's name with `{i}` for the layer, and as the file at hand spells it."""
        tensor = name if name.endswith((".scale", ".bias")) else f"{name}.weight"
        template = f"{frame.prefix}.{tensor}" if frame.prefix else tensor
        if "{i}" not in template:
            return template, template
        if frame.layer is None:
            hint = "a block with `at` is called with the layer, such as `layer(x, i)` in a loop"
            self.owner.fail(f"which layer is {template} of?", span, hint)
        return template, template.replace("{i}", str(int(frame.layer)))

    def _has(self, call: ast.Call, frame: Frame, piped: bool) -> bool:
        if piped or len(call.args) != 1 or call.named or not isinstance(call.args[0], ast.Name):
            self.owner.fail("has takes the name of one tensor", call.span, "such as has(attn_v)")
        return self.tensor_name(call.args[0].text, frame, call.span)[1] in self.owner.header.tensors

    def _near_tensor(self, name: str, full: str) -> str:
        known = {n.text for n in ast.walk(self.owner.tree) if isinstance(n, ast.Name)}
        others = [other for other in self.owner.header.tensors if bare(other) not in known]
        near = difflib.get_close_matches(full, others, 1, 0.85)
        return f"did you mean `{near[0]}`?" if near else f"`has({name})` tells whether a file has it"

    def _near_key(self, key: str) -> str:
        arch = self.owner.tree.name
        present = [k.removeprefix(f"{arch}.") for k in self.owner.header.metadata if k.startswith(f"{arch}.")]
        near = difflib.get_close_matches(key, present, 1, 0.7)
        return f'did you mean "{near[0]}"?' if near else f'write `"{key}" or VALUE` if files may leave it out'

    # --- operators -----------------------------------------------------------------------------------

    def make(self, op: str, span: Span, /, *args: Node, **attrs: Any) -> Node:
        """A node that remembers its spec line; type errors point there."""
        try:
            made = node(op, *args, **attrs)
        except TypeRuleError as error:
            self.owner.fail(str(error), span)
        except (
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
        ):  # a type rule that met a rank it does not know
            shapes = ", ".join(str(arg.type) for arg in args)
            self.owner.fail(f"{op} is not defined for {shapes}", span)
        self.owner.remember(made, span)
        return made

    def _either(self, expr: ast.Binary, frame: Frame) -> Any:
        if not _reads_keys(expr.left):
            return self.test(expr.left, frame) or self.test(expr.right, frame)
        left = self.maybe(expr.left, frame)
        return self.maybe(expr.right, frame) if isinstance(left, Missing) else left

    def _minus(self, value: Any, expr: ast.Unary) -> Any:
        if isinstance(value, Node):
            return self.make("mul", expr.span, self.plain(value, expr.span), self._const(-1, expr.span))
        if isinstance(value, Affine):
            return value * -1
        self._needs_number(value, "-", expr.value)
        return -value

    def _binary(self, expr: ast.Binary, left: Any, right: Any) -> Any:
        op, span = expr.op, expr.span
        sides = (left, right)
        if op in ("==", "!="):
            if any(isinstance(side, Node | Affine) for side in sides) and None not in sides:
                self.owner.fail("a condition cannot depend on the tokens", span, "only `none` can be compared with it")
            return (left is right if None in sides else bool(left == right)) is (op == "==")
        if any(isinstance(side, Node) for side in sides):
            if op not in _NODE_OPS:
                self.owner.fail(f"`{op}` is for numbers, not for values that depend on tokens", span)
            places = zip(sides, (expr.left, expr.right), strict=True)
            return self.make(_NODE_OPS[op], span, *(self._operand(side, op, place) for side, place in places))
        for side, place in ((left, expr.left), (right, expr.right)):
            if not isinstance(side, Affine):
                self._needs_number(side, op, place)
        if any(isinstance(side, Affine) for side in sides):
            return self._size(op, left, right, span)
        return self._arithmetic(op, left, right, span)

    def _arithmetic(self, op: str, left: Any, right: Any, span: Span) -> Any:
        if op == "**" and abs(right) > 200:
            self.owner.fail(f"the exponent {right} is too large", span)
        try:
            result = _NUMBER_OPS[op](left, right)
        except ZeroDivisionError:
            self.owner.fail("division by zero", span)
        except OverflowError:
            result = math.inf
        if isinstance(result, complex) or not abs(result) <= _LARGEST:
            self.owner.fail(f"{left} {op} {right} is no number a model could use", span)
        return result

    def _size(self, op: str, left: Any, right: Any, span: Span) -> Dim:
        """Arithmetic on a size that is known only at run time, such as T + 1."""
        both = isinstance(left, Affine) and isinstance(right, Affine)
        whole = all(isinstance(side, int | Affine) for side in (left, right))
        if op not in ("+", "-", "*") or not whole or (op == "*" and both):
            self.owner.fail(f"`{left} {op} {right}` is not known before the program runs", span)
        size: Dim = _NUMBER_OPS[op](left, right)
        return size

    def _operand(self, value: Any, op: str, expr: ast.Expr) -> Node:
        if isinstance(value, Node):
            return self.plain(value, expr.span)
        self._needs_number(value, op, expr)
        return self._const(value, expr.span)

    def _const(self, value: float, span: Span) -> Node:
        return self.make("const", span, value=float(value))

    def _needs_number(self, value: Any, op: str, expr: ast.Expr) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = self._where(expr, value)
            self.owner.fail(f"`{op}` needs numbers, and this is {describe(value)}", expr.span, hint)

    def _where(self, expr: ast.Expr, value: Any) -> str:
        """A hint saying which line a name's wrong value comes from."""
        line = self.owner.params.get(expr.text) if isinstance(expr, ast.Name) else None
        if line is None:
            return ""
        if isinstance(value, list):
            return f"for a value per layer declare `param {line.name}[i]` in line {line.span.line}"
        return f"line {line.span.line} reads `{line.name}`"

    # --- shapes --------------------------------------------------------------------------------------

    def _sizes(self, exprs: tuple[ast.Expr, ...], frame: Frame) -> list[Dim | str]:
        """Sizes of an annotation; a `dim` that is not known yet stays a name."""
        sizes: list[Dim | str] = []
        for expr in exprs:
            if isinstance(expr, ast.Name) and self.owner.unknown_dim(expr.text):
                sizes.append(expr.text)
                continue
            size = self.value(expr, frame)
            if not isinstance(size, Affine):
                size = self.integer(size, "a size", expr.span, self._where(expr, size))
            sizes.append(size)
        return sizes

    def annotate(
        self,
        value: Any,
        exprs: tuple[ast.Expr, ...],
        frame: Frame,
        span: Span,
        what: str = "this",
        wants: str = "the annotation says",
    ) -> Node:
        """Checks a shape; a value of the same size in another shape is reshaped."""
        if not isinstance(value, Node):
            text = ", ".join(map(str, self._sizes(exprs, frame)))
            self.owner.fail(f"{what} is {describe(value)}, {wants} [{text}]", span)
        wanted = self._sizes(exprs, frame)
        if len(wanted) == len(value.shape):
            for place, size in enumerate(wanted):
                if isinstance(size, str):
                    self.owner.bind_dim(size, value.shape[place])
                    wanted[place] = value.shape[place]
        shape = tuple(size for size in wanted if not isinstance(size, str))
        if shape == value.shape:
            return value
        fits = len(shape) == len(wanted) and shape[:1] == value.shape[:1] and value.type.dtype != "stored"
        if fits:
            try:
                fits = product(shape) == product(value.shape)
            except ValueError:
                fits = False
        if not fits:
            text = ", ".join(map(str, wanted))
            message = f"{what} is {shape_of(value)}, {wants} [{text}]"
            self.owner.fail(message, span, _weights_of(value))
        return self.make("reshape", span, value, shape=shape)

    # --- subscripts ----------------------------------------------------------------------------------

    def _item(self, expr: ast.Item, frame: Frame) -> Any:
        if isinstance(expr.value, ast.Name) and expr.value.text not in frame.values:
            name = expr.value.text
            if name == "cache":
                return CacheSlot(self._layer(expr, frame))
            if self.owner.indexed(name):
                return self.owner.per_layer(name, self._layer(expr, frame), expr.span)
        value = self.value(expr.value, frame)
        if not isinstance(value, Node):
            hint = "a parameter with a value per layer is declared `param NAME[i]`"
            self.owner.fail(f"{describe(value)} has no parts", expr.span, hint)
        if len(expr.subscripts) > len(value.shape):
            self.owner.fail(f"{len(expr.subscripts)} subscripts for {shape_of(value)}", expr.span)
        dropped = 0
        for place, sub in enumerate(expr.subscripts):
            axis = place - dropped
            if isinstance(sub, ast.Range):
                value = self._part(value, axis, sub, frame, expr.span)
                continue
            at = self.value(sub, frame)
            size = value.shape[axis]
            if isinstance(at, bool) or not isinstance(at, int):
                self.owner.fail(f"a subscript is a whole number, not {describe(at)}", sub.span)
            if isinstance(size, int) and not 0 <= at < size:
                self.owner.fail(f"there is no part {int(at)} of {size}", sub.span, "parts are counted from 0")
            at = dim_of(at)
            value = self.make("slice", expr.span, value, axis=axis, start=at, stop=at + 1)
            shape = (*value.shape[:axis], *value.shape[axis + 1 :])
            value = self.make("reshape", expr.span, value, shape=shape)
            dropped += 1
        return value

    def _part(self, value: Node, axis: int, sub: ast.Range, frame: Frame, span: Span) -> Node:
        """`value[start:stop]` along one axis."""
        size = value.shape[axis]
        bounds: list[Any] = []
        for bound, default in ((sub.start, 0), (sub.stop, size)):
            found = default if bound is None else self.value(bound, frame)
            if isinstance(found, bool) or not isinstance(found, int | Affine):
                place = span if bound is None else bound.span
                self.owner.fail(f"a range goes between whole numbers, not {describe(found)}", place)
            bounds.append(found if isinstance(found, Affine) else int(found))
        start, stop = bounds
        if (start, stop) == (0, size):
            return value
        return self.make("slice", span, value, axis=axis, start=start, stop=stop)

    def _layer(self, expr: ast.Item, frame: Frame) -> int:
        """The one subscript of a per-layer parameter or of `cache`."""
        sub = expr.subscripts[0]
        if len(expr.subscripts) > 1 or isinstance(sub, ast.Range):
            self.owner.fail("one layer is asked for at a time", expr.span)
        index = self.value(sub, frame)
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            self.owner.fail(f"a layer is a whole number from 0, not {describe(index)}", sub.span)
        return index

    def _search(self, expr: ast.Search, frame: Frame) -> int:
        bound = self.value(expr.bound, frame)
        if isinstance(bound, bool) or not isinstance(bound, int) or bound > 100_000:
            self.owner.fail(f"the bound is a number of layers, not {describe(bound)}", expr.bound.span)
        for j in reversed(range(bound)):
            inner = Frame({**frame.values, expr.variable: j}, frame.prefix, frame.layer)
            if self.test(expr.test, inner):
                return j
        self.owner.fail(f"no {expr.variable} below {int(bound)} passes the test", expr.span)

    # --- calls ---------------------------------------------------------------------------------------

    def call(self, call: ast.Call, frame: Frame, first: tuple[ast.Expr, ...]) -> Any:
        """A call; `first` is what a pipe passes on."""
        if call.function == "has":
            return self._has(call, frame, bool(first))
        block, function = self.owner.blocks.get(call.function), FUNCTIONS.get(call.function)
        if block is None and function is None:
            near = difflib.get_close_matches(call.function, [*FUNCTIONS, *self.owner.blocks, "has"], 1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(sorted([*FUNCTIONS, 'has']))}"
            self.owner.fail(f"there is no function or block `{call.function}`", call.span, hint)
        args = [self.value(expr, frame) for expr in (*first, *call.args)]
        named = {key: self.value(expr, frame) for key, expr in call.named}
        if block is not None:
            if named:
                self.owner.fail("blocks take their arguments by position", call.span)
            return self.owner.call_block(block, args, frame, call.span)
        assert function is not None
        return function.call(self, call.span, frame, args, named)


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


def _weights_of(value: Node) -> str:
    """A hint naming the tensor a wrongly shaped value came from."""
    while value.op in ("reshape", "rms_norm", "rope", "slice") and value.args:
        value = value.args[0]
    if value.op == "linear":
        w = value.args[1]
        size = "x".join(map(str, w.shape))
        return f"{w.get('name', 'the weight')} is {size}" if w.op == "weight" else f"the weight slice is {size}"
    return ""
