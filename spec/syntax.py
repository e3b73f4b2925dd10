"""Architecture text to a frozen syntax tree whose nodes know where they stand in the source.

Spans take no part in equality, comments do: `parse(format(tree)) == tree`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args
from lark.exceptions import VisitError

from .errors import Span, SpecError

NO_SPAN = Span(0, 0, 0, 0)


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


# --- statements and declarations -----------------------------------------------------------------------


@dataclass(frozen=True)
class Line(Syntax):
    """A statement or declaration: `lead` are the comment lines above it ("" a blank line), `tail` the comment after it."""

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

    def of(self, kind: type[Any]) -> Iterator[Any]:
        """The declarations of one class, in order."""
        return (line for line in self.lines if isinstance(line, kind))


# --- text to tree --------------------------------------------------------------------------------------


class Newlines:
    """Lexer filter: drops the newlines that do not end a statement.

    A newline that stays is placed right after the token before it, so that a statement's span ends
    with its code and not with a comment or the blank lines below.
    """

    always_accept = ("_NL",)
    OPEN, CLOSE = {"LPAR", "LSQB"}, {"RPAR", "RSQB"}
    CONTINUES = {"PRODOP", "PLUS", "MINUS", "CMP", "LESS", "EQUAL", "COMMA", "IF", "ELSE", "OR", "AND"}

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth, ended, previous = 0, False, None
        for token in stream:
            depth += (token.type in self.OPEN) - (token.type in self.CLOSE)
            if token.type == "_NL":
                ended = ended or (depth <= 0 and (previous is None or previous.type not in self.CONTINUES))
                continue
            if ended and token.value not in ("|>", "else"):
                yield _newline(previous or token)
            ended, previous = False, token
            yield token
        if previous is not None:
            yield _newline(previous)


def _newline(after: Token) -> Token:
    line, col = after.end_line, after.end_column
    return Token("_NL", "\n", after.end_pos, line, col, line, col, after.end_pos)


@cache
def parser() -> Lark:
    text = (Path(__file__).parent / "grammar.lark").read_text()
    return Lark(text, parser="lalr", lexer="basic", propagate_positions=True, maybe_placeholders=True, postlex=Newlines())


def _span(meta: Any) -> Span:
    if getattr(meta, "empty", True):
        return NO_SPAN
    return Span(meta.line, meta.column, meta.end_line, meta.end_column)


def _binary(name: str) -> Any:
    def build(self: Any, meta: Any, left: Expr, right: Expr) -> Binary:
        return Binary(name, left, right, span=_span(meta))

    return build


def _operator(self: Any, meta: Any, left: Expr, op: Token, right: Expr) -> Binary:
    return Binary(str(op), left, right, span=_span(meta))


@v_args(meta=True, inline=True)
class _Tree(Transformer):  # type: ignore[type-arg]
    """Grammar rules to nodes, one short method a rule."""

    # fmt: off
    def number(self, meta, text): return Number(str(text), span=_span(meta))
    def key(self, meta, text): return Key(text[1:-1], span=_span(meta))
    def none(self, meta): return Literal(None, span=_span(meta))
    def true(self, meta): return Literal(True, span=_span(meta))
    def false(self, meta): return Literal(False, span=_span(meta))
    def name(self, meta, *parts): return Name(".".join(parts), span=_span(meta))
    def kinds(self, meta): return Name("kind", span=_span(meta))
    def group(self, meta, value): return value
    def minus(self, meta, _op, value): return Unary("-", value, span=_span(meta))
    def negate(self, meta, value): return Unary("not", value, span=_span(meta))
    def choose(self, meta, yes, test, no): return Choose(test, yes, no, span=_span(meta))
    def chain(self, meta, value, call): return Chain(value, call, span=_span(meta))
    def annotate(self, meta, value, shape): return Annotate(value, shape, span=_span(meta))
    def search(self, meta, name, _less, bound, test): return Search(str(name), bound, test, span=_span(meta))
    def range(self, meta, start, _colon, stop): return Range(start, stop, span=_span(meta))
    def item(self, meta, value, *subs): return Item(value, subs, span=_span(meta))
    def named(self, meta, name, value): return (str(name), value)
    def actuals(self, meta, *items): return items
    def shape(self, meta, *items): return items
    def index(self, meta, name): return str(name)
    def arg(self, meta, name, shape): return Arg(str(name), shape, span=_span(meta))
    def args(self, meta, *items): return items
    def body(self, meta, *lines): return Body(lines, span=_span(meta))
    def assign(self, meta, name, value, when): return Assign(str(name), value, when, span=_span(meta))
    def store(self, meta, name, slot, *values): return Store(str(name), slot, values, span=_span(meta))
    def branch(self, meta, test, then, other): return Branch(test, then, other, span=_span(meta))
    def loop(self, meta, name, count, body): return Loop(str(name), count, body, span=_span(meta))
    def unread(self, meta, *names): return Unread(names, span=_span(meta))
    def ret(self, meta, value): return Return(value, span=_span(meta))
    def arch(self, meta, name): return Arch(str(name), span=_span(meta))
    def param(self, meta, name, index, value): return Param(str(name), index, value, span=_span(meta))
    def let(self, meta, name, index, value): return Let(str(name), index, value, span=_span(meta))
    def dim(self, meta, *names): return DimDecl(tuple(map(str, names)), span=_span(meta))
    def ignore(self, meta, *keys): return IgnoreKeys(tuple(Key(k[1:-1], span=_token(k)) for k in keys), span=_span(meta))
    def entry(self, meta, name, value): return Entry(str(name), value, span=_span(meta))
    either, both, binary = _binary("or"), _binary("and"), _operator
    # fmt: on

    def power(self, meta, left, right):
        return Binary("**", left, right, span=_span(meta))

    def call(self, meta, name, actuals):
        items = actuals or ()
        plain = tuple(item for item in items if not isinstance(item, tuple))
        return Call(str(name), plain, tuple(i for i in items if isinstance(i, tuple)), span=_span(meta))

    def kind(self, meta, name, *rest):
        test = None if not rest or isinstance(rest[0], Entry) else rest[0]
        entries = tuple(item for item in rest if isinstance(item, Entry))
        span = _span(meta)
        return Kind(str(name), test, Body(entries, span=span), span=span)

    def block(self, meta, name, args, result, prefix, body):
        at = prefix[1:-1] if prefix else None
        return Block(str(name), args or (), result, at, body, span=_span(meta))

    def model(self, meta, args, result, body):
        return Model(args or (), result, body, span=_span(meta))

    def start(self, meta, *lines):
        return Architecture(lines[0].name, lines, span=_span(meta))


def _token(token: Token) -> Span:
    line, col = token.line or 1, token.column or 1
    return Span(line, col, token.end_line or line, token.end_column or col + len(token))


def parse(text: str, file: str = "<spec>") -> Architecture:
    """The syntax tree of one architecture. Raises `SpecError` with file, line, column and carets."""
    from .comments import attach  # here, for the two modules know each other's classes

    try:
        tree: Architecture = _Tree().transform(parser().parse(text if text.endswith("\n") else text + "\n"))
    except VisitError as error:
        raise error.orig_exc from None
    except UnexpectedInput as error:
        raise _explain(error, text, file) from None
    tree = _in_file(tree, file)
    return dataclasses.replace(attach(tree, text), source=text)


def load(path: str | Path) -> Architecture:
    """Parses an `.arch` file. Raises `SpecError` when it cannot be read or does not parse."""
    path = Path(path)
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"cannot read the architecture file {path}: {reason}") from None


def shipped() -> dict[str, Path]:
    """The architectures that come with the package, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.arch"))}


