"""Detectors that try the op to blame with another operand or attribute, or without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from briolette.compiler.ops import OPS, attributes

from .case import Array, Case, Cause, narrowed, roots
from .measure import distance

LARGEST_EPS = -2  # its power of ten; beyond, it does no more than a factor would
Options = Callable[[Case], Iterator[tuple[Any, str]]]  # values of an attribute, and what to say of each


def skipped(case: Case) -> Cause | None:
    """The reference does not have this op."""
    for index, value in case.reals():
        found = case.again(value) if value.shape == _shape(case) else None
        if found is not None and case.fits(found):
            return Cause(f"the reference has no {case.item.op} here: its value is {case.name(index)}", extra=True)
    return None


def unary(case: Case) -> Cause | None:
    """The reference applies a function that ours lacks."""
    if case.own.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        for name, function in functions(case, case.own):
            if case.fits(case.again(function(case.own))):
                return Cause(f"the reference applies {name} to this, ours does not")
        for index, value in case.reals():
            for name, function in functions(case, value) if value.dtype.kind == "f" else ():
                if case.fits(case.with_operand(index, function(value))):
                    return Cause(f"the reference applies {name} to {case.name(index)} first, ours does not")
    return None


def functions(case: Case, x: Array) -> Iterator[tuple[str, Callable[[Array], Array]]]:
    """Functions of a value that a port may have left out."""
    for name in ("gelu", "silu", "tanh", "softmax"):
        yield name, partial(OPS[name].evaluate, case.lane.context)
    for cap, text in _caps(case):
        if cap is not None:
            yield f"a softcap of {text}", partial(OPS["softcap"].evaluate, case.lane.context, cap=cap)
    for attrs, factors in case.ropes if x.ndim == 3 else ():
        if attrs["dims"] <= x.shape[-1] and (factors is None or len(factors) == attrs["dims"] // 2):
            given = () if factors is None else (factors,)
            yield f"a rotation (theta {attrs['theta']:g})", partial(_turned, case, attrs, given)
    norm = partial(OPS["rms_norm"].evaluate, case.lane.context, eps=case.epsilons[0][0])
    if case.item.op != "rms_norm":  # one more changes next to nothing
        yield "an RMS norm", norm
    for name, weight in case.tensors.items():
        if weight.shape == x.shape[-1:]:
            yield f"an RMS norm with `{name}`", partial(_weighted, norm, weight)


def _turned(case: Case, attrs: Mapping[str, Any], factors: tuple[Array, ...], x: Array) -> Array:
    turned: Array = OPS["rope"].evaluate(case.lane.context, x, case.lane.context.positions, *factors, **attrs)
    return turned


def _weighted(norm: Callable[[Array, Array], Array], weight: Array, x: Array) -> Array:
    return norm(x, weight)


def weighting(case: Case) -> Cause | None:
    """A weight with or without 1 added, or a norm with or without a weight."""
    for index, (arg, weight) in enumerate(zip(case.item.args, case.inputs, strict=True)):
        if arg in case.names or not isinstance(weight, np.ndarray) or weight.ndim != 1 or arg.op == "position":
            continue
        for by, text in ((-1, "w where ours has 1 + w"), (1, "1 + w where ours has w")):
            if case.fits(case.with_operand(index, weight + by)):
                return Cause(f"the reference has {text}")
    if case.item.op == "rms_norm":
        x, *given = case.inputs
        if given and case.fits(case.evaluated([x])):
            return Cause("the reference has this norm without a weight")
        for name, weight in case.tensors.items():
            if weight.shape == x.shape[-1:] and case.fits(case.evaluated([x, weight])):
                ours = f"by {case.name(1)}" if given else "by no weight"
                return Cause(f"the reference multiplies by `{name}` here, ours {ours}")
    return None


def operand(case: Case) -> Cause | None:
    """The reference reads another value here."""
    for index, value in case.reals():
        if case.item.op == "attend" and index > 0:
            continue  # caches are another detector's
        for label, other in case.others.items():
            if (other.size, other.dtype.kind, len(other)) != (value.size, value.dtype.kind, len(value)):
                continue
            if case.fits(case.with_operand(index, case.lane.real(other.reshape(value.shape)))):
                if f"`{label}`" == case.name(index):
                    return Cause(f"already `{label}`, which this reads, differs from the reference's")
                text = f"the reference reads {case.their_name(label)} here, ours reads {case.name(index)}"
                return Cause(text, index, label)
        for text, other in _parts(case, index):
            if case.fits(case.with_operand(index, other)):
                return Cause(f"the reference reads {text}", index, " ")
    return None


def _parts(case: Case, index: int) -> Iterator[tuple[str, Array]]:
    """Other parts of the value that an operand is a part of."""
    arg = case.item.args[index]
    while arg.op == "reshape":
        arg = arg.args[0]
    if arg.op != "slice":
        return
    whole, axis = case.lane.values[arg.args[0]], arg["axis"]
    size = case.lane.values[arg].shape[axis]
    taken = case.lane.context.size(arg["start"])
    for start in range(0, whole.shape[axis] - size + 1, size):
        part = whole.take(range(start, start + size), axis)
        ends = (f"{start}", f"{taken}") if size == 1 else (f"{start}:{start + size}", f"{taken}:{taken + size}")
        name = f"`{case.names.get(arg.args[0], 'the value')}`"
        yield f"part {ends[0]} of {name} here, ours part {ends[1]}", part.reshape(case.inputs[index].shape)


def rotation(case: Case) -> Cause | None:
    """Another rotation: pairs, base, factors, or positions."""
    if case.item.op != "rope":
        return None
    own = attributes(case.item)
    x, positions, *freqs = case.inputs
    pairs = {True: "side by side (2i, 2i + 1)", False: "in halves (i, i + n/2)"}
    turned = not own["interleaved"]
    if case.fits(case.evaluated(case.inputs, interleaved=turned)):
        return Cause(f"the reference takes pairs {pairs[turned]}, ours {pairs[not turned]}", attribute="interleaved")
    for by in (1, -1):
        if case.fits(case.evaluated([x, positions + by, *freqs])):
            return Cause(f"the reference turns by position t {'+' if by > 0 else '-'} 1: a shift in position")
    for attrs, factors in case.ropes:
        changed = {key: attrs[key] for key in ("theta", "dims", "scale")}
        given = [x, positions] if factors is None else [x, positions, factors]
        if (factors is not None and len(factors) != changed["dims"] // 2) or changed["dims"] > x.shape[-1]:
            continue
        if case.fits(case.evaluated(given, **changed)):
            keys = [key for key in changed if changed[key] != own[key]]
            if keys:
                what = ", ".join(f"{key} {changed[key]:g} (ours {own[key]:g})" for key in keys)
                return Cause(f"the reference turns with {what}", attribute=keys[0], value=changed[keys[0]])
            factor = (
                "with frequency factors, ours without"
                if factors is not None
                else "without the frequency factors that ours has"
            )
            return Cause(f"the reference turns {factor}", attribute="freqs")
    return _base(case, x, own)


def _base(case: Case, x: Array, own: Mapping[str, Any]) -> Cause | None:
    """The base of the frequencies, from the angles by which the reference turns at position 1."""
    half, theirs = own["dims"] // 2, case.theirs
    if theirs.shape != x.shape or len(x) < 2 or half < 2 or own["interleaved"]:
        return None
    before, after = (v[1, :, :half] + 1j * v[1, :, half : 2 * half] for v in (x, theirs))
    angle = float(np.angle((after * before.conj()).sum(0))[1])
    if not 0 < angle < 1:
        return None
    theta = float(np.exp(-np.log(angle / own["scale"]) * half))
    known = [(abs(value / theta - 1), value, name) for name, value in case.numbers.items() if value > 0]
    off, value, name = min(known, default=(1.0, 0.0, ""))
    theta = value if off < 1e-3 else theta
    if off >= 1e-3:  # the angle of one pair gives it but roughly
        theta = narrowed(
            lambda base: distance(case.evaluated(case.inputs, theta=base), theirs), 0.98 * theta, 1.02 * theta
        )
    if not case.fits(case.evaluated(case.inputs, theta=theta)):
        return None
    says = f", as `{name}` of the file says" if off < 1e-3 else ""
    text = f"the reference turns with a base of {theta:g}{says}, ours of {own['theta']:g}"
    return Cause(text, attribute="theta", value=theta)


def caches(case: Case) -> Cause | None:
    """Attention over another layer's cache."""
    if case.item.op != "attend":
        return None
    q, k, v, positions = case.inputs
    for label, keys in case.others.items():
        values = case.others.get(f"{label.removesuffix('k')}v")
        if not label.endswith(".cache.k") or values is None or (keys.shape, values.shape) != (k.shape, v.shape):
            continue
        if case.fits(case.evaluated([q, case.lane.real(keys), case.lane.real(values), positions])):
            return Cause(
                f"the reference attends to `{label.removesuffix('.k')}`, ours to {case.name(1)}", attribute="slot"
            )
    return None


