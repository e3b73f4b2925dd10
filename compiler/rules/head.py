"""Only the last token's logits are wanted: compute less for the tokens before it.

Seen from the output, an op that treats each token alone needs only the last row of its operands, and
attention needs only the last query; keys and values are needed for every token. What nobody needs in
full is narrowed to one row. So the output head runs once, and in the layers that own no K and V, at
the end of some models, nothing is computed for the tokens before the last. Exact, and no rule of a model.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..dims import symbol
from ..ir import Module, Node, Rebuilder, carry, topological
from ..ops import OPS, node, with_args

T = symbol("T")


def last_token(module: Module, hits: Counter[str] | None = None) -> Module:
    """The unrolled module with outputs [1, ...]: those of the last token alone."""
    full = _needed_in_full(module)
    rebuild = Rebuilder(lambda item, args: item)
    done = rebuild.done

    def last_row(x: Node) -> Node:
        """The last row of an operand that has a row for each token."""
        if x.shape[:1] != (T,):
            return done[x]
        return node("slice", done[x], axis=0, start=T - 1, stop=T) if x in full else done[x]

    for item in topological(module.roots):
        if item in full or not has_tokens(item):
            done[item] = with_args(item, tuple(done[arg] for arg in item.args))
            continue
        attrs = {"shape": (1, *item.shape[1:])} if item.op == "reshape" else {}
        done[item] = with_args(item, tuple(last_row(arg) for arg in item.args), **attrs)
        if hits is not None:
            hits["last-token-only"] += 1
    outputs = tuple(last_row(out) for out in module.outputs)
    return replace(module, outputs=outputs, **carry(module, done))


def has_tokens(item: Node) -> bool:
    return item.shape[:1] == (T,)


def token_local(item: Node) -> bool:
    """Whether row t of the result needs only row t of those operands that have a row for each token."""
    traits = OPS[item.op].traits
    if item.op in ("reshape", "slice"):
        return item.args[0].shape[:1] == (T,) and item.get("axis") != 0
    return "token" in traits or ("row" in traits and len(item.shape) > 1)


def _needed_in_full(module: Module) -> frozenset[Node]:
    """The values of which more than the last row is read: by caches, and by what mixes tokens."""
    order = topological(module.roots)
    full = {item for item in order if item.op in ("tokens", "position", "cache_write")} | set(module.effects)
    for item in reversed(order):
        if item in full or not token_local(item):
            full |= {arg for arg in item.args if has_tokens(arg)}
    return frozenset(full)
