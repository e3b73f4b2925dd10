"""What an architecture can do without: its tree with one thing switched off, once for each such thing.

Nothing here knows an architecture. A norm, a rotation or an activation lets its input through; a factor or a term
is left out, and so is an optional argument, a line with `when`, and a kind of layer; a conditional goes
the other way; a key is read as if the file did not have it. Whether what is left still fits a file, and whether
it is another program at all, only the compiler can tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import tree as t
from .errors import Span
from .format import expression

# Functions whose result is of the shape of their first argument: without them, that passes through.
STAGES = {
    "rms": "norm",
    "rope": "rotation",
    "softcap": "softcap",
    "softmax": "softmax",
    "gelu": "activation",
    "silu": "activation",
    "tanh": "activation",
}
HEADS = 3  # the rank of queries, [T, H, D]


@dataclass(frozen=True)
class Switch:
    """One thing switched off: where it stands, what there is instead in words, and the tree that has it so."""

    span: Span
    what: str
    tree: t.Architecture

    @property
    def source(self) -> str:
        """The line of the spec in which it stands, without its comment."""
        lines = self.tree.source.splitlines()
        line = lines[self.span.line - 1] if 0 < self.span.line <= len(lines) else ""
        return line.split("  #")[0].strip()


@dataclass(frozen=True)
class _Edit:
    """A piece of the tree and what stands in its place: None leaves a line out."""

    old: t.Syntax
    new: t.Syntax | None
    what: str
    span: Span
    settled: bool = False  # before any token is known: another way into what the file says


def switches(tree: t.Architecture) -> list[Switch]:
    """Everything that can be switched off: what is computed first, then what settles that, each in the file's order."""
    edits = [edit for line in tree.lines for edit in _declaration(line)]
    edits.sort(key=lambda e: (e.settled, e.span.line, e.span.col))
    return [Switch(e.span, e.what, replaced(tree, e.old, e.new)) for e in edits]


def replaced(item: Any, old: t.Syntax, new: t.Syntax | None) -> Any:
    """A piece of a tree with `old`, that very object, changed to `new`."""
    if item is old:
        return new
    if isinstance(item, tuple):
        parts = [replaced(part, old, new) for part in item]
        same = all(after is before for after, before in zip(parts, item, strict=True))
        return item if same else tuple(part for part in parts if part is not None)
    if not isinstance(item, t.Syntax):
        return item
    for field in dataclasses.fields(item):
        before = getattr(item, field.name)
        after = replaced(before, old, new)
        if after is not before:
            return dataclasses.replace(item, **{field.name: after})
    return item


# --- declarations and statements -------------------------------------------------------------------------


def _declaration(line: t.Line) -> Iterator[_Edit]:
    match line:
        case t.Param(value=value) | t.Let(value=value):
            yield from _setting(value)
        case t.Kind(name=name, test=test, body=body):
            if test is not None:
                yield _Edit(line, None, f"no layers of the kind {name}", line.span, True)
            for entry in body.lines:
                if isinstance(entry, t.Entry):
                    yield from _setting(entry.value)
        case t.Block(args=args, body=body) | t.Model(args=args, body=body):
            yield from _Body(args, body).edits(body)


def _setting(value: t.Expr) -> Iterator[_Edit]:
    """Of a value that is known before any token is."""
    match value:
        case t.Binary(op="or") if any(isinstance(part, t.Key) for part in t.walk(value)):
            keys = " or ".join(expression(part) for part in t.walk(value) if isinstance(part, t.Key))
            if not isinstance(value.right, t.Key):
                what = f"as if the file had no {keys}: {expression(value.right)}"
                yield _Edit(value, value.right, what, value.span, True)
        case t.Choose():
            yield from _ways(value)
            yield from _setting(value.yes)
            yield from _setting(value.no)
        case t.Search(test=test):
            what = f"the last, even if not {expression(test)}"
            yield _Edit(test, t.Literal(True, span=test.span), what, test.span, True)


def _ways(choice: t.Choose) -> Iterator[_Edit]:
    """Both ways of a conditional, unless it asks what tensors a file has: how they are stored is no choice."""
    if any(isinstance(part, t.Call) and part.function == "has" for part in t.walk(choice.test)):
        return
    test = expression(choice.test)
    yield _Edit(choice, choice.yes, f"as if {test}", choice.span, True)
    yield _Edit(choice, choice.no, f"as if not {test}", choice.span, True)


