"""Where a token's time goes: the kernels of a step, grouped by what they do, with the work that each has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from briolette.backends.cpu.profile import Profile
from briolette.compiler.dims import Dim
from briolette.compiler.ir import Module, Node, users
from briolette.compiler.ops import attributes, weight_below
from briolette.compiler.plan import writes_cache
from briolette.compiler.values import bare, stem

from .measure import Case
from .ours import Briolette
from .work import Work

# What kernels do, in words: of work along rows, the ops that are told; of kernels of one op, its name.
ROWS = {"embed": "look up", "rms_norm": "norm", "softmax": "softmax", "rotate": "rotate"}
WORDS = {"rope_table": "angles of positions", "top": "choose experts", "take": "weights of experts"}
NO_BLOCK = "main"


@dataclass
class Part:
    """Kernels of one kind, over all layers: `calls` of them a step, of the spec's `lines`.

    seconds: of each thread, over the whole case.
    """

    block: str
    kernel: str
    calls: int = 0
    lines: set[int] = field(default_factory=set)
    seconds: NDArray[np.float64] | float = 0.0
    work: Work = field(default_factory=Work)

    @property
    def mean(self) -> float:
        """Seconds of a thread, so that all parts add up to the time of the case."""
        return float(np.mean(self.seconds))

    @property
    def slowest(self) -> float:
        """Seconds of the thread that took longest, by which rates are told."""
        return float(np.max(self.seconds))


@dataclass(frozen=True)
class Spent:
    """The time of a case: in kernels, in threads that waited or came late, and outside of native code."""

    engine: str
    kv: str
    case: Case
    threads: int
    seconds: float  # in all
    parts: tuple[Part, ...]
    waiting: float
    outside: float


def profile(subject: Briolette, case: Case, repetitions: int) -> Spent:
    """Runs a case with programs that take the time of each kernel: the means of some runs, after one to warm up."""
    with subject.engine.profiling(subject.group(case)):
        subject.run(case)
    with subject.engine.profiling(subject.group(case)) as taken:
        seconds = sum(subject.run(case) for _ in range(repetitions)) / repetitions
    program, steps = subject.steps(case)
    found = taken[program]
    nodes = [step.node for step in found.plan.steps]
    works = [Work()] * len(nodes)
    for step, times in Counter(steps).items():
        of_step = subject.counted(program).of_nodes(nodes, step)
        works = [a + b.times(times) for a, b in zip(works, of_step, strict=True)]
    parts = grouped(found, works, repetitions)
    busy = found.kernels.sum(axis=1)
    inside = float(busy[0] + found.waits[0].sum()) / repetitions  # of the caller: others may leave when it is gone
    waiting = inside - float(busy.mean()) / repetitions  # at barriers, or not there yet
    return Spent(subject.name, subject.kv, case, subject.threads, seconds, parts, waiting, max(0.0, seconds - inside))


def grouped(taken: Profile, works: list[Work], repetitions: int) -> tuple[Part, ...]:
    """The kernels of a plan as parts, the longest first."""
    module = taken.plan.module
    readers = users(module.roots)
    parts: dict[tuple[str, str], Part] = {}
    for index, (step, work) in enumerate(zip(taken.plan.steps, works, strict=True)):
        item = step.node
        likeliest = item in module.outputs[1:] and item.op in ("top", "take")
        key = block_of(item, module, readers), "likeliest tokens" if likeliest else kernel_name(item)
        part = parts.setdefault(key, Part(*key))
        part.calls += 1
        part.lines |= {span.line for span in module.origins.get(item, ())}
        part.seconds = part.seconds + taken.kernels[:, index] / repetitions
        part.work += work
    return tuple(sorted(parts.values(), key=lambda p: -p.mean))


def block_of(item: Node, module: Module, readers: Mapping[Node, list[Node]]) -> str:
    """The block of the spec that a kernel is from; one that the compiler added belongs to who reads it."""
    while item not in module.places and readers.get(item):
        item = readers[item][0]
    return stem(module.places[item][1]) if item in module.places else NO_BLOCK


def kernel_name(item: Node) -> str:
    """What a kernel does, with the tensors it reads, their formats and sizes."""
    if item.op == "fused" and item["family"] != "rows":
        weights = [weight_below(arg) for arg in item.args if arg.op != "quantize" and weight_below(arg) is not None]
        matrices = [w for w in weights if w is not None and len(w.shape) > 1]
        names = " + ".join(dict.fromkeys(bare(w["name"]) for w in matrices))
        formats = ", ".join(dict.fromkeys(w.type.dtype.upper() for w in matrices))
        return f"{names} {formats} {_sizes(matrices[0].shape)}"
    if item.op == "fused":
        return ", ".join(dict.fromkeys(_rows(item)))
    if item.op == "attend":
        window = item.get("window")
        _, heads, size = item.args[0].shape
        return f"attend {heads} x {size}, {'all positions' if window is None else f'window {window}'}"
    if item.op == "quantize":
        return f"quantize {_sizes(item.shape[1:])} to {attributes(item)['bits']} bits"
    return WORDS.get(item.op, item.op)


def _rows(item: Node) -> Iterator[str]:
    """The words for a kernel along rows: what it reads first, where it writes last."""
    found = [ROWS[at.op] for at in item["block"].order if at.op in ROWS]
    yield from found or ["add and scale"]
    if writes_cache(item) is not None:
        yield "to cache"


def _sizes(shape: tuple[Dim, ...]) -> str:
    return " x ".join(map(str, shape))
