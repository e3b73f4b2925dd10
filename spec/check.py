"""Mistakes that need no model file: names declared twice, never used or unknown, lines never reached."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

from . import tree as t
from .errors import Span, SpecError

TOKENS = "T"  # the one dimension every architecture has


def check(tree: t.Architecture) -> None:
    """Raises SpecError for the first mistake found."""
    _Checker(tree).run()


class _Checker:
    def __init__(self, tree: t.Architecture):
        self.tree = tree
        self.declared: dict[str, tuple[str, Span]] = {}  # name -> what it is, and where
        self.blocks = {block.name: block for block in tree.of(t.Block)}

    def run(self) -> None:
        self.declarations()
        self.kinds()
        self.keys()
        for block in self.tree.of(t.Block):
            self.block(block)
        for model in self.tree.of(t.Model):
            self.block(model)
        self.model()
        self.calls()
        self.used()

    def fail(self, message: str, span: Span, hint: str = "") -> NoReturn:
        raise SpecError(message, span, self.tree.source, hint)

    # --- declarations --------------------------------------------------------------------------------

    def declarations(self) -> None:
        for line in self.tree.lines:
            match line:
                case t.Param(name=name):
                    self.declare(name, "a parameter", line.span)
                case t.Let(name=name):
                    self.declare(name, "a value", line.span)
                case t.Block(name=name):
                    self.declare(name, "a block", line.span)
                case t.DimDecl(names=names):
                    for name in names:
                        self.declare(name, "a dimension", line.span)
        for kind in self.tree.of(t.Kind):
            for entry in _entries(kind):
                known = self.declared.get(entry.name)
                if known and known[0] != "an entry of the kinds":
                    self.twice(entry.name, entry.span)
                self.declared.setdefault(entry.name, ("an entry of the kinds", entry.span))
        self.declared.setdefault(TOKENS, ("a dimension", self.tree.span))

    def declare(self, name: str, what: str, span: Span) -> None:
        if name in self.declared:
            self.twice(name, span)
        self.declared[name] = (what, span)

    def twice(self, name: str, span: Span) -> NoReturn:
        what, first = self.declared[name]
        self.fail(f"`{name}` is declared twice", span, f"line {first.line} makes it {what}; choose another name")

    def kinds(self) -> None:
        kinds = list(self.tree.of(t.Kind))
        for place, kind in enumerate(kinds):
            last = place == len(kinds) - 1
            if any(other.name == kind.name for other in kinds[:place]):
                self.fail(f"there are two kinds `{kind.name}`", kind.span, "a layer is of the first kind that fits")
            if kind.test is None and not last:
                self.fail(f"`{kind.name}` takes every layer that is left", kind.span, "put `otherwise` last")
            if kind.test is not None and last:
                self.fail(
                    f"a layer may be of no kind: `{kind.name}` has a condition",
                    kind.span,
                    "end with `otherwise`",
                )
            names = [entry.name for entry in _entries(kind)]
            for entry in _entries(kind):
                if names.count(entry.name) > 1:
                    self.fail(f"kind `{kind.name}` says `{entry.name}` twice", entry.span)
            for entry in _entries(kinds[0]):
                if entry.name not in names:
                    self.fail(f"kind `{kind.name}` does not say `{entry.name}`", kind.span, _same(kinds[0], entry))
            for entry in _entries(kind):
                if not any(first.name == entry.name for first in _entries(kinds[0])):
                    self.fail(
                        f"kind `{kinds[0].name}` does not say `{entry.name}`",
                        kinds[0].span,
                        _same(kind, entry),
                    )

    def keys(self) -> None:
        ignored: dict[str, Span] = {}
        for line in self.tree.of(t.IgnoreKeys):
            for key in line.keys:
                if key.text in ignored:
                    hint = f"line {ignored[key.text].line} does it too"
                    self.fail(f'"{key.text}" is ignored twice', key.span, hint)
                ignored[key.text] = key.span
        for other in self.tree.lines:
            for item in t.walk(other):
                if isinstance(item, t.Key) and ignored.get(item.text, item.span) != item.span:
                    hint = f"line {ignored[item.text].line} ignores it; one of the two must go"
                    self.fail(f'"{item.text}" is read here and ignored elsewhere', item.span, hint)

    # --- blocks --------------------------------------------------------------------------------------

    def block(self, block: t.Block | t.Model) -> None:
        names: set[str] = set()
        for arg in block.args:
            if arg.name in names:
                self.fail(f"two arguments are called `{arg.name}`", arg.span)
            names.add(arg.name)
            self.free(arg.name, arg.span)
        locals_ = list(_assigned(block.body))
        self.body(block.body)
        known = names | {name for name, _ in locals_}
        for shape in _shapes(block):
            self.shape(shape, known)
        read = {item.text for item in t.walk(block.body) if isinstance(item, t.Name)}
        for name, span in (*locals_, *((arg.name, arg.span) for arg in block.args if arg.shape is not None)):
            if name not in read:
                self.fail(f"`{name}` is never used", span, "use it, or remove it")

    def free(self, name: str, span: Span) -> None:
        """Fails where a local name would hide a declared one."""
        if name == "cache":
            self.fail("`cache` is the cache", span, "store into it with `cache[i] <- k, v`")
        if name in self.declared:
            what, first = self.declared[name]
            where = f" (line {first.line})" if name != TOKENS else ""
            self.fail(f"`{name}` is {what} already{where} and cannot be assigned", span, "choose another name")

    def body(self, body: t.Body) -> None:
        ended: t.Line | None = None
        waiting: dict[str, t.Line] = {}  # values that no line has read yet
        for line in body.lines:
            if ended is not None:
                hint = f"line {ended.span.line} returns already"
                self.fail("this line is never reached", line.span, hint)
            for item in t.walk(line):
                if isinstance(item, t.Name) or (isinstance(item, t.Assign) and item is not line):
                    waiting.pop(item.text if isinstance(item, t.Name) else item.name, None)
            match line:
                case t.Assign(name=name, when=when):
                    self.free(name, line.span)
                    if name in waiting and when is None:
                        hint = f"line {line.span.line} gives `{name}` another before anything reads this one"
                        self.fail(f"this value of `{name}` is never used", waiting[name].span, hint)
                    waiting[name] = line
                case t.Loop(variable=name, body=inner):
                    self.free(name, line.span)
                    self.body(inner)
                case t.Branch(then=then, otherwise=otherwise):
                    self.body(then)
                    if otherwise is not None:
                        self.body(otherwise)
                case t.Store(cache=cache, values=values):
                    if cache != "cache":
                        self.fail(f"nothing can be stored in `{cache}`", line.span, "write `cache[i] <- k, v`")
                    if len(values) != 2:
                        hint = "write `cache[i] <- k, v`"
                        self.fail(f"a cache takes keys and values, not {len(values)} values", line.span, hint)
            if _returns(line):
                ended = line

    def shape(self, shape: tuple[t.Expr, ...], known: set[str]) -> None:
        for item in t.walk(shape):
            if (
                isinstance(item, t.Name)
                and item.text not in known
                and item.text not in self.declared
                and item.text != "kind"
            ):
                near = difflib.get_close_matches(item.text, [*self.declared, *known], 1, 0.6)
                hint = f"did you mean `{near[0]}`?" if near else f"declare it: `dim {item.text}`"
                self.fail(f"the size `{item.text}` is not declared", item.span, hint)

    def model(self) -> None:
        models = list(self.tree.of(t.Model))
        if len(models) > 1:
            self.fail("a second model", models[1].span, f"line {models[0].span.line} has the first")
        if not models:
            hint = "such as `model(tokens: [T]) -> [T, V] { … }`"
            self.fail("the architecture has no `model`", self.tree.lines[0].span, hint)

    def calls(self) -> None:
        for call in t.walk(self.tree.lines):
            if isinstance(call, t.Call):
                names = [name for name, _ in call.named]
                twice = [name for name in names if names.count(name) > 1]
                if twice:
                    self.fail(f"`{twice[0]}` is given twice", call.span)
        for block in self.blocks.values():
            self.cycle(block, (block.name,))

    def cycle(self, block: t.Block, path: tuple[str, ...]) -> None:
        for call in t.walk(block.body):
            if isinstance(call, t.Call) and call.function in self.blocks:
                if call.function in path:
                    through = " -> ".join((*path[path.index(call.function) :], call.function))
                    self.fail(f"block `{call.function}` calls itself: {through}", call.span)
                self.cycle(self.blocks[call.function], (*path, call.function))

    # --- use -----------------------------------------------------------------------------------------

    def used(self) -> None:
        """A parameter that is read from the file and then forgotten is a lost quirk; so is a block."""
        calls = {item.function for item in t.walk(self.tree.lines) if isinstance(item, t.Call)}
        names = {item.text for item in t.walk(self.tree.lines) if isinstance(item, t.Name)} | {TOKENS}
        if "rms" in calls:
            names.add("eps")  # what rms takes where it is given none
        for name, (what, span) in self.declared.items():
            if name not in (calls if what == "a block" else names):
                hint = "call it, or remove it" if what == "a block" else "use it, or remove it and `ignore` its key"
                self.fail(f"`{name}` is never used", span, hint if what != "a dimension" else "remove it")


def _entries(kind: t.Kind) -> list[t.Entry]:
    return [entry for entry in kind.body.lines if isinstance(entry, t.Entry)]


def _same(kind: t.Kind, entry: t.Entry) -> str:
    return f"every kind says the same things, and `{kind.name}` says `{entry.name}` in line {entry.span.line}"


def _assigned(body: t.Body) -> Iterable[tuple[str, Span]]:
    for item in t.walk(body):
        if isinstance(item, t.Assign):
            yield item.name, item.span
        elif isinstance(item, t.Loop):
            yield item.variable, item.span


def _shapes(block: t.Block | t.Model) -> Iterable[tuple[t.Expr, ...]]:
    for item in t.walk((block.args, block.body)):
        if isinstance(item, t.Annotate | t.Arg) and item.shape is not None:
            yield item.shape
    yield block.result


def _returns(line: t.Line) -> bool:
    """Whether nothing after the line can run."""
    if isinstance(line, t.Branch):
        bodies = (line.then, line.otherwise)
        return all(body is not None and any(map(_returns, body.lines)) for body in bodies)
    return isinstance(line, t.Return)
