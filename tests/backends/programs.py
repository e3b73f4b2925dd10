"""Small programs, run end to end: op table, fusion, plan, native code, engine. And the machines to run them as."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from briolette.backends import formats
from briolette.backends.base import Options, Weights
from briolette.backends.cpu.build import Target
from briolette.backends.cpu.engine import CpuEngine
from briolette.compiler.dims import symbol
from briolette.compiler.header import TensorInfo
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Node, Type
from briolette.compiler.ops import node

T = symbol("T")
HOST = Target.host()
ARM = Target("aarch64-unknown-linux-gnu", "generic", "+neon", 4)
PLAIN = Target("x86_64-unknown-linux-gnu", "x86-64", "", 4)
SSSE3 = Target(PLAIN.triple, "x86-64", "+sse3,+ssse3", 4)
AVX2 = Target(PLAIN.triple, "x86-64", "+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+avx,+avx2,+fma,+f16c", 8)

# Machines that this one can play: every width it has, and older ones that its own features hide.
RUNNABLE = {f"{n} lanes": Target.host(n) for n in (4, 8, 16) if n <= HOST.widest}
if not HOST.arm:
    RUNNABLE["sse2"] = PLAIN
if HOST.has("avx2", "fma", "f16c"):
    RUNNABLE |= {"ssse3": SSSE3, "avx2": AVX2}

# Of these the ones that differ most, where every kind of kernel is compiled for each: the widest and the plainest.
FEW = {name: target for name, target in RUNNABLE.items() if name in (f"{HOST.lanes} lanes", "sse2")}

BLOCKS = [name for name, f in formats.FORMATS.items() if f.quants is not None]
NUMBERS = ["f32", "f16", "bf16"]


def random_blocks(name: str, rows: int, columns: int, rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    """Rows of stored weights, uint8 [rows, bytes]: any bits, but numbers of ordinary size (times `scale`, to
    a power of two in mxfp4) and no infinity."""
    fmt = formats.get(name)
    blocks = rng.integers(0, 256, (rows, columns // fmt.elements, fmt.bytes), dtype=np.uint8)
    for f in fmt.fields:
        here = blocks[..., f.offset : f.end]
        values = (rng.normal(size=(*here.shape[:-1], 1)) * scale).astype(np.float32)
        if f.type == "f16":
            here[:] = values.astype("<f2").view(np.uint8)
        elif f.type == "bf16":
            here[:] = values.astype("<f4").view(np.uint8)[..., 2:]
        elif f.type == "f32":
            here[:] = values.astype("<f4").view(np.uint8)
        elif f.type == "e8m0":
            here[:] = rng.integers(122, 130, here.shape) + round(np.log2(scale))
    return blocks.reshape(rows, formats.row_bytes(name, columns))


@dataclass
class Program:
    """Tensors by name, and what to compute of them. Rows of inputs are embedding look-ups by position."""

    seed: int = 0
    tensors: dict[str, tuple[TensorInfo, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def add(self, name: str, stored: np.ndarray, shape: tuple[int, ...], format: str = "f32") -> Node:
        """A tensor of given content."""
        content = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
        self.tensors[name] = TensorInfo(name, shape, format), content
        return node("weight", name=name, type=Type(shape, format))

    def weight(self, name: str, *shape: int, format: str = "f32") -> Node:
        """A random tensor."""
        rows = int(np.prod(shape[:-1]))
        return self.add(name, random_blocks(format, rows, shape[-1], self.rng), shape, format)

    def input(self, name: str, rows: int, columns: int, scale: float = 1.0, tokens: object = T) -> Node:
        """A random f32 row for each position, [T, columns]."""
        values = (self.rng.normal(size=(rows, columns)) * scale).astype(np.float32)
        return node("embed", self.add(name, values, (rows, columns)), node("position", rows=tokens))

    def decoded(self, name: str, real: type = np.float64) -> np.ndarray:
        info, stored = self.tensors[name]
        rows = stored.reshape(int(np.prod(info.shape[:-1])), -1)
        return formats.decode(info.format, rows).reshape(info.shape).astype(real)

    def module(self, output: Node, *effects: Node) -> Module:
        infos = tuple(info for info, _ in self.tensors.values())
        return Module("test", "unrolled", (output,), effects, tensors=infos)

    @property
    def weights(self) -> Weights:
        return Weights(lambda name: self.tensors[name][1])

    def engine(self, output: Node, threads: int = 1, target: Target | None = None, **options: object) -> CpuEngine:
        options = {"context": 256, "chunk": 128} | options
        return CpuEngine(self.module(output), self.weights, Options(threads=threads, **options), target)

    def run(
        self, output: Node, rows: int, threads: int = 1, target: Target | None = None, start: int = 0, **options: object
    ) -> np.ndarray:
        """The output rows of one native step of `rows` tokens from position `start` (token ids: positions)."""
        engine = self.engine(output, threads, target, **options)
        try:
            return engine.step(range(start, start + rows), start, "all")
        finally:
            engine.close()

    def exact(self, output: Node, rows: int, start: int = 0) -> np.ndarray:
        """The same by the numpy evaluator in double precision."""
        evaluator = Interpreter(self.decoded, np.float64)
        return evaluator.step([output], range(start, start + rows), start)[0]


def undefined(code: bytes) -> set[str]:
    """Names that an ELF64 object expects from elsewhere, by its symbol table."""
    start, size, count = (*struct.unpack_from("<Q", code, 0x28), *struct.unpack_from("<HH", code, 0x3A))
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, start + i * size) for i in range(count)]
    found = set()
    for section in sections:
        if section[1] != 2:  # SHT_SYMTAB
            continue
        names, first, end = sections[section[6]][4], section[4], section[4] + section[5]
        for at in range(first + 24, end, 24):  # after the first symbol, which is none
            name, _, _, where = struct.unpack_from("<IBBH", code, at)
            if where == 0:  # SHN_UNDEF
                found.add(code[names + name : code.index(b"\0", names + name)].decode())
    return found
