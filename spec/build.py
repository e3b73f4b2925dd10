"""Grammar rules to syntax tree nodes."""

# Rules are called by name with as many children as they have: types would only repeat the grammar.
# mypy: disable-error-code="no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any

from lark import Token, Transformer, v_args

from . import tree as t
from .errors import Span, SpecError


def _binary(name: str) -> Any:
    def build(self: Any, meta: Any, left: t.Expr, right: t.Expr) -> t.Binary:
        return t.Binary(name, left, right, span=self.at(meta))

    return build


@v_args(meta=True, inline=True)
class Builder(Transformer[Any, Any]):
    """Grammar rules to nodes, one short method a rule."""

    def __init__(self, file: str):
        super().__init__()
        self.file = file

    def at(self, place: Any) -> Span:
        """The span of a token or of a rule's meta."""
        return Span(place.line, place.column, place.end_line, place.end_column, self.file)

    # fmt: off
    def number(self, m, text): return t.Number(_number(text, self.at(m)), span=self.at(m))
    def key(self, m, text): return t.Key(text[1:-1], span=self.at(m))
    def text(self, m, text): return t.Text(text[1:-1], span=self.at(m))
    def none(self, m): return t.Literal(None, span=self.at(m))
    def true(self, m): return t.Literal(True, span=self.at(m))
    def false(self, m): return t.Literal(False, span=self.at(m))
    def name(self, m, *parts): return t.Name(".".join(parts), span=self.at(m))
    def kinds(self, m): return t.Name("kind", span=self.at(m))
    def group(self, m, value): return value
    def minus(self, m, _op, value): return t.Unary("-", value, span=self.at(m))
    def negate(self, m, value): return t.Unary("not", value, span=self.at(m))
    def binary(self, m, left, op, right): return t.Binary(str(op), left, right, span=self.at(m))
    def power(self, m, left, right): return t.Binary("**", left, right, span=self.at(m))
    def choose(self, m, yes, test, no): return t.Choose(test, yes, no, span=self.at(m))
    def chain(self, m, value, call): return t.Chain(value, call, span=self.at(m))
    def annotate(self, m, value, shape): return t.Annotate(value, shape, span=self.at(m))
    def search(self, m, name, _less, bound, test): return t.Search(str(name), bound, test, span=self.at(m))
    def range(self, m, start, _colon, stop): return t.Range(start, stop, span=self.at(m))
    def item(self, m, value, *subs): return t.Item(value, subs, span=self.at(m))
    def named(self, m, name, value): return (name, value)
    def actuals(self, m, *items): return items
    def shape(self, m, *items): return items
    def index(self, m, name): return str(name)
    def arg(self, m, name, shape): return t.Arg(str(name), shape, span=self.at(m))
    def args(self, m, *items): return items
    def body(self, m, *lines): return t.Body(tuple(x for x in lines if x is not None), span=self.at(m))
    def assign(self, m, name, value, when): return t.Assign(str(name), value, when, span=self.at(m))
    def store(self, m, name, slot, *values): return t.Store(str(name), slot, values, span=self.at(m))
    def branch(self, m, test, then, other): return t.Branch(test, then, other, span=self.at(m))
    def loop(self, m, name, count, body): return t.Loop(str(name), count, body, span=self.at(m))
    def unread(self, m, *names): return t.Unread(names, span=self.at(m))
    def ret(self, m, value): return t.Return(value, span=self.at(m))
    def arch(self, m, name): return t.Arch(str(name), span=self.at(m))
    def param(self, m, name, index, value): return t.Param(str(name), index, value, span=self.at(m))
    def let(self, m, name, index, value): return t.Let(str(name), index, value, span=self.at(m))
    def dim(self, m, *names): return t.DimDecl(tuple(map(str, names)), span=self.at(m))
    def ignore(self, m, *keys): return t.IgnoreKeys(tuple(self.key(k, k) for k in keys), span=self.at(m))
    def require(self, m, test, why): return t.Require(test, str(why[1:-1]), span=self.at(m))
    def entry(self, m, name, value): return t.Entry(str(name), value, span=self.at(m))
    def kind(self, m, name, *rest): return t.Kind(str(name), _before(rest), rest[-1], span=self.at(m))
    either, both, entries = _binary("or"), _binary("and"), body
    # fmt: on

    def call(self, m, name, actuals):
        plain, named = [], []
        for item in actuals or ():
            if isinstance(item, tuple):
                named.append((str(item[0]), item[1]))
            elif named:
                raise SpecError("an argument without a name stands after one with a name", item.span)
            else:
                plain.append(item)
        return t.Call(str(name), tuple(plain), tuple(named), span=self.at(m))

    def block(self, m, name, args, result, prefix, body):
        at = prefix[1:-1] if prefix is not None else None
        return t.Block(str(name), args or (), result, at, body, span=self.at(m))

    def model(self, m, args, result, body):
        return t.Model(args or (), result, body, span=self.at(m))

    def start(self, m, *lines):
        return t.Architecture(lines[0].name, lines, span=self.at(m))


def _before(rest: tuple[Any, ...]) -> Any:
    return rest[0] if len(rest) > 1 else None


def _number(text: Token, span: Span) -> str:
    if len(text) > 25 or float(text) > 1e38:
        raise SpecError("this number is too large", span)
    return str(text)
