"""What expressions of an architecture evaluate to, beside numbers and nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from briolette.spec.errors import Span

from .dims import Affine, Dim, symbol
from .ir import Node

LAYER = symbol("i")
UNKNOWN = object()  # a name that is no parameter, kind entry or dimension


class Layer(int):
    """The layer at hand: a number in conditions, the symbol `i` where it names a tensor or cache slot."""


class Missing:
    """A metadata key the file does not have; only `or` accepts it."""

    def __init__(self, key: str):
        self.key = key


@dataclass(frozen=True)
class CacheSlot:
    """`cache[slot]`."""

    slot: int


@dataclass
class Frame:
    """What is known inside one block while it is elaborated."""

    values: dict[str, Any] = field(default_factory=dict)
    prefix: str = ""  # of tensor names, such as "blk.{i}"
    layer: Layer | None = None
    effects: list[Node] = field(default_factory=list)
    stored: dict[int, tuple[Node, ...]] = field(default_factory=dict)
    given: dict[str, Span] = field(default_factory=dict)  # the lines that gave names their values


def dim_of(value: Any) -> Dim:
    """An index as a dimension: the layer at hand stays symbolic."""
    return LAYER if isinstance(value, Layer) else value


def describe(value: Any) -> str:
    """A value in words, for messages."""
    match value:
        case None:
            return "`none`"
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else str(int(value))
        case str():
            return f"the text '{value}'"
        case list():
            return f"a list of {len(value)} values"
        case CacheSlot():
            return f"cache[{int(value.slot)}]"
        case Node():
            return f"a value {shape_of(value)}"
        case Affine():
            return f"the size {value}, known only when the program runs"
    return repr(value)


def bare(tensor: str) -> str:
    """A tensor's name as a spec writes it: `attn_q` of `blk.3.attn_q.weight`, and of `blk.{i}.attn_q.weight`."""
    return re.sub(r"^blk\.(?:\d+|\{i\})\.|\.weight$", "", tensor)


def stem(block: str) -> str:
    """A block's name without its kind and version: `attention.local.2` is `attention`."""
    return block.split(".", 1)[0]


def shape_of(value: Node) -> str:
    return f"[{', '.join(map(str, value.shape))}]"