def settings(case: Case) -> Cause | None:
    """Another value of an attribute."""
    return _tried(case, TRIED.get(case.item.op, {}))


def epsilon(case: Case) -> Cause | None:
    """Another eps: tried first, for what it does to a norm looks like a factor, or like a second norm."""
    return _tried(case, {"eps": _epsilons} if case.item.op == "rms_norm" else {})


def _tried(case: Case, tried: Mapping[str, Options]) -> Cause | None:
    own = attributes(case.item)
    for key, options in tried.items():
        for value, text in options(case):
            if value != own[key] and case.fits(case.evaluated(case.inputs, **{key: value})):
                ours = "none" if own[key] is None else f"{own[key]:g}"
                return Cause(f"the reference has {key} {text}, ours {ours}", attribute=key, value=value)
    return None


def _scales(case: Case) -> Iterator[tuple[float, str]]:
    yield 1.0, "1"
    size = case.inputs[0].shape[-1]
    yield size**-0.5, f"{size} ** -0.5 (one over the root of the head size)"
    for value, name in roots(case.numbers):
        yield value, name
        yield 1 / value, f"1 / {name}"


def _caps(case: Case) -> Iterator[tuple[float | None, str]]:
    yield None, "none"
    for name, value in {**case.numbers, "the usual 30": 30.0, "the usual 50": 50.0}.items():
        if value > 0 and ("cap" in name or "usual" in name):
            yield float(value), f"{value:g} ({name})"


