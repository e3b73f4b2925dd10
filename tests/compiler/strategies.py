"""Random uses of ops and random programs, drawn from the op table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from briolette.compiler.dims import symbol
from briolette.compiler.header import TensorInfo
from briolette.compiler.ir import Module, Node, Type, topological
from briolette.compiler.ops import OPS, Sample, node

T = symbol("T")


class Choices:
    """The op table's `Draw`, fed by hypothesis."""

    def __init__(self, draw: Callable[[Any], Any]):
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))


class Seeded(Choices):
    """Choices of a seeded generator: the same on every run."""

    def __init__(self, seed: int):
        self.random = Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def pick(self, options):
        return self.random.choice(list(options))


@dataclass
class Use:
    """One op on concrete operands."""

    node: Node
    arrays: list[np.ndarray]


@st.composite
def uses(draw: Any, name: str) -> Use:
    """A random legal use of an op, with values for its operands."""
    declared = OPS[name]
    assert declared.sample is not None
    sample: Sample = declared.sample(Choices(draw))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans()) and name in ("top", "max", "softmax", "take")  # equal values: ties
    params = [node("param", name=f"p{i}", type=type) for i, type in enumerate(sample.args)]
    arrays = []
    for i, type in enumerate(sample.args):
        values = rng.standard_normal(type.shape)
        if type.dtype == "i32":
            values = rng.integers(0, sample.below[i], type.shape)
            if i in sample.distinct:
                values = rng.permutation(sample.below[i])[: values.size].reshape(type.shape)
        elif coarse:
            values = np.round(values)
        arrays.append(values.astype(np.int32 if type.dtype == "i32" else np.float32))
    return Use(node(name, *params, **sample.attrs), arrays)


