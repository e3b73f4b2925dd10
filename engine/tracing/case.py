"""One diverging value with all that may explain it, and what an explanation is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briolette.compiler.ir import Node
from briolette.compiler.ops import OPS, attributes

from .measure import distance
from .replay import Compared, Lane

Array = NDArray[Any]
BETTER = 0.5  # what an explanation must leave at most of the error
GOLDEN = (5**0.5 - 1) / 2
NARROWINGS = 60  # of an interval by golden section: to 3e-13 of its width


@dataclass(frozen=True)
class Cause:
    """What was found. `operand` or `attribute` tells what of the op is to blame; `extra`, that the op should not be."""

    text: str
    operand: int | None = None
    reads: str = ""  # what the reference has as that operand
    attribute: str = ""
    value: Any = None  # what the attribute should be
    extra: bool = False
    tensor: str = ""  # the tensor that only ours, or only the reference, is multiplied by


@dataclass(frozen=True)
class Case:
    """One diverging value: `item` is the op to blame, `row` the comparison where it shows.

    `after` are the ops from there to the compared value. `later(values)` is what that would be if some of these were
    other values, `again(value)` what it would be if `item` were. `others` are the reference's values before it,
    `there` what to say of those that we have not by that name, `mine` our values of the layer as they were compared,
    `tensors` small tensors of the layer by name, `numbers` the model's sizes and other numbers by name, `ropes` the
    rotations that it may have: attributes and frequency factors, `epsilons` what a norm's eps may be.
    """

    item: Node
    row: Compared
    inputs: Sequence[Array]
    after: Sequence[Node]
    later: Callable[[Mapping[Node, Array]], Array]
    others: Mapping[str, Array]
    there: Mapping[str, str]
    mine: Mapping[str, Array]
    tensors: Mapping[str, Array]
    numbers: Mapping[str, float]
    ropes: Sequence[tuple[Mapping[str, Any], Array | None]]
    epsilons: Sequence[tuple[float, str]]
    names: Mapping[Node, str]
    lane: Lane
    heavy: bool = False  # whether trying the op out means another pass over a large tensor

    @property
    def ours(self) -> Array:
        return self.row.ours

    @property
    def theirs(self) -> Array:
        return self.row.theirs

    def fits(self, value: Array) -> bool:
        """Whether a value is what the reference has: equal but for rounding, and much nearer than ours is."""
        return value.shape == self.theirs.shape and distance(value, self.theirs) <= self.enough

    @property
    def enough(self) -> float:
        """The error that an explanation may leave."""
        return min(self.row.allowed, BETTER * self.row.local)

    def again(self, value: Array) -> Array:
        return self.later({self.item: value})

    def evaluated(self, inputs: Sequence[Array], **changed: Any) -> Array:
        """What the compared value is with other operands or attributes of the op to blame."""
        with np.errstate(all="ignore"):
            value = OPS[self.item.op].evaluate(self.lane.context, *inputs, **{**attributes(self.item), **changed})
        return self.again(value)

    def with_operand(self, index: int, value: Array, **changed: Any) -> Array:
        return self.evaluated([value if i == index else old for i, old in enumerate(self.inputs)], **changed)

    @property
    def own(self) -> Array:
        """What the op to blame gives."""
        with np.errstate(all="ignore"):
            found: Array = OPS[self.item.op].evaluate(self.lane.context, *self.inputs, **attributes(self.item))
        return found

    def reals(self) -> Iterator[tuple[int, Array]]:
        """Operands that are values of the pass, each once."""
        for index, (arg, value) in enumerate(zip(self.item.args, self.inputs, strict=True)):
            if arg in self.names and arg not in self.item.args[:index]:
                yield index, value

    def their_name(self, label: str) -> str:
        """What a value of the reference is called."""
        return f"`{self.there.get(label, label + '`')}"

    def name(self, index: int) -> str:
        """What an operand is called."""
        return self.called(self.item.args[index])

    def called(self, arg: Node) -> str:
        """What a value of ours is called."""
        while arg.args and (arg.op == "reshape" or arg not in self.names):
            arg = arg.args[0]
        return f"`{self.names.get(arg, arg.op)}`"


Detector = Callable[[Case], Cause | None]


def narrowed(error: Callable[[float], float], low: float, high: float) -> float:
    """Where between two numbers an error with one valley is least (Kiefer 1953)."""
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_a, at_b = error(a), error(b)
    for _ in range(NARROWINGS):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - GOLDEN * (high - low)
            at_a = error(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + GOLDEN * (high - low)
            at_b = error(b)
    return (low + high) / 2


def roots(numbers: Mapping[str, float]) -> list[tuple[float, str]]:
    """Numbers that a factor may be: roots of the model's sizes, and the sizes."""
    found = [(2**0.5, "2 ** 0.5")]
    for name, value in numbers.items():
        if value > 1:
            found += [(value**0.5, f"{value:g} ** 0.5 ({name})"), (value, f"{value:g} ({name})")]
    return found


def scalars(tensors: Mapping[str, Array]) -> list[tuple[float, str]]:
    """Tensors of one number."""
    return [(float(t.reshape(-1)[0]), f"`{name}`") for name, t in tensors.items() if t.size == 1 and t.any()]
