"""The functions of the architecture language: what `rms(x, w)` makes of its arguments.

Most are an op of the same name. Each takes the evaluator, where it was called, and its arguments.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from briolette.spec.errors import Span

from .dims import product
from .ir import Node
from .ops import OPS
from .values import CacheSlot, Frame, describe, shape_of

if TYPE_CHECKING:
    from .expressions import Evaluator

_GIVEN = 3  # a function's first parameters: evaluator, span, frame
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Function:
    """A function with its parameters by name; a default of REQUIRED is none."""

    name: str
    params: dict[str, Any]
    run: Callable[..., Any]
    doc: str

    @property
    def usage(self) -> str:
        return f"{self.name}({', '.join(_shown(name, value) for name, value in self.params.items())})"

    def call(self, e: Evaluator, span: Span, frame: Frame, args: list[Any], named: dict[str, Any]) -> Any:
        """Runs it, once the arguments are seen to fit."""
        names = list(self.params)
        if len(args) > len(names):
            most = f"{len(names)} argument{'s' * (len(names) > 1)}"
            e.owner.fail(f"{self.name} takes at most {most}, not {len(args)}", span, f"it is {self.usage}")
        for name in named:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean `{near[0]}`?" if near else f"it is {self.usage}"
                e.owner.fail(f"{self.name} has no argument `{name}`", span, hint)
            if name in names[: len(args)]:
                e.owner.fail(f"`{name}` is given twice", span, f"it is {self.usage}")
        given = {*names[: len(args)], *named}
        for name, default in self.params.items():
            if default is REQUIRED and name not in given:
                e.owner.fail(f"{self.name} needs `{name}`", span, f"it is {self.usage}")
        return self.run(e, span, frame, *args, **named)


def _shown(name: str, default: Any) -> str:
    if default is REQUIRED:
        return name
    return f"{name}={'none' if default is None else str(default).lower()}"


FUNCTIONS: dict[str, Function] = {}


def _function(run: Callable[..., Any]) -> Callable[..., Any]:
    params = list(inspect.signature(run).parameters.values())[_GIVEN:]
    name = run.__name__.strip("_")
    doc = " ".join((run.__doc__ or "").split())
    FUNCTIONS[name] = Function(name, {p.name: p.default for p in params}, run, doc)
    return run


@_function
def rms(e: Evaluator, span: Span, frame: Frame, x: Any, w: Any = None, eps: Any = None) -> Node:
    """x / sqrt(mean(x^2) + eps) over the last axis, times w where it is given; `eps` is the parameter eps."""
    x = e.value_of(x, "rms", span)
    if eps is None:
        if not e.declared("eps", frame, span):
            e.owner.fail("rms needs `eps`", span, 'declare it, such as: param eps = "attention.layer_norm_rms_epsilon"')
        eps = e.name("eps", span, frame)
    weights = () if w is None else (e.value_of(w, "the weight of rms", span),)
    return e.make("rms_norm", span, x, *weights, eps=e.number(eps, "eps", span))


@_function
def linear(e: Evaluator, span: Span, frame: Frame, x: Any, w: Any, ids: Any = None) -> Node:
    """x by the rows of a weight [N, K]; heads [T, H, D] are laid side by side. With `ids` [T, U] by the
    weights [E, N, K] of each token's experts."""
    x, w = e.value_of(x, "linear", span), e.tensor_arg(w, "the weight of linear", span)
    if ids is not None:
        return e.make("expert_linear", span, x, w, e.tensor_arg(ids, "the expert ids", span))
    flat = product(x.shape[1:]) if len(x.shape) > 2 else None
    if flat is not None and w.shape and x.shape[-1] != w.shape[-1] and flat == w.shape[-1]:
        x = e.make("reshape", span, x, shape=(x.shape[0], flat))
    return e.make("linear", span, x, w)


