"""The syntax tree: frozen nodes that know where they stand in the source.

Spans take no part in equality, comments do: `parse(format(tree)) == tree`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import Span

NO_SPAN = Span(0, 0, 0, 0)
L = TypeVar("L", bound="Line")


@dataclass(frozen=True)
class Syntax:
    """Any piece of the tree."""

    span: Span = field(default=NO_SPAN, compare=False, kw_only=True, repr=False)


# --- expressions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expr(Syntax):
    pass


@dataclass(frozen=True)
class Number(Expr):
    text: str

    @property
    def value(self) -> int | float:
        return int(self.text) if self.text.isdigit() else float(self.text)


@dataclass(frozen=True)
class Literal(Expr):
    """`none`, `true` or `false`."""

    value: bool | None


@dataclass(frozen=True)
class Text(Expr):
    """A text in single quotes, to compare a key's value with."""

    text: str


@dataclass(frozen=True)
class Key(Expr):
    """A metadata key, without the architecture's prefix."""

    text: str


@dataclass(frozen=True)
class Name(Expr):
    """A parameter, a local value, or a tensor of the file; tensor names may have dots."""

    text: str


@dataclass(frozen=True)
class Unary(Expr):
    op: str
    value: Expr


@dataclass(frozen=True)
class Binary(Expr):
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Choose(Expr):
    """`yes if test else no`, settled when the architecture meets a file."""

    test: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True)
class Call(Expr):
    function: str
    args: tuple[Expr, ...]
    named: tuple[tuple[str, Expr], ...] = ()


@dataclass(frozen=True)
class Chain(Expr):
    """`value |> f(a)`: the value becomes the call's first argument."""

    value: Expr
    call: Call


@dataclass(frozen=True)
class Annotate(Expr):
    value: Expr
    shape: tuple[Expr, ...]


@dataclass(frozen=True)
class Search(Expr):
    """`last(j < bound : test)`: the largest such j."""

    variable: str
    bound: Expr
    test: Expr


@dataclass(frozen=True)
class Range(Expr):
    start: Expr | None
    stop: Expr | None


@dataclass(frozen=True)
class Item(Expr):
    value: Expr
    subscripts: tuple[Expr, ...]


# --- statements and declarations ---------------------------------------------------------------------


@dataclass(frozen=True)
class Line(Syntax):
    """A statement or declaration with its comments, `#` included.

    `lead` are the lines above it, "" where one is blank; `tail` is the comment after it.
    """

    lead: tuple[str, ...] = field(default=(), kw_only=True)
    tail: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Body(Syntax):
    lines: tuple[Line, ...]
    opening: str = field(default="", kw_only=True)  # the comment after `{`
    closing: tuple[str, ...] = field(default=(), kw_only=True)  # comment lines before `}`


@dataclass(frozen=True)
class Assign(Line):
    name: str
    value: Expr
    when: Expr | None = None


@dataclass(frozen=True)
class Store(Line):
    """`cache[slot] <- k, v`."""

    cache: str
    slot: Expr
    values: tuple[Expr, ...]


@dataclass(frozen=True)
class Branch(Line):
    test: Expr
    then: Body
    otherwise: Body | None = None


@dataclass(frozen=True)
class Loop(Line):
    variable: str
    count: Expr
    body: Body


@dataclass(frozen=True)
class Unread(Line):
    """`ignore attn_k`: a tensor that a file may hold and nothing reads."""

    names: tuple[Name, ...]


@dataclass(frozen=True)
class Return(Line):
    value: Expr


@dataclass(frozen=True)
class Arch(Line):
    name: str


@dataclass(frozen=True)
class Param(Line):
    name: str
    index: str | None
    value: Expr


@dataclass(frozen=True)
class Let(Line):
    name: str
    index: str | None
    value: Expr


@dataclass(frozen=True)
class DimDecl(Line):
    names: tuple[str, ...]


@dataclass(frozen=True)
class IgnoreKeys(Line):
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Require(Line):
    """`require test, 'why'`."""

    test: Expr
    why: str


@dataclass(frozen=True)
class Entry(Line):
    name: str
    value: Expr


@dataclass(frozen=True)
class Kind(Line):
    name: str
    test: Expr | None
    body: Body


@dataclass(frozen=True)
class Arg(Syntax):
    name: str
    shape: tuple[Expr, ...] | None


@dataclass(frozen=True)
class Block(Line):
    name: str
    args: tuple[Arg, ...]
    result: tuple[Expr, ...]
    prefix: str | None
    body: Body


@dataclass(frozen=True)
class Model(Line):
    args: tuple[Arg, ...]
    result: tuple[Expr, ...]
    body: Body


@dataclass(frozen=True)
class Architecture(Syntax):
    """One `.arch` file. `source` is its text, for carets."""

    name: str
    lines: tuple[Line, ...]
    closing: tuple[str, ...] = ()  # comments after the last declaration
    source: str = field(default="", compare=False, repr=False)

    def of(self, kind: type[L]) -> Iterator[L]:
        """The declarations of one class, in order."""
        return (line for line in self.lines if isinstance(line, kind))


def walk(item: Any) -> Iterator[Syntax]:
    """Every piece of a syntax tree, parents first."""
    waiting = [item]
    while waiting:
        item = waiting.pop()
        if isinstance(item, tuple):
            waiting.extend(reversed(item))
        elif isinstance(item, Syntax):
            yield item
            waiting.extend(getattr(item, name) for name in reversed(item.__dataclass_fields__) if name != "span")
