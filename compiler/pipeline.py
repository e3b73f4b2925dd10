"""The ordered list of stages, from an architecture and a header to a planned program."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from briolette.spec.syntax import Architecture

from .elaborate import elaborate
from .errors import BrioletteError
from .header import Header
from .ir import Module
from .rewrite import Watch, rewrite
from .rules.cache import kept
from .rules.copies import copies
from .rules.fuse import fuse
from .rules.head import last_token
from .rules.integers import Integers, products
from .rules.likeliest import with_likeliest
from .rules.parts import parted
from .rules.simplify import ANGLES, SIMPLIFY
from .unroll import bind, unroll
from .verify import verify

Watcher = Callable[[str, Module], Watch]
STAGES = ("elaborated", "unrolled", "bound", "simplified", "head", "angles", "cache", "integers", "fused")


@dataclass(frozen=True)
class Form:
    """Which program is wanted of a model.

    `tokens` is a fixed number of tokens a step (1 for decoding) or None for any; `logits` is "last" or
    "all"; `cache` the policy by which the KV cache is kept (`policy`); `integers`, which products are made in integers;
    `likeliest`, how many of the likeliest tokens a step of one token tells beside its logits.
    """

    tokens: int | None = None
    logits: str = "last"
    cache: str = "f32"
    integers: Integers | None = None
    likeliest: int = 0


FORMS = {"decode": Form(tokens=1), "prefill": Form(), "all": Form(logits="all")}


def form_named(name: str, cache: str = "f32", integers: Integers | None = None) -> Form:
    """A form by its name. Raises BrioletteError where there is none of that name."""
    if name not in FORMS:
        raise BrioletteError(f"there is no form `{name}`; there are {', '.join(FORMS)}")
    return replace(FORMS[name], cache=cache, integers=integers)


@dataclass
class Trace:
    """What happened on the way: the module after each stage, rule hits, seconds."""

    modules: dict[str, Module] = field(default_factory=dict)
    hits: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def front(tree: Architecture, header: Header, trace: Trace | None = None, watcher: Watcher | None = None) -> Module:
    """Elaboration and unrolling: what all forms of a model's program share."""
    trace = Trace() if trace is None else trace
    module = _stage("elaborated", trace, lambda hits: elaborate(tree, header))
    watch = watcher("unrolled", module) if watcher else None
    return _stage("unrolled", trace, lambda hits: _watched("unroll", module, unroll(module), watch))


def optimise(module: Module, form: Form, trace: Trace | None = None, watcher: Watcher | None = None) -> Module:
    """The unrolled module as a backend wants it for one form of step.

    `watcher(stage, module)` gives who is to see what that stage makes of the module (blame mode in tests).
    """
    trace = Trace() if trace is None else trace

    def run(name: str, change: Callable[[Module, Counter[str], Watch | None], Module]) -> None:
        nonlocal module
        before, watch = module, watcher(name, module) if watcher else None
        module = _stage(name, trace, lambda hits: change(before, hits, watch))

    def binding(m: Module, hits: Counter[str], watch: Watch | None) -> Module:
        return m if form.tokens is None else _watched("bind", m, bind(m, {"T": form.tokens}), watch)

    def narrowing(m: Module, hits: Counter[str], watch: Watch | None) -> Module:
        if form.tokens is not None or form.logits != "last":
            return m
        m = _watched("parts", m, parted(m, hits), watch)
        return _watched("last-token", m, last_token(m, hits), watch)

    def fusing(m: Module, hits: Counter[str], watch: Watch | None) -> Module:
        copied = _watched("copies", m, copies(m, hits), watch)
        fused = _watched("fuse", copied, fuse(copied, hits), watch)
        return with_likeliest(fused, form.likeliest, hits)  # outputs more, none of which is another than before

    run("bound", binding)
    run("simplified", lambda m, hits, watch: rewrite(m, SIMPLIFY, hits, watch))
    run("head", narrowing)
    run("angles", lambda m, hits, watch: rewrite(m, ANGLES, hits, watch))
    run("cache", lambda m, hits, watch: _watched("cache", m, kept(m, form.cache, hits), watch))
    run("integers", lambda m, hits, watch: rewrite(m, products(form.integers), hits, watch))
    run("fused", fusing)
    return module


def _watched(name: str, before: Module, after: Module, watch: Watch | None) -> Module:
    """A pass over the whole graph, seen as rules are: by the outputs it had and has made."""
    if watch is not None:
        for old, new in zip(before.outputs, after.outputs, strict=True):
            if old is not new:
                watch(name, old, new)
    return after


def _stage(name: str, trace: Trace, change: Callable[[Counter[str]], Module]) -> Module:
    hits: Counter[str] = Counter()
    start = time.perf_counter()
    module = change(hits)
    verify(module, name)
    trace.modules[name], trace.hits[name] = module, hits
    trace.seconds[name] = time.perf_counter() - start
    return module


def stage_of(trace: Trace, name: str) -> Module:
    """The module after a stage. Raises BrioletteError for a stage that does not exist."""
    if name not in trace.modules:
        raise BrioletteError(f"there is no stage `{name}`; there are {', '.join(trace.modules)}")
    return trace.modules[name]
