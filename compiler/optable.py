"""The form of an op's declaration, and the checked way to make nodes from declared ops.

The declarations themselves are in `opset/`; `ops.py` puts both together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .dims import Dim
from .ir import Block, Node, Type, intern_node

Array = NDArray[Any]
F32 = np.float32


class TypeRuleError(ValueError):
    """An op used on operands or attributes it is not defined for."""


def need(condition: bool, message: str) -> None:
    """Raises TypeRuleError with the message unless the condition holds."""
    if not condition:
        raise TypeRuleError(message)


class Context(Protocol):
    """What an op may ask of whoever evaluates it: `interp.Interpreter`.

    `real` is the type that reals are evaluated in, np.float32 or np.float64. Only what makes reals from
    nothing asks for it; everywhere else a Python number takes its operand's type.
    """

    real: type[np.floating[Any]]
    tokens: Array
    positions: Array

    def size(self, dim: Dim) -> int:
        """The number a dimension is in this step."""

    def weight(self, name: str) -> Array:
        """A tensor of the model, as reals."""

    def param(self, name: str) -> Array:
        """The value of a parameter of the block that is being run."""

    def run(self, block: Block, args: Sequence[Array], layer: int | None = None) -> Array:
        """A block's result, its cache writes made."""

    def append(self, slot: Dim, plane: str, x: Array, positions: Array) -> Array:
        """A cache plane after rows `x` have been put at their positions."""

    def cache(self, slot: Dim, plane: str) -> Array:
        """A cache plane as it is."""


class Draw(Protocol):
    """A source of choices: hypothesis in tests, a seeded generator elsewhere."""

    def integer(self, low: int, high: int) -> int: ...
    def pick(self, options: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Sample:
    """A random legal use of an op: operand types, attributes, and what holds for integer operands.

    `below`: operand -> exclusive bound of its values; `distinct`: operands whose values all differ.
    """

    args: tuple[Type, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    below: Mapping[int, int] = field(default_factory=dict)
    distinct: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Op:
    """A declared op; see `op` for the fields."""

    name: str
    operands: tuple[str, ...]  # "w?" may be absent, "args*" are any number
    attrs: Mapping[str, Any]  # name -> default; REQUIRED where there is none
    infer: Callable[..., Type]
    evaluate: Callable[..., Array]
    flops: Callable[..., int]
    reads: Callable[..., Sequence[int]]
    traits: frozenset[str]
    sample: Callable[[Draw], Sample] | None
    body: Callable[..., Node] | None
    doc: str

    @cached_property
    def arity(self) -> tuple[int, int]:
        """The least and the most operands."""
        if self.operands and self.operands[-1].endswith("*"):
            return len(self.operands) - 1, 1 << 30
        return sum(not name.endswith("?") for name in self.operands), len(self.operands)


REQUIRED = object()
OPS: dict[str, Op] = {}
TRAITS = frozenset({"elementwise", "row", "token", "view", "shows", "leaf", "effect", "structure"})


def everything(out: tuple[int, ...], *args: tuple[int, ...]) -> list[int]:
    """How many elements an op reads that reads all of its operands."""
    return [math.prod(arg) for arg in args]


def op(
    operands: str = "",
    *,
    infer: Callable[..., Type],
    traits: str = "",
    flops: Callable[..., int] = lambda out, *args: 0,
    reads: Callable[..., Sequence[int]] = everything,
    sample: Callable[[Draw], Sample] | None = None,
    body: Callable[..., Node] | None = None,
    **attrs: Any,
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Declares an op. The decorated function is its meaning in numpy, `f(context, *arrays, **attrs)`; its
    docstring, the op's documentation.

    operands: their names. infer: operand types and attributes -> result type, or TypeRuleError. flops: shapes
    of result and operands -> floating point operations. reads: of the same -> how many elements of each operand it
    touches (all, unless it says so). sample: a random legal use. body: for compound ops,
    operands and attributes -> the same value in simpler ops. attrs: attributes and their defaults.
    """

    def declare(evaluate: Callable[..., Array]) -> Callable[..., Array]:
        name = evaluate.__name__.rstrip("_")
        doc = " ".join((evaluate.__doc__ or "").split())
        names, kinds = tuple(operands.split()), frozenset(traits.split())
        assert name not in OPS and kinds <= TRAITS, name
        OPS[name] = Op(name, names, attrs, infer, evaluate, flops, reads, kinds, sample, body, doc)
        return evaluate

    return declare


def node(name: str, /, *args: Node, **attrs: Any) -> Node:
    """A checked, interned node. Raises TypeRuleError when the op is not defined for the operands."""
    declared = OPS.get(name)
    if declared is None:
        raise TypeRuleError(f"unknown op `{name}`")
    low, high = declared.arity
    if not low <= len(args) <= high:
        wanted = f"{low}" if low == high else f"{low} to {high}" if high < 1 << 30 else f"at least {low}"
        named = f" ({', '.join(declared.operands)})" if declared.operands else ""
        raise TypeRuleError(f"{name} takes {wanted} operands{named}, not {len(args)}")
    if not attrs.keys() <= declared.attrs.keys():
        unknown = sorted(attrs.keys() - declared.attrs.keys())
        raise TypeRuleError(f"{name} has no attribute {', '.join(unknown)}")
    full = {key: attrs.get(key, default) for key, default in declared.attrs.items()}
    missing = [key for key, value in full.items() if value is REQUIRED]
    if missing:
        raise TypeRuleError(f"{name} needs {', '.join(missing)}")
    kept = tuple((key, value) for key, value in full.items() if not _is_default(value, declared.attrs[key]))
    return intern_node(name, args, kept, declared.infer(*(arg.type for arg in args), **full))


def attributes(item: Node) -> dict[str, Any]:
    """All attributes of a node, defaults filled in."""
    return {**OPS[item.op].attrs, **dict(item.attrs)}


def weight_below(item: Node) -> Node | None:
    """The weight that a node is, or shows the numbers of: sliced, reshaped, packed or as f32."""
    while "shows" in OPS[item.op].traits:
        item = item.args[0]
    return item if item.op == "weight" else None


def with_args(item: Node, args: tuple[Node, ...], **attrs: Any) -> Node:
    """The same op on other operands (and attributes)."""
    if args == item.args and not attrs:
        return item
    if not attrs and [arg.type for arg in args] == [arg.type for arg in item.args]:
        return intern_node(item.op, args, item.attrs, item.type)  # as was checked when the node was made
    return node(item.op, *args, **{**dict(item.attrs), **attrs})


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (value.__class__ is default.__class__ and bool(value == default))
