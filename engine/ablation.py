"""What each line of an architecture is worth: the model with and without it, on the same text.

Every switch of the spec (`spec/switches.py`) gives another program for the same file. Programs are compared by
identity: a switch that leaves the file's program as it is, or makes one that another made already, is left out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from briolette.backends import formats
from briolette.backends.base import Options, Weights, checked
from briolette.backends.reading import token_ids, vocabulary_of
from briolette.compiler.elaborate import elaborate
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.compiler.interp import Interpreter
from briolette.compiler.ir import Module, Node, Rebuilder, topological
from briolette.compiler.ops import OPS, with_args
from briolette.compiler.pipeline import front
from briolette.compiler.rules.head import last_token
from briolette.compiler.unroll import unroll
from briolette.spec.switches import Switch, switches
from briolette.spec.tree import Architecture

from .backends import backend_named
from .divergence import Score, scores
from .together import Together, tensors

Array = NDArray[Any]
Progress = Callable[[int, int], None]
Given = TypeVar("Given")
Found = TypeVar("Found")
PART = 4096  # token ids whose logits are computed at a time: they stay in the processor's caches
DECODED = 1 << 17  # elements decoded at a time
CHUNK = 64  # tokens a step of a compiled engine takes here


@dataclass(frozen=True)
class Worth:
    """What a model becomes with something switched off."""

    switch: Switch
    score: Score


@dataclass(frozen=True)
class LeftOut:
    """A switch that was not tried, and why."""

    switch: Switch
    reason: str


@dataclass(frozen=True)
class Ablation:
    """`scored`: the positions, the text's last, that count. `own`: the model as it is. `lines`: costliest first."""

    tokens: int
    scored: int
    own: Score
    lines: tuple[Worth, ...]
    left_out: tuple[LeftOut, ...]