def _windows(case: Case) -> Iterator[tuple[int | None, str]]:
    own = case.item.get("window")
    yield None, "none"
    for by in (1, -1) if own is not None else ():
        yield own + by, f"{own + by}"
    for name, value in case.numbers.items():
        if value == int(value) and 0 < value <= 1 << 20:
            yield int(value), f"{value:g} ({name})"


def _epsilons(case: Case) -> Iterator[tuple[float, str]]:
    yield from case.epsilons
    yield from ((value, f"{value:g}") for value in (1e-5, 1e-6, 1e-8, 1e-12, 0.0))
    found = estimated(case)
    if found is not None:
        rounded = float(f"{found:.0e}")
        yield from ((value, f"{value:.3g}") for value in (rounded, found))


def estimated(case: Case) -> float | None:
    """The eps of a norm with which its value is nearest to the reference's, if it is one that a model may have."""
    if any(at.op == "linear" for at in case.after):
        return None  # a product for each guess takes long
    power = narrowed(lambda p: distance(case.evaluated(case.inputs, eps=10**p), case.theirs), -13, -1)
    return 10**power if power < LARGEST_EPS else None


# Attributes whose other values are tried: of an op, by name.
TRIED: dict[str, dict[str, Options]] = {
    "attend": {"scale": _scales, "softcap": _caps, "window": _windows},
    "softcap": {"cap": lambda case: ((v, t) for v, t in _caps(case) if v is not None)},
}


def _shape(case: Case) -> tuple[int, ...]:
    """The shape of the op to blame."""
    return tuple(case.lane.context.size(dim) for dim in case.item.shape)