class Program:
    """A random unrolled program over tokens: what a decoder is made of, in any order."""

    def __init__(self, choices: Choices):
        self.choices = choices
        self.weights: dict[str, tuple[int, ...]] = {}
        self.vocabulary = choices.integer(5, 20)
        self.planes: list[tuple[Node, Node]] = []
        self.position = node("position", rows=T)
        table = self.weight(self.vocabulary, choices.integer(2, 24))
        self.values = [node("embed", table, node("tokens", rows=T))]

    def weight(self, *shape: int) -> Node:
        name = f"w{len(self.weights)}"
        self.weights[name] = shape
        return node("weight", name=name, type=Type(shape, "f32"))

    def grow(self) -> None:
        """Adds one value computed from earlier ones, often from the last."""
        x = self.choices.pick([self.values[-1], self.choices.pick(self.values)])
        made = getattr(self, self.choices.pick(STEPS))(x)
        self.values.append(made)

    def linear(self, x: Node) -> Node:
        return node("linear", x, self.weight(self.choices.integer(1, 24), x.shape[-1]))

    def norm(self, x: Node) -> Node:
        w = (self.weight(x.shape[-1]),) if self.choices.pick([True, False]) else ()
        return node("rms_norm", x, *w, eps=1e-5)

    def unary(self, x: Node) -> Node:
        return node(self.choices.pick(["gelu", "silu", "tanh"]), x)

    def scale(self, x: Node) -> Node:
        numbers = [node("const", value=v) for v in (0.5, 1.0)]
        other = self.choices.pick([*numbers, self.weight(1), self.weight(x.shape[-1])])
        return node("mul", *self.choices.pick([(x, other), (other, x)]))

    def shift(self, x: Node) -> Node:
        """A number added: nothing, or one that is computed from numbers."""
        half = node("const", value=0.5)
        other = self.choices.pick([node("const", value=0.0), node("mul", half, half), node("exp", half)])
        return node("add", *self.choices.pick([(x, other), (other, x)]))

    def cap(self, x: Node) -> Node:
        return node("softcap", x, cap=5.0)

    def residual(self, x: Node) -> Node:
        alike = [v for v in self.values if v.shape == x.shape]
        return node(self.choices.pick(["add", "mul", "sub"]), x, self.choices.pick(alike))

    def gated(self, x: Node) -> Node:
        n = self.choices.integer(1, 20)
        gate, up = (node("linear", x, self.weight(n, x.shape[-1])) for _ in range(2))
        return node("mul", node("gelu", gate), up)

    def share(self, x: Node) -> Node:
        """Softmax, or values divided by their sum as a router does."""
        s = node("softmax", x)
        return s if self.choices.pick([True, False]) else node("div", s, node("sum", s))

    def centred(self, x: Node) -> Node:
        """Values less a summary of their row; a kernel wants the row twice."""
        return node("sub", x, node(self.choices.pick(["mean", "max", "sum"]), x))

    def again(self, x: Node) -> Node:
        """Another table looked up by the same tokens, of the width of x."""
        table = self.weight(self.vocabulary, x.shape[-1])
        return node("add", x, node("embed", table, node("tokens", rows=T)))

    def folded(self, x: Node) -> Node:
        """Rows cut into shorter ones, as heads are, and put together again."""
        size = x.shape[-1]
        count = self.choices.pick([c for c in range(1, size + 1) if size % c == 0])
        made = node("reshape", x, shape=(T, count, size // count))
        match self.choices.pick(["norm", "softmax", "silu", "some", "none"]):
            case "norm":
                made = node("rms_norm", made, eps=1e-5)
            case "softmax" | "silu" as op:
                made = node(op, made)
            case "some":
                made = node("slice", made, axis=1, start=self.choices.integer(0, count - 1), stop=count)
        return node("reshape", made, shape=(T, made.shape[1] * made.shape[2]))

    def part(self, x: Node) -> Node:
        """A slice, or a slice of one, or all there is."""
        for _ in range(self.choices.integer(1, 2)):
            size = x.shape[-1]
            start = self.choices.integer(0, size - 1)
            x = node("slice", x, axis=1, start=start, stop=self.choices.integer(start + 1, size))
        return x

    def experts(self, x: Node) -> Node:
        count, used, n = self.choices.integer(2, 4), self.choices.integer(1, 2), self.choices.integer(1, 9)
        scores = node("softmax", node("linear", x, self.weight(count, x.shape[-1])))
        ids = node("top", scores, k=used)
        weights = node("take", scores, ids)
        if self.choices.pick([True, False]):  # a factor for each expert
            weights = node("mul", weights, node("take", self.weight(count), ids))
        inner = self.choices.integer(1, 9)
        w = self.weight(count, 2 * inner, x.shape[-1])
        gate, up = (node("slice", w, axis=1, start=i * inner, stop=(i + 1) * inner) for i in range(2))
        hidden = node("mul", node("gelu", node("expert_linear", x, gate, ids)), node("expert_linear", x, up, ids))
        out = node("expert_linear", hidden, self.weight(count, n, inner), ids)
        return node("combine", out, weights)

    def attention(self, x: Node) -> Node:
        groups, share = self.choices.integer(1, 2), self.choices.integer(1, 2)
        half = self.choices.integer(1, 5)
        size = 2 * half + self.choices.integer(0, 2)
        shared = self.choices.pick(self.planes) if self.planes and self.choices.pick([True, False]) else None
        if shared is not None:  # the keys and values of an earlier layer
            _, groups, size = shared[0].shape
            half = size // 2

        def heads(count: int, turned: bool) -> Node:
            flat = node("linear", x, self.weight(count * size, x.shape[-1]))
            made = node("reshape", flat, shape=(T, count, size))
            if self.choices.pick([True, False]):
                made = node("rms_norm", made, self.weight(size), eps=1e-6)
            style = {"theta": 100.0, "dims": 2 * half, "interleaved": interleaved}
            return node("rope", made, self.position, **style) if turned else made

        interleaved = self.choices.pick([True, False])
        q, planes = heads(groups * share, True), shared
        if planes is None:
            slot = len(self.planes)
            k, v = (
                node("cache_write", heads(groups, plane == "k"), self.position, slot=slot, plane=plane)
                for plane in ("k", "v")
            )
            planes = k, v
            self.planes.append(planes)
        window, softcap = self.choices.pick([None, 1, 3]), self.choices.pick([None, 4.0])
        attrs = {"scale": 0.5, "window": window, "softcap": softcap}
        seen = node("attend", q, *planes, self.position, **attrs)
        return node("reshape", seen, shape=(T, groups * share * size))

    def module(self) -> Module:
        """The program with logits over the vocabulary, made of every value that nothing else reads."""
        read = {arg for item in topological(self.values) for arg in item.args}
        ends = [value for value in dict.fromkeys(self.values) if value not in read]
        out, *rest = (node("linear", x, self.weight(self.vocabulary, x.shape[-1])) for x in ends)
        for other in rest:
            out = node("add", out, other)
        tensors = tuple(TensorInfo(name, shape, "f32") for name, shape in self.weights.items())
        return Module("random", "unrolled", (out,), tensors=tensors)


STEPS = [
    *("linear", "norm", "unary", "scale", "cap", "residual", "residual"),
    *("gated", "share", "part", "experts", "attention", "attention", "attention"),
    *("centred", "again", "folded", "scale", "shift"),
]


@dataclass
class Run:
    """A random program, values for its weights, and tokens to run it on."""

    module: Module
    weights: dict[str, np.ndarray]
    tokens: np.ndarray


@st.composite
def programs(draw: Any, steps: int = 8) -> Run:
    choices = Choices(draw)
    program = Program(choices)
    for _ in range(choices.integer(0, steps)):
        program.grow()
    return valued(program, draw(st.integers(0, 2**32 - 1)), choices.integer(1, 7))


def valued(program: Program, seed: int, tokens: int) -> Run:
    """A program with random weights and that many tokens."""
    module, rng = program.module(), np.random.default_rng(seed)
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in program.weights.items()
    }
    return Run(module, weights, rng.integers(0, program.vocabulary, tokens).astype(np.int32))