def ablate(
    tree: Architecture,
    header: Header,
    weights: Weights,
    ids: Sequence[int],
    backend: str = "reference",
    threads: int = 1,
    progress: Progress = lambda done, wanted: None,
) -> Ablation:
    """Scores every switch of a spec on a text's token ids, the second half of which counts.

    backend: "reference" evaluates all programs at once with numpy; another one compiles each by itself.
    Raises BrioletteError for fewer than two ids and for ids that there are not.
    """
    if len(ids) < 2:
        raise BrioletteError(f"a next token can be scored in a text of two tokens or more, and this one has {len(ids)}")
    engine = backend_named(backend)
    own = front(tree, header)
    known = min(token_ids(own), vocabulary_of(own))
    text = checked(ids, 0, known, Options(context=len(ids))).ids
    given, targets = text[:-1], text[-(len(ids) // 2) :]
    programs, left_out = variants(tree, header, own, len(given))
    modules = [_as_seen(own, len(given)), *programs.values()]
    if backend == "reference":
        found = _Numpy(weights, header, given, len(targets), threads, progress).scores(modules, targets)
    else:
        options = Options(context=len(given), threads=threads, chunk=min(CHUNK, len(given)))
        found = _compiled(engine, weights, options, modules, given, targets, progress)
    lines = [Worth(switch, score) for switch, score in zip(programs, found[1:], strict=True)]
    lines.sort(key=lambda worth: -worth.score.kl)
    return Ablation(len(ids), len(targets), found[0], tuple(lines), tuple(left_out))


def variants(
    tree: Architecture, header: Header, own: Module, tokens: int
) -> tuple[dict[Switch, Module], list[LeftOut]]:
    """The programs of all switches that make a difference to a text of so many tokens, and the other switches."""
    programs: dict[Switch, Module] = {}
    left_out: list[LeftOut] = []
    seen: dict[tuple[Node, ...], str] = {}
    same = "this file has the same program without it"
    for module in (elaborate(tree, header), own):
        seen[module.outputs] = same
    seen.setdefault(_as_seen(own, tokens).outputs, f"{tokens + 1} tokens are too few to tell the difference")
    for switch in switches(tree):
        try:
            blocks = elaborate(switch.tree, header, strict=False)
            module = blocks if blocks.outputs in seen else _as_seen(unroll(blocks), tokens)
        except BrioletteError as problem:
            left_out.append(LeftOut(switch, f"does not fit the file: {problem.args[0].splitlines()[0]}"))
            continue
        if module.outputs in seen:
            left_out.append(LeftOut(switch, seen[module.outputs]))
            continue
        programs[switch] = module
        seen[blocks.outputs] = seen[module.outputs] = f"the same as line {switch.span.line}, {switch.what}"
    return programs, left_out


def _as_seen(module: Module, tokens: int) -> Module:
    """The program without windows that all of a text fits into."""

    def visit(item: Node, args: tuple[Node, ...]) -> Node:
        wide = item.op == "attend" and item.get("window") is not None and item["window"] >= tokens
        return with_args(item, args, **({"window": None} if wide else {}))

    return replace(module, outputs=Rebuilder(visit)(module.outputs), effects=())


# --- with numpy ----------------------------------------------------------------------------------------


class _Numpy:
    """Evaluates programs of one file on one text, all at once."""

    def __init__(self, weights: Weights, header: Header, ids: Array, rows: int, threads: int, progress: Progress):
        self.weights, self.infos = weights, header.tensors
        self.ids, self.rows, self.threads, self.progress = ids, rows, threads, progress

    def scores(self, modules: Sequence[Module], targets: Array) -> list[Score]:
        """Of every program against the first: its state before the head, then logits of one range of ids at a time."""
        outputs = [last_token(module, count=self.rows).outputs[0] for module in modules]
        heads = {out: _product(out) for out in outputs}
        roots = {out: out if product is None else product.args[0] for out, product in heads.items()}
        ranges = [slice(at, at + PART) for at in range(0, vocabulary_of(modules[0]), PART)]
        given = self.looked_up(topological(roots.values()))
        steps, wanted = itertools.count(1), tensors(list(roots.values()), given) + len(ranges)
        # Without a norm numbers may grow beyond f32: that is a finding, and no warning.
        with np.errstate(all="ignore"), ThreadPoolExecutor(self.threads, initializer=_quiet) as pool:
            together = Together(self.interpreter(), pool, self.threads)
            values = together.evaluate(list(roots.values()), given, lambda: self.progress(next(steps), wanted))
            states = dict(zip(heads, values, strict=True))

            def parts() -> Iterator[list[Array]]:
                for part in _ahead(pool, lambda ids: self.logits(heads, states, ids), ranges, self.threads):
                    yield [part[out] for out in outputs]
                    self.progress(next(steps), wanted)

            return scores(parts(), targets)

    def logits(self, heads: Mapping[Node, Node | None], states: Mapping[Node, Array], ids: slice) -> dict[Node, Array]:
        """Some token ids' part of every output. Those that end in a product with one matrix make it together."""
        found = {out: states[out][:, ids] for out in heads}
        ends: dict[Node, list[Node]] = {}
        for out, product in heads.items():
            if product is not None:
                ends.setdefault(product.args[1], []).append(out)
        for weight, outs in ends.items():
            made = np.concatenate([states[out] for out in outs]) @ self.stored(weight["name"], ids).T
            for out, part in zip(outs, np.split(made, len(outs)), strict=True):
                product = heads[out]
                assert product is not None
                found[out] = self.interpreter().evaluate([out], {product: part})[0]
        return found

    def looked_up(self, items: Iterable[Node]) -> dict[Node, Array]:
        """The values of embeddings: only the rows of the text are decoded, tables can be large."""
        found: dict[Node, Array] = {}
        for item in items:
            if item.op == "embed" and item.args[0].op == "weight":
                table, ids = item.args
                if all(n.op in ("tokens", "slice", "reshape") for n in topological([ids])):
                    (rows,) = self.interpreter().evaluate([ids], {})
                    found[item] = self.stored(table["name"], rows)
        return found

    def interpreter(self) -> Interpreter:
        made = Interpreter(lambda name: self.stored(name, slice(None)).reshape(self.infos[name].shape))
        made.tokens, made.positions = self.ids, np.arange(len(self.ids), dtype=np.int32)
        made.sizes = {"T": len(self.ids), "C": len(self.ids)}
        return made

    def stored(self, name: str, rows: Any) -> Array:
        """Some rows of a stored tensor as f32, a few decoded at a time: large temporary arrays cost more than that."""
        info = self.infos[name]
        columns = info.shape[-1] if info.shape else 1
        blocks = self.weights.stored(name).reshape(-1, formats.row_bytes(info.format, columns))[rows]
        found = np.empty((len(blocks), columns), np.float32)
        few = max(1, DECODED // columns)
        for at in range(0, len(blocks), few):
            found[at : at + few] = formats.decode(info.format, blocks[at : at + few])
        return found


def _quiet() -> None:
    np.seterr(all="ignore")


def _ahead(pool: Executor, function: Callable[[Given], Found], items: Iterable[Given], depth: int) -> Iterator[Found]:
    """A function's results in order, of which the pool computes no more than `depth` ahead of their use."""
    waiting: deque[Future[Found]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _product(out: Node) -> Node | None:
    """The product with a stored matrix that an output is, but for work on its single values (a softcap)."""
    while "elementwise" in OPS[out.op].traits:
        values = [arg for arg in out.args if arg.op != "const"]
        if len(values) != 1:
            return None
        (out,) = values
    return out if out.op == "linear" and out.args[1].op == "weight" else None


# --- compiled ------------------------------------------------------------------------------------------


def _compiled(
    backend: Any,
    weights: Weights,
    options: Options,
    modules: Sequence[Module],
    ids: Array,
    targets: Array,
    progress: Progress,
) -> list[Score]:
    """The same by a backend's engines, one program after the other."""

    def logits(module: Module) -> Array:
        try:
            engine = backend.compile(module, weights, options)
            try:
                parts = [engine.step(ids[at : at + CHUNK], at, "all") for at in range(0, len(ids), CHUNK)]
            finally:
                engine.close()
        except NotImplementedError as problem:
            hint = "--backend reference runs all of them"
            raise BrioletteError(f"{backend.name} has no kernels for one of the programs: {problem}; {hint}") from None
        return np.concatenate(parts)[-len(targets) :]

    own = logits(modules[0])
    found: list[Score] = []
    for done, module in enumerate(modules, 1):
        sets = [own] if module is modules[0] else [own, logits(module)]
        found.append(scores([sets], targets)[-1])
        progress(done, len(modules))
    return found