def _in_file(node: Any, file: str) -> Any:
    """The same tree with the file's name in every span."""
    if isinstance(node, tuple):
        return tuple(_in_file(item, file) for item in node)
    if not isinstance(node, Syntax):
        return node
    changes = {f.name: _in_file(getattr(node, f.name), file) for f in dataclasses.fields(node) if f.name != "span"}
    return dataclasses.replace(node, span=dataclasses.replace(node.span, file=file), **changes)


# --- syntax errors that name what is wrong ---------------------------------------------------------------

_PAIRS = {"}": "{", ")": "(", "]": "["}
_READABLE = {
    "_NL": "the end of the line",
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": 'a "key"',
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "EQUAL": "`=`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "ARCH": "`arch NAME` on the first line",
    "__ANON_0": "`->`",
}


def _explain(error: UnexpectedInput, text: str, file: str) -> SpecError:
    unclosed = _unclosed(text)
    line, col = max(error.line, 1), max(error.column, 1)
    if isinstance(error, UnexpectedCharacters):
        span = Span(line, col, line, col + 1, file)
        return SpecError(f"unexpected character {text[error.pos_in_stream]!r}", span, text)
    token = error.token if isinstance(error, UnexpectedToken) else None
    at_end = token is None or token.type == "$END" or not str(token).strip()
    if isinstance(unclosed, tuple) and (at_end or unclosed[0] == "{"):
        opener, oline, ocol = unclosed
        closer = next(c for c, o in _PAIRS.items() if o == opener)
        here = Span(oline, ocol, oline, ocol + 1, file)
        return SpecError(f"missing `{closer}`: this `{opener}` opened at {oline}:{ocol} is never closed", here, text)
    if isinstance(unclosed, str):
        span = Span(line, col, line, col + 1, file)
        return SpecError(f"`{unclosed}` closes nothing", span, text, hint="remove it, or open it before")
    expected = sorted(getattr(error, "accepts", None) or getattr(error, "expected", ()) or ())
    wanted = [_READABLE[name] for name in expected if name in _READABLE]
    found = "the end of the line" if at_end else f"`{token}`"
    width = 1 if at_end else len(str(token))
    words = " or ".join(wanted[:4]) if wanted else "something else"
    if token is not None and token.type == "NAME" and "EQUAL" not in expected and token.value in _SUGGEST:
        words = _SUGGEST[token.value]
    return SpecError(f"unexpected {found}; expected {words}", Span(line, col, line, col + width, file), text)


_SUGGEST = {"def": "`block NAME(...)`", "elif": "`else { if ... }`", "while": "`for i in N`"}


def _unclosed(text: str) -> tuple[str, int, int] | str | None:
    """The innermost bracket left open (with its place), a closer that closes nothing, or None."""
    stack: list[tuple[str, int, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        quoted = False
        for col, char in enumerate(line, 1):
            if char == '"':
                quoted = not quoted
            elif quoted:
                continue
            elif char == "#":
                break
            elif char in "{([":
                stack.append((char, number, col))
            elif char in _PAIRS:
                if not stack or stack[-1][0] != _PAIRS[char]:
                    return stack[-1] if stack else char
                stack.pop()
    return stack[-1] if stack else None
