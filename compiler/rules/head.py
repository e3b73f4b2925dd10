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
from ..ir import Module, Node, carry, topological
from ..ops import OPS, node, with_args

T = symbol("T")


def last_token(module: Module, hits: Counter[str] | None = None, count: int = 1) -> Module:
    """The unrolled module with outputs [1, ...]: those of the last token alone, or of the last `count` tokens."""
    full = needed_in_full(module)
    done: dict[Node, Node] = {}

    def last_row(x: Node) -> Node:
        """What an operand becomes where only the last tokens are computed."""
        if has_tokens(x) and x in full:
            return node("slice", done[x], axis=0, start=T - count, stop=T)
        return done[x]

    for item in topological(module.roots):
        if item in full or not has_tokens(item):
            done[item] = with_args(item, tuple(done[arg] for arg in item.args))
            continue
        attrs = {"shape": (count, *item.shape[1:])} if item.op == "reshape" else {}
        done[item] = with_args(item, tuple(last_row(arg) for arg in item.args), **attrs)
        if hits is not None:
            hits["last-token-only"] += 1
    outputs = tuple(last_row(out) for out in module.outputs)
    effects = tuple(done[effect] for effect in module.effects)
    return replace(module, outputs=outputs, effects=effects, **carry(module, done))


def has_tokens(item: Node) -> bool:
    """Whether a value has a row for each token."""
    return item.shape[:1] == (T,)


def token_local(item: Node) -> bool:
    """Whether row t of the result needs only row t of those operands that have a row for each token."""
    if not has_tokens(item):
        return False
    traits = OPS[item.op].traits
    if item.op in ("reshape", "slice"):
        return has_tokens(item.args[0]) and item.get("axis") != 0
    return "token" in traits or ("row" in traits and len(item.shape) > 1)


def needed_in_full(module: Module) -> frozenset[Node]:
    """The values of which more than the last row is read: by caches, and by what mixes tokens."""
    order = topological(module.roots)
    full = {item for item in order if item.op in ("tokens", "position", "cache_write")} | set(module.effects)
    for item in reversed(order):
        if item in full or not token_local(item):
            full |= {item, *item.args}
        elif item.op == "attend":
            full |= set(item.args[1:3])  # every query sees every key and value
    return frozenset(full)