@_function
def rope(
    e: Evaluator,
    span: Span,
    frame: Frame,
    x: Any,
    theta: Any,
    dims: Any = None,
    freqs: Any = None,
    scale: Any = 1.0,
    interleaved: Any = False,
) -> Node:
    """Rotary positions of heads [T, H, D]: pair j of the first `dims` values turns by the angle
    position * scale * theta^(-2j/dims) / freqs[j]. A pair is (j, j + dims/2), if interleaved (2j, 2j + 1)."""
    x = e.value_of(x, "rope", span)
    if len(x.shape) != 3:
        e.owner.fail(f"rope needs heads [T, H, D], not {shape_of(x)}", span)
    rest = () if freqs is None else (e.value_of(freqs, "freqs", span),)
    attrs = {
        "theta": e.number(theta, "theta", span, above=0),
        "dims": x.shape[-1] if dims is None else e.integer(dims, "dims", span),
        "scale": e.number(scale, "scale", span),
        "interleaved": e.flag(interleaved, "interleaved", span),
    }
    return e.make("rope", span, x, e.owner.position(x.shape[0]), *rest, **attrs)


@_function
def attend(
    e: Evaluator,
    span: Span,
    frame: Frame,
    q: Any,
    cache: Any,
    scale: Any,
    window: Any = None,
    softcap: Any = None,
) -> Node:
    """Causal attention of queries [T, H, D] over a cache: softmax(scale * q k) v. A token sees the last
    `window` positions; scores are capped before the mask; a softcap of 0 is none."""
    q = e.value_of(q, "the query", span)
    if not isinstance(cache, CacheSlot):
        e.owner.fail(f"attend reads a cache, not {describe(cache)}", span, "such as attend(q, cache[i], scale=1)")
    k, v = e.owner.read_cache(cache, frame, span)
    if not q.shape:
        e.owner.fail("attend needs heads [T, H, D]", span)
    attrs = {
        "scale": e.number(scale, "scale", span),
        "window": None if window is None else e.integer(window, "window", span),
        "softcap": (None if softcap is None else e.number(softcap, "softcap", span)) or None,
    }
    return e.make("attend", span, q, k, v, e.owner.position(q.shape[0]), **attrs)


@_function
def embed(e: Evaluator, span: Span, frame: Frame, table: Any, ids: Any) -> Node:
    """The rows `ids` of a table [V, N]."""
    return e.make("embed", span, e.tensor_arg(table, "the table", span), e.tensor_arg(ids, "the ids", span))


@_function
def softcap(e: Evaluator, span: Span, frame: Frame, x: Any, cap: Any) -> Node:
    """cap * tanh(x / cap)."""
    return e.make("softcap", span, e.value_of(x, "softcap", span), cap=e.number(cap, "cap", span, above=0))


@_function
def top(e: Evaluator, span: Span, frame: Frame, x: Any, k: Any) -> Node:
    """The indices of the k largest values of each row, largest first."""
    x = e.value_of(x, "top", span)
    if not x.shape:
        e.owner.fail("top needs rows", span)
    return e.make("top", span, x, k=e.integer(k, "k", span))


@_function
def isbool(e: Evaluator, span: Span, frame: Frame, value: Any) -> bool:
    """Whether a metadata value is a flag; converters write patterns as flags or as a period."""
    return isinstance(value, bool)


def _same_op(name: str) -> None:
    """A function that is an op, its operands in order."""

    def run(e: Evaluator, span: Span, frame: Frame, **args: Any) -> Node:
        return e.make(name, span, *(e.value_of(args[o], name, span) for o in OPS[name].operands))

    def ordered(e: Evaluator, span: Span, frame: Frame, *args: Any, **named: Any) -> Node:
        return run(e, span, frame, **dict(zip(OPS[name].operands, args, strict=False)), **named)

    FUNCTIONS[name] = Function(name, dict.fromkeys(OPS[name].operands, REQUIRED), ordered, OPS[name].doc)


for _name in ("gelu", "silu", "tanh", "exp", "softmax", "sum", "take", "combine"):
    _same_op(_name)
