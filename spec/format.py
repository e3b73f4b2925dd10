"""Syntax tree to canonical text: one layout for every architecture, comments kept.

`parse(format(tree)) == tree`, and formatting formatted text changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import tree as t

# How tightly each form binds; a part that binds more loosely than its place allows gets parentheses.
CHOOSE, PIPE, OR, AND, NOT, COMPARE, SUM, PRODUCT, MINUS, POWER, ATOM = range(11)
_BINDS = {
    **{"or": OR, "and": AND, "**": POWER},
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), COMPARE),
    **dict.fromkeys(("+", "-"), SUM),
    **dict.fromkeys(("*", "/", "//", "%"), PRODUCT),
}
_WIDTH = 110
_INDENT = "  "


def format(tree: t.Architecture) -> str:
    """The canonical text of an architecture."""
    rows: list[_Row] = []
    for line in tree.lines:
        _line(line, 0, rows)
    rows += [_Row(0, "", text) for text in tree.closing]
    return _align(rows)


class _Row:
    """One output line: indentation, code, comment. `equals` is where an aligned `=` may move."""

    def __init__(self, depth: int, code: str, comment: str = "", equals: int | None = None):
        self.indent, self.code, self.comment, self.equals = _INDENT * depth, code, comment, equals


def _align(rows: list[_Row]) -> str:
    """Aligns `=` in runs of declarations and comments in runs of commented lines."""
    for run in _runs(rows, lambda row: row.equals is not None):
        column = max(row.equals or 0 for row in run)
        for row in run:
            left, right = row.code[: row.equals], row.code[row.equals or 0 :]
            row.code = left.ljust(column) + right
    for run in _runs(rows, lambda row: bool(row.code and row.comment)):
        column = max(len(row.indent + row.code) for row in run)
        for row in run:
            row.code = row.code.ljust(column - len(row.indent))
    return "\n".join(_text(row) for row in rows) + "\n"


def _text(row: _Row) -> str:
    if not row.comment:
        return (row.indent + row.code).rstrip()
    return row.indent + (f"{row.code}  {row.comment}" if row.code else row.comment)


def _runs(rows: list[_Row], belongs: object) -> Iterable[list[_Row]]:
    run: list[_Row] = []
    for row in rows:
        if belongs(row):  # type: ignore[operator]
            run.append(row)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _line(line: t.Line, depth: int, rows: list[_Row]) -> None:
    rows += [_Row(depth, "", text) for text in line.lead]
    tail = line.tail
    match line:
        case t.Param(name=name, index=index, value=value):
            left = f"param {name}[{index}] " if index else f"param {name} "
            rows.append(_Row(depth, f"{left}= {expression(value)}", tail, len(left)))
        case t.Kind(name=name, test=test):
            head = f"kind {name} " + (f"when {expression(test)}" if test else "otherwise")
            _short(head, line.body, depth, rows, tail)
        case t.Block():
            at = f' at "{line.prefix}"' if line.prefix is not None else ""
            head = f"block {line.name}({_args(line.args)}) -> {_shape(line.result)}{at}"
            _braces(head, line.body, depth, rows, tail)
        case t.Model():
            _braces(f"model({_args(line.args)}) -> {_shape(line.result)}", line.body, depth, rows, tail)
        case t.Loop():
            head = f"for {line.variable} in {expression(line.count)}"
            _short(head, line.body, depth, rows, tail, most=1)
        case t.Branch():
            head = f"if {expression(line.test)}"
            if line.otherwise is None:
                _braces(head, line.then, depth, rows, tail)
            else:
                _braces(head, line.then, depth, rows, "")
                before = rows.pop()
                _braces(before.code + " else", line.otherwise, depth, rows, tail)
        case _:
            rows.append(_Row(depth, _simple(line), tail))


def _simple(line: t.Line) -> str:
    match line:
        case t.Arch(name=name):
            return f"arch {name}"
        case t.Let(name=name, index=index, value=value):
            return f"let {name}{f'[{index}]' if index else ''} = {expression(value)}"
        case t.DimDecl(names=names):
            return f"dim {', '.join(names)}"
        case t.IgnoreKeys(keys=keys):
            return "ignore " + ", ".join(expression(key) for key in keys)
        case t.Require(test=test, why=why):
            return f"require {expression(test)}, '{why}'"
        case t.Entry(name=name, value=value):
            return f"{name} = {expression(value)}"
        case t.Assign(name=name, value=value, when=when):
            return f"{name} = {expression(value)}" + (f" when {expression(when, OR)}" if when else "")
        case t.Store(cache=cache, slot=slot, values=values):
            return f"{cache}[{expression(slot)}] <- " + ", ".join(expression(v) for v in values)
        case t.Unread(names=names):
            return "ignore " + ", ".join(name.text for name in names)
        case t.Return(value=value):
            return f"return {expression(value)}"
    raise TypeError(type(line).__name__)


def _short(head: str, body: t.Body, depth: int, rows: list[_Row], tail: str, most: int = 100) -> None:
    """A body of up to `most` short statements stays on one line, where no comment keeps it from that."""
    lines = body.lines
    plain = not (body.opening or body.closing or any(line.lead or line.tail for line in lines))
    if plain and lines and len(lines) <= most and not any(isinstance(line, t.Branch | t.Loop) for line in lines):
        short = f"{head} {{ {'; '.join(_simple(line) for line in lines)} }}"
        if len(_INDENT * depth + short) <= _WIDTH:
            rows.append(_Row(depth, short, tail))
            return
    _braces(head, body, depth, rows, tail)


def _braces(head: str, body: t.Body, depth: int, rows: list[_Row], tail: str) -> None:
    rows.append(_Row(depth, head + " {", body.opening))
    for line in body.lines:
        _line(line, depth + 1, rows)
    rows += [_Row(depth + 1, "", text) for text in body.closing]
    rows.append(_Row(depth, "}", tail))


def _args(args: Iterable[t.Arg]) -> str:
    return ", ".join(a.name + (f": {_shape(a.shape)}" if a.shape is not None else "") for a in args)


def _shape(shape: Iterable[t.Expr]) -> str:
    return f"[{', '.join(expression(e) for e in shape)}]"


def expression(value: t.Expr, place: int = CHOOSE) -> str:
    """The text of an expression; `place` is how tightly its surroundings bind."""
    text, binds = _expression(value)
    return text if binds >= place else f"({text})"


def _expression(value: t.Expr) -> tuple[str, int]:
    match value:
        case t.Number(text=text) | t.Name(text=text):
            return text, ATOM
        case t.Literal(value=constant):
            return {None: "none", True: "true", False: "false"}[constant], ATOM
        case t.Key(text=text):
            return f'"{text}"', ATOM
        case t.Text(text=text):
            return f"'{text}'", ATOM
        case t.Unary(op="not", value=inner):
            return f"not {expression(inner, NOT)}", NOT
        case t.Unary(op=op, value=inner):
            return f"{op}{expression(inner, MINUS)}", MINUS
        case t.Binary(op="**", left=left, right=right):
            return f"{expression(left, ATOM)} ** {expression(right, MINUS)}", POWER
        case t.Binary(op=op, left=left, right=right):
            binds = _BINDS[op]
            # Comparisons do not chain; everything else groups to the left.
            first = expression(left, binds + (binds == COMPARE))
            return f"{first} {op} {expression(right, binds + 1)}", binds
        case t.Choose(test=test, yes=yes, no=no):
            return f"{expression(yes, PIPE)} if {expression(test, OR)} else {expression(no)}", CHOOSE
        case t.Call():
            return _call(value), ATOM
        case t.Chain(value=inner, call=call):
            return f"{expression(inner, PIPE)} |> {_call(call)}", PIPE
        case t.Annotate(value=inner, shape=shape):
            return f"{expression(inner, PIPE)} : {_shape(shape)}", PIPE
        case t.Search(variable=name, bound=bound, test=test):
            return f"last({name} < {expression(bound, SUM)} : {expression(test, OR)})", ATOM
        case t.Range(start=start, stop=stop):
            return f"{_bound(start)}:{_bound(stop)}", ATOM
        case t.Item(value=inner, subscripts=subs):
            return f"{expression(inner, ATOM)}[{', '.join(expression(s, OR) for s in subs)}]", ATOM
    raise TypeError(type(value).__name__)


def _call(call: t.Call) -> str:
    parts = [expression(a) for a in call.args] + [f"{k}={expression(v)}" for k, v in call.named]
    return f"{call.function}({', '.join(parts)})"


def _bound(value: t.Expr | None) -> str:
    return "" if value is None else expression(value, OR)
