"""Random programs of odder parts: views of views, sums over heads, values that several kernels want."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from briolette.compiler.ir import Node, Type
from briolette.compiler.ops import node

from strategies import STEPS, Choices, Program, Run, T, valued

ODD = ["heads", "heads", "summed", "looked_up", "one_for_both", "column", "halves", "stored"]


class OddProgram(Program):
    """A program that also has parts no decoder has had yet. `f16`: weights stored in another format."""

    def grow(self) -> None:
        x = self.choices.pick(self.values)
        self.values.append(getattr(self, self.choices.pick([*STEPS, *ODD]))(x))

    def heads(self, x: Node) -> Node:
        """Work on heads: views of views, a weight a head, sums that are read more than once."""
        count = self.choices.pick([n for n in (1, 2, 3, 4) if x.shape[-1] % n == 0])
        made = node("reshape", x, shape=(T, count, x.shape[-1] // count))
        for axis in self.choices.pick([(), (1,), (2,), (1, 2)]):
            start = self.choices.integer(0, made.shape[axis] - 1)
            stop = self.choices.integer(start + 1, made.shape[axis])
            made = node("slice", made, axis=axis, start=start, stop=stop)
        _, count, size = made.shape
        match self.choices.pick(["plain", "weights", "token", "summary", "turned"]):
            case "weights":
                shape = self.choices.pick([(count, size), (count, 1), (1, size), (1, 1, size)])
                made = node("mul", made, self.weight(*shape))
            case "token":
                one = node("linear", x, self.weight(1, x.shape[-1]))
                made = node("mul", made, node("reshape", one, shape=(T, 1, 1)))
            case "summary":
                s = node(self.choices.pick(["sum", "mean", "max"]), made)
                made = node("add", node("mul", made, s), node("tanh", s))
            case "turned" if size > 1:
                turned = node("rope", made, self.position, theta=50.0, dims=size // 2 * 2)
                made = node("add", turned, made)
        return node("reshape", made, shape=(T, count * size))

    def summed(self, x: Node) -> Node:
        """One number a row, which spreads over rows of any length."""
        s = node(self.choices.pick(["sum", "mean", "max"]), x)
        other = self.choices.pick(self.values)
        return self.choices.pick([s, node("mul", other, s), node("sub", s, node("mean", other))])

    def looked_up(self, x: Node) -> Node:
        """Values of a vector where a row is largest."""
        ids = node("top", x, k=self.choices.integer(1, x.shape[-1]))
        return node("take", self.weight(x.shape[-1]), ids)

    def one_for_both(self, x: Node) -> Node:
        """K and V from one value, as where a model has no V."""
        size, slot = x.shape[-1], len(self.planes)
        made = node("reshape", x, shape=(T, 1, size))
        k, v = (
            node("cache_write", value, self.position, slot=slot, plane=plane)
            for value, plane in ((made, "k"), (node("rms_norm", made, eps=1e-5), "v"))
        )
        self.planes.append((k, v))
        seen = node("attend", made, k, v, self.position, scale=0.7)
        return node("reshape", seen, shape=(T, size))

    def column(self, x: Node) -> Node:
        """One column of heads: values that do not lie side by side."""
        size = self.choices.pick([n for n in (1, 2, 3) if x.shape[-1] % n == 0])
        made = node("reshape", x, shape=(T, x.shape[-1] // size, size))
        at = self.choices.integer(0, size - 1)
        made = node("slice", made, axis=2, start=at, stop=at + 1)
        return node("reshape", made, shape=(T, x.shape[-1] // size))

    def halves(self, x: Node) -> Node:
        """Both halves of one product, read by kernels of every kind."""
        n = self.choices.integer(1, 6)
        both = node("linear", x, self.weight(2 * n, x.shape[-1]))
        a, b = (node("slice", both, axis=1, start=i * n, stop=(i + 1) * n) for i in range(2))
        return node(
            "add",
            node("mul", node("silu", a), b),
            node("linear", node("softmax", a), self.weight(n, n)),
        )

    def stored(self, x: Node) -> Node:
        """Small weights kept in another format, whole and in parts."""
        size = x.shape[-1]
        name = f"w{len(self.weights)}"
        self.weights[name] = (2 * size,)
        w = node("slice", node("weight", name=name, type=Type((2 * size,), "f32")), axis=0, start=size, stop=2 * size)
        return self.choices.pick([node("mul", x, w), node("rms_norm", x, w, eps=1e-5)])


@st.composite
def odd_programs(draw: Any, steps: int = 6) -> Run:
    program = OddProgram(Choices(draw))
    for _ in range(program.choices.integer(0, steps)):
        program.grow()
    return valued(program, draw(st.integers(0, 2**32 - 1)), program.choices.integer(1, 5))