class _Body:
    """The statements of one block. Its values depend on tokens: arguments with a shape, and what is made of them."""

    def __init__(self, args: tuple[t.Arg, ...], body: t.Body):
        self.values = {arg.name for arg in args if arg.shape is not None}
        self.assigned: dict[str, t.Expr] = {}
        for line in t.walk(body):
            if isinstance(line, t.Assign):
                self.assigned.setdefault(line.name, line.value)
                if self.is_value(line.value):
                    self.values.add(line.name)

    def is_value(self, expr: t.Expr) -> bool:
        """Whether an expression depends on tokens. Functions do; a tensor or a number by itself does not."""
        parts = list(t.walk(expr))
        calls = any(isinstance(part, t.Call) and part.function != "has" for part in parts)
        return calls or any(isinstance(part, t.Name) and part.text in self.values for part in parts)

    def edits(self, body: t.Body) -> Iterator[_Edit]:
        for line in body.lines:
            match line:
                case t.Assign(name=name, value=value, when=when):
                    if when is not None:
                        yield _Edit(line, None, f"no {name} = ... when {expression(when)}", line.span)
                    yield from self.expression(value)
                case t.Return(value=value):
                    yield from self.expression(value)
                case t.Store(values=values):
                    for value in values:
                        yield from self.expression(value)
                case t.Branch(then=then, otherwise=otherwise):
                    yield from self.edits(then)
                    if otherwise is not None:
                        yield from self.edits(otherwise)

    # --- expressions ---------------------------------------------------------------------------------

    def expression(self, expr: t.Expr) -> Iterator[_Edit]:
        """Of an expression and all values within it; sizes, subscripts and conditions are no values."""
        match expr:
            case t.Chain(value=value, call=call):
                yield from self.expression(value)
                yield from self.stage(expr, value, call, call.args[:1])
            case t.Call(args=args):
                for arg in args:
                    yield from self.expression(arg)
                if args:
                    yield from self.stage(expr, args[0], expr, args[1:2])
            case t.Binary(left=left, right=right):
                yield from self.expression(left)
                yield from self.expression(right)
                yield from self.operator(expr)
            case t.Choose(yes=yes, no=no):
                yield from self.expression(yes)
                yield from self.expression(no)
                yield from _ways(expr)
            case t.Annotate(value=value) | t.Item(value=value) | t.Unary(value=value):
                yield from self.expression(value)

    def stage(self, whole: t.Expr, value: t.Expr, call: t.Call, weight: tuple[t.Expr, ...]) -> Iterator[_Edit]:
        """Of a call, be it a pipe's or not: the stage itself, a norm's weight, optional arguments."""
        noun = STAGES.get(call.function)
        if noun is not None:
            by = f" {expression(weight[0])}" if call.function == "rms" and weight else ""
            yield _Edit(whole, value, f"no {noun}{by}", call.span)
        if call.function == "rms" and weight:
            bare = dataclasses.replace(call, args=tuple(arg for arg in call.args if arg is not weight[0]))
            yield _Edit(call, bare, f"unweighted norm, no {expression(weight[0])}", weight[0].span)
        for place, (name, given) in enumerate(call.named):
            others = call.named[:place], call.named[place + 1 :]
            usual = self.usual_scale(value) if (call.function, name) == ("attend", "scale") else None
            if usual is not None:
                changed = dataclasses.replace(call, named=(*others[0], (name, usual), *others[1]))
                yield _Edit(call, changed, f"scale={expression(usual)}, as is usual", given.span)
            elif call.function != "attend" or name != "scale":
                changed = dataclasses.replace(call, named=(*others[0], *others[1]))
                yield _Edit(call, changed, f"no {name}={expression(given)}", given.span)

    def operator(self, expr: t.Binary) -> Iterator[_Edit]:
        """Of a factor or a term, where something that depends on tokens stays."""
        left, right = expr.left, expr.right
        stays = self.is_value(left), self.is_value(right)
        if expr.op not in _WITHOUT:
            return
        if stays[0]:
            yield _Edit(expr, left, f"{_WITHOUT[expr.op]} {expression(right)}", right.span)
        if stays[1] and (expr.op == "+" or (expr.op == "*" and not stays[0])):
            carried = isinstance(left, t.Name) and any(part == left for part in t.walk(right))
            what = "no residual" if carried else _WITHOUT[expr.op]
            yield _Edit(expr, right, f"{what} {expression(left)}", left.span)

    def usual_scale(self, query: t.Expr) -> t.Expr | None:
        """One over the root of the head size, which is the last size that the query is given by name."""
        found: Any = query
        while isinstance(found, t.Name | t.Chain | t.Annotate):
            if isinstance(found, t.Annotate) and len(found.shape) == HEADS:
                return t.Binary("**", found.shape[-1], t.Unary("-", t.Number("0.5")))
            found = self.assigned.get(found.text) if isinstance(found, t.Name) else found.value
        return None


_WITHOUT = {"*": "no factor", "/": "not divided by", "+": "no", "-": "no"}
