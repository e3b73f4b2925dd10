"""From a node to the line that is to blame: its own, or the one that a wrong operand or attribute comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from briolette.compiler.ir import Module, Node
from briolette.compiler.labels import scope
from briolette.compiler.values import stem
from briolette.spec.errors import Span, render
from briolette.spec.tree import (
    Annotate,
    Architecture,
    Assign,
    Block,
    Body,
    Branch,
    Call,
    Chain,
    Choose,
    Entry,
    Expr,
    Item,
    Kind,
    Let,
    Line,
    Loop,
    Model,
    Name,
    Param,
    Return,
    Syntax,
    walk,
)

S = TypeVar("S", bound=Syntax)
# Attributes that a spec may give by position: op -> their places after what is piped in.
POSITIONAL = {"rope": {"theta": 0}, "softcap": {"cap": 0}, "top": {"k": 0}, "rms_norm": {"eps": 1}}
# Attributes that are the value of a name where a spec gives none.
IMPLIED = {("rms_norm", "eps"): "eps"}
Agrees = Callable[[str], bool]  # whether a label's value is the reference's


@dataclass(frozen=True)
class Place:
    """A line of the spec, and in words what it does there."""

    span: Span
    why: str = ""


@dataclass(frozen=True)
class Site:
    """An expression, and the block it stands in."""

    expr: Expr
    owner: Block | Model


def shown(place: Place, message: str, tree: Architecture) -> str:
    """The message with the line of the spec and carets."""
    return render(message, place.span, tree.source)


class Source:
    """An architecture's text, asked from its program."""

    def __init__(self, tree: Architecture, module: Module):
        self.tree, self.module = tree, module
        self.kinds = {layer: name for name, layers, _ in module.kinds for layer in layers}

    # --- where a node stands ---------------------------------------------------------------------------

    def own(self, item: Node) -> Place | None:
        """The line that a node was written on."""
        spans = self.module.origins.get(item, ())
        return Place(spans[0]) if spans else None

    def line(self, item: Node) -> int:
        """The number of that line, or 0."""
        place = self.own(item)
        return place.span.line if place is not None else 0

    def returned(self, item: Node) -> Place | None:
        """The line with which the block of a value returns it."""
        owner = self.owner(item)
        found = [line for line in flat(owner.body) if isinstance(line, Return)] if owner is not None else []
        return Place(found[-1].span, "this is what the block returns") if found else None

    def stored(self, write: Node) -> Place | None:
        """The line that puts a value into the cache."""
        place = self.own(write)
        return Place(place.span, "this is what goes into the cache") if place is not None else None

    def owner(self, item: Node) -> Block | Model | None:
        """The block, or the model, that a node stands in."""
        _, block = self.module.places.get(item, (None, "main"))
        name = stem(block)
        found: Iterator[Block | Model] = self.tree.of(Model) if name == "main" else self.tree.of(Block)
        return next((b for b in found if isinstance(b, Model) or b.name == name), None)

    def site(self, item: Node) -> Site | None:
        """The expression that made a node."""
        place, owner = self.own(item), self.owner(item)
        if place is None or owner is None:
            return None
        for expr in walk(owner.body):
            if isinstance(expr, Expr) and expr.span == place.span and not isinstance(expr, Chain):
                return Site(expr, owner)
        return None

    @cached_property
    def piped(self) -> dict[Span, Expr]:
        """What is piped into each call."""
        return {chain.call.span: chain.value for chain in walk(self.tree) if isinstance(chain, Chain)}

    def operands(self, expr: Expr) -> list[Expr]:
        """What an expression works on, in the order of the node's operands."""
        if isinstance(expr, Call):
            before = [self.piped[expr.span]] if expr.span in self.piped else []
            return [*before, *expr.args]
        if isinstance(expr, Annotate):
            return [expr.value]
        parts = (getattr(expr, name, None) for name in ("left", "right", "value"))
        return [part for part in parts if isinstance(part, Expr)]

    # --- what a wrong value or number comes from --------------------------------------------------------

    def operand(self, item: Node, index: int, agrees: Agrees, home: str) -> Place | None:
        """The line where an operand that should be another came to be what it is.

        Names are followed to where they were given their value, parameters to the call, for as long as the
        name is not one whose value the reference has too. `home` is the block that makes the value it should be: no
        call passes that block a value of its own.
        """
        site = self.site(item)
        if site is None:
            return self.own(item)
        operands = self.operands(site.expr)
        if index >= len(operands):
            return self.own(item)
        layer, _ = self.module.places.get(item, (None, ""))
        place = Place(site.expr.span)
        expr, owner = unwrapped(operands[index]), site.owner
        for _ in range(8):  # a chain of names ends long before
            if not isinstance(expr, Name):
                break
            given = assigned(owner, expr)
            if given is not None:
                block = "main" if isinstance(owner, Model) else owner.name
                if agrees(f"{scope(None if block == 'main' else layer)}{block}.{expr.text}"):
                    break
                place = Place(given.span, f"`{expr.text}` is given its value here")
                expr = one_name(given.value)
                continue
            called = self.call(owner, expr.text) if owner_name(owner) != home else None
            if called is None:
                break
            place = Place(called[0].expr.span, f"`{expr.text}` of {owner_name(owner)} comes from here")
            expr, owner = unwrapped(called[1]), called[0].owner
        return place

    def call(self, owner: Block | Model, param: str) -> tuple[Site, Expr] | None:
        """Where a block is called, and what it is given for a parameter."""
        if isinstance(owner, Model) or param not in (names := [arg.name for arg in owner.args]):
            return None
        for caller in owners(self.tree):
            for expr in walk(caller.body):
                if isinstance(expr, Call) and expr.function == owner.name:
                    given = self.operands(expr)
                    at = names.index(param)
                    return (Site(expr, caller), given[at]) if at < len(given) else None
        return None

    def attribute(self, item: Node, name: str) -> tuple[Line, str] | None:
        """The declaration that an attribute's value comes from: a kind's entry, a `param` or a `let`."""
        site = self.site(item)
        if site is None or not isinstance(site.expr, Call):
            return None
        layer, _ = self.module.places.get(item, (None, ""))
        expr: Expr | str | None = dict(site.expr.named).get(name)
        if expr is None and name in POSITIONAL.get(item.op, {}):
            at = POSITIONAL[item.op][name] + (site.expr.span not in self.piped)
            expr = site.expr.args[at] if at < len(site.expr.args) else None
        if name == "slot":
            slots = [e for arg in site.expr.args for e in walk(arg) if isinstance(e, Item)]
            expr = unwrapped(slots[0].subscripts[0]) if slots else None
        if expr is None:
            expr = IMPLIED.get((item.op, name))
        return self.declared(expr, layer) if expr is not None else None

    def condition(self, item: Node) -> tuple[Line, str] | None:
        """The declaration that decided that a node is there at all: of a name in its `if` or `when`."""
        place, owner = self.own(item), self.owner(item)
        if place is None or owner is None:
            return None
        layer, _ = self.module.places.get(item, (None, ""))
        for expr in walk(owner.body):
            if isinstance(expr, Choose) and expr.span.line <= place.span.line <= expr.span.end_line:
                found = [self.declared(e, layer) for e in walk(expr.test) if isinstance(e, Name)]
                return next((line for line in found if line is not None), None)
        return None

    def declared(self, expr: Expr | str, layer: int | None) -> tuple[Line, str] | None:
        """The declaration behind a name such as `theta` or `src[i]`, and a key that tells it from other layers'."""
        if isinstance(expr, Item) and isinstance(expr.value, Name):
            expr = expr.value
        name = expr.text if isinstance(expr, Name) else expr
        if not isinstance(name, str):
            return None
        for kind in self.tree.of(Kind):
            if layer is not None and kind.name == self.kinds.get(layer):
                for line in kind.body.lines:
                    if isinstance(line, Entry) and line.name == name:
                        return line, f"{kind.name}.{name}"
        declarations: list[Param | Let] = [*self.tree.of(Param), *self.tree.of(Let)]
        for declaration in declarations:
            if declaration.name == name:
                return declaration, f"{name}[{layer if declaration.index else ''}]"
        return None


