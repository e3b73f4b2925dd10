"""The ordered list of stages, from an architecture and a header to a planned program."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from briolette.spec.syntax import Architecture

from .elaborate import elaborate
from .errors import BrioletteError
from .header import Header
from .ir import Module
from .rewrite import Watch, rewrite
from .rules.cache import cache_dtype
from .rules.copies import copies
from .rules.fuse import fuse
from .rules.head import last_token
from .rules.simplify import ANGLES, SIMPLIFY
from .unroll import bind, unroll
from .verify import verify

STAGES = ("elaborated", "unrolled", "bound", "simplified", "head", "angles", "cache", "fused")


@dataclass(frozen=True)
class Form:
    """Which program is wanted of a model.

    `tokens` is a fixed number of tokens a step (1 for decoding) or None for any; `logits` is "last" or
    "all"; `cache` the element type of the KV cache.
    """

    tokens: int | None = None
    logits: str = "last"
    cache: str = "f32"


@dataclass
class Trace:
    """What happened on the way: the module after each stage, rule hits, seconds."""

    modules: dict[str, Module] = field(default_factory=dict)
    hits: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def front(tree: Architecture, header: Header, trace: Trace | None = None) -> Module:
    """Elaboration and unrolling: what all forms of a model's program share."""
    trace = Trace() if trace is None else trace
    module = _stage("elaborated", trace, lambda hits: elaborate(tree, header))
    return _stage("unrolled", trace, lambda hits: unroll(module))


def optimise(module: Module, form: Form, trace: Trace | None = None, watch: Watch | None = None) -> Module:
    """The unrolled module as a backend wants it for one form of step."""
    trace = Trace() if trace is None else trace

    def run(name: str, change: Callable[[Module, Counter[str]], Module]) -> None:
        nonlocal module
        before = module
        module = _stage(name, trace, lambda hits: change(before, hits))

    tokens = form.tokens
    run("bound", lambda m, hits: m if tokens is None else bind(m, {"T": tokens}))
    run("simplified", lambda m, hits: rewrite(m, SIMPLIFY, hits, watch))
    run("head", lambda m, hits: last_token(m, hits) if tokens is None and form.logits == "last" else m)
    run("angles", lambda m, hits: rewrite(m, ANGLES, hits, watch))
    run("cache", lambda m, hits: rewrite(m, cache_dtype(form.cache), hits, watch))
    run("fused", lambda m, hits: fuse(copies(m, hits), hits))
    return module


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
