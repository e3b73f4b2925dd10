"""Pattern rewriting: rules are data, the driver is one loop, and every hit is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .ir import Module, Node, Rebuilder, carry
from .ops import with_args

Match = dict[str, Any]


@dataclass(frozen=True)
class Pattern:
    """An op and patterns of its operands. A string binds whatever stands there; equal strings, equal nodes."""

    op: str
    args: tuple[Pattern | str, ...] = ()
    bind: str = ""

    def match(self, item: Node, found: Match) -> bool:
        if item.op != self.op or (self.args and len(self.args) != len(item.args)):
            return False
        if self.bind:
            found[self.bind] = item
        for part, arg in zip(self.args, item.args, strict=False):
            if isinstance(part, str):
                if found.setdefault(part, arg) is not arg:
                    return False
            elif not part.match(arg, found):
                return False
        return True


def op(name: str, *args: Pattern | str, bind: str = "") -> Pattern:
    return Pattern(name, args, bind)


@dataclass(frozen=True)
class Rule:
    """`build` gets the matched node and what the pattern bound; None means: not here after all."""

    name: str
    pattern: Pattern | None  # None: tried on every node
    build: Callable[[Node, Match], Node | None]


def rule(name: str, pattern: Pattern | None = None) -> Callable[[Callable[[Node, Match], Node | None]], Rule]:
    """Makes a rule of a function."""
    return lambda build: Rule(name, pattern, build)


Watch = Callable[[str, Node, Node], None]  # told the rule's name, the value before, and what stands in its place


def rewrite(
    module: Module, rules: Sequence[Rule], hits: Counter[str] | None = None, watch: Watch | None = None
) -> Module:
    """The module with the rules applied, operands first, until none applies anywhere.

    `hits` counts per rule; `watch(name, before, after)` sees every single rewrite (blame mode in tests).
    """
    counted: Counter[str] = Counter() if hits is None else hits
    by_op: dict[str, list[Rule]] = {}
    everywhere = [r for r in rules if r.pattern is None]
    for r in rules:
        if r.pattern is not None:
            by_op.setdefault(r.pattern.op, []).append(r)

    def once(item: Node) -> Node | None:
        for candidate in (*by_op.get(item.op, ()), *everywhere):
            found: Match = {}
            if candidate.pattern is not None and not candidate.pattern.match(item, found):
                continue
            new: Node | None = candidate.build(item, found)
            if new is not None and new is not item:
                counted[candidate.name] += 1
                if watch is not None:
                    watch(candidate.name, item, new)
                return new
        return None

    settled: dict[Node, Node] = {}

    def settle(item: Node) -> Node:
        """Rewrites a node whose operands are settled, and what the rewriting put below it."""
        if item in settled:
            return settled[item]
        args = tuple(settle(arg) for arg in item.args)
        now = with_args(item, args)
        new = once(now)
        result = now if new is None else settle(new)
        settled[item] = settled[now] = settled[result] = result
        return result

    rebuild = Rebuilder(lambda item, args: settle(with_args(item, args)))
    outputs, effects = rebuild(module.outputs), rebuild(module.effects)
    return replace(module, outputs=outputs, effects=effects, **carry(module, rebuild.done))