def kinds_decided(tree: Architecture) -> Place | None:
    """The line that says which layers are of which kind."""
    tests = [kind.test for kind in tree.of(Kind) if kind.test is not None]
    for test in tests:
        for name in (part.text for part in walk(test) if isinstance(part, Name)):
            for line in tree.of(Let):
                if line.name == name:
                    return Place(line.span, f"`{name}` decides the kind of each layer")
    return Place(tests[0].span, "this decides the kind of each layer") if tests else None


def rests_on(tree: Architecture, span: Span) -> list[tuple[str, str, Line]]:
    """The declarations that the statement at a place takes values from, and those that decided that it is there:
    name, kind of layer (or an empty text) and line of each."""
    entries: list[tuple[str, Entry | Let]] = [
        (kind.name, e) for kind in tree.of(Kind) for e in kind.body.lines if isinstance(e, Entry)
    ]
    declared = [*entries, *(("", line) for line in tree.of(Let))]
    read: dict[str, None] = {}
    for owner in owners(tree):
        for line in flat(owner.body):
            if not line.span.line <= span.line <= line.span.end_line:
                continue
            parts = walk(line.test if isinstance(line, Branch) else line)
            read |= dict.fromkeys(part.text for part in parts if isinstance(part, Name))
    return [(line.name, kind, line) for kind, line in declared if line.name in read]


def owners(tree: Architecture) -> list[Block | Model]:
    """What statements stand in."""
    return [*tree.of(Block), *tree.of(Model)]


def owner_name(owner: Block | Model) -> str:
    return "model" if isinstance(owner, Model) else owner.name


def flat(body: Body) -> Iterator[Line]:
    """The statements of a body, those of its branches and loops among them."""
    for line in body.lines:
        yield line
        if isinstance(line, Branch):
            yield from flat(line.then)
            if line.otherwise is not None:
                yield from flat(line.otherwise)
        elif isinstance(line, Loop):
            yield from flat(line.body)


def assigned(owner: Block | Model, name: Name) -> Assign | None:
    """The statement before a name's use that gave it its value."""
    found = None
    for line in flat(owner.body):
        if (
            isinstance(line, Assign)
            and line.name == name.text
            and line.span < name.span
            and line.value.span < name.span
        ):
            found = line
    return found


def unwrapped(expr: Expr) -> Expr:
    """An expression without the shape it is annotated with."""
    return unwrapped(expr.value) if isinstance(expr, Annotate) else expr


def one_name(expr: Expr) -> Expr:
    """The name that an expression only passes on, if it is one, or a choice with one."""
    expr = unwrapped(expr)
    if isinstance(expr, Choose):
        names = [part for part in map(unwrapped, (expr.yes, expr.no)) if isinstance(part, Name)]
        return names[0] if names else expr
    return expr
