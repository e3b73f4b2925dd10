"""Each detector, on a reference that was changed in one value: the tool must say what was done to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from runs import against, first_case, model, recorded, tokens

from briolette.engine.model import Model
from briolette.engine.source import source_of
from briolette.engine.tracing.case import Case
from briolette.engine.tracing.causes import DETECTORS
from briolette.engine.tracing.record import record
from briolette.spec.syntax import parse

NAME = "gemma4_e2b"
Q, K = "blk.1.attention.q", "blk.1.attention.k"
Values = dict[str, np.ndarray]


def tensor(name: str) -> np.ndarray:
    file = model(NAME).file
    return file.tensor_bytes(name).view(np.float32).astype(np.float64)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def earlier(x: np.ndarray) -> np.ndarray:
    """The same rows one position later."""
    return np.concatenate([x[:1], x[:-1]])


def paired(x: np.ndarray) -> np.ndarray:
    """Halves, as pairs side by side."""
    return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)


# The value that is changed, how, and what must be said of it.
CHANGES: list[tuple[str, str, Callable[[Values], np.ndarray], str]] = [
    ("constant", "main.x", lambda v: v["main.x"] * 40**0.5, r"divided by 40 \*\* 0.5 \(embedding_length\)"),
    ("constant", "main.p", lambda v: v["main.p"] / 2**0.5, r"times 2 \*\* 0.5"),
    ("constant", "main.g", lambda v: v["main.g"] * 1.234, r"ours is 0.810373 times the reference's"),
    (
        "constant",
        "blk.1.layer",
        lambda v: v["blk.1.layer"] * tensor("blk.1.layer_output_scale.weight")[0],
        r"divided by `layer_output_scale`",
    ),
    (
        "channels",
        "blk.1.attention.h",
        lambda v: v["blk.1.attention.h"] / tensor("blk.1.attn_norm.weight"),
        "ours multiplies by `attn_norm` here, the reference does not",
    ),
    (
        "channels",
        "blk.1.attention.h",
        lambda v: v["blk.1.attention.h"] * (1 + 1 / tensor("blk.1.attn_norm.weight")),
        r"the reference has `attn_norm` as 1 \+ w where ours has w",
    ),
    (
        "channels",
        "blk.1.ffn.d",
        lambda v: v["blk.1.ffn.d"] * tensor("blk.1.ffn_norm.weight"),
        "the reference multiplies by `ffn_norm` here, ours does not",
    ),
    (
        "channels",
        "blk.1.ffn.d",
        lambda v: v["blk.1.ffn.d"] * np.linspace(0.5, 2, 40),
        "a number for each of the 40 channels",
    ),
    ("normed", "blk.1.ffn.d", lambda v: unit(v["blk.1.ffn.d"]), "the reference has an RMS norm here, without a weight"),
    (
        "normed",
        "blk.1.cache.v",
        lambda v: v["blk.1.attn_v"].reshape(26, 1, -1),
        "ours has an RMS norm here, without a weight, the reference has none",
    ),
    ("unary", "blk.1.inp_gate", lambda v: np.tanh(v["blk.1.inp_gate"]), "the reference applies tanh to this"),
    (
        "shifted",
        "blk.1.ffn.d",
        lambda v: earlier(v["blk.1.ffn.d"]),
        "at position t is the reference's at t . 1: a shift in position",
    ),
    (
        "permuted",
        "blk.1.attn_q_norm",
        lambda v: v["blk.1.attn_q_norm"][:, [2, 0, 1, 3]],
        "the same heads in another order",
    ),
    (
        "permuted",
        "blk.1.attn_k_norm",
        lambda v: paired(v["blk.1.attn_k_norm"]),
        "the same channels in another order: .*(interleaved|even)",
    ),
    ("added", "blk.1.layer.y", lambda v: v["blk.1.layer.y"] - 3 * v["blk.0.ffn"], "plus 3 times `blk.0.ffn`"),
    ("skipped", "blk.1.layer.y", lambda v: v["blk.1.attention"], "the reference has no add here"),
    (
        "operand",
        "blk.2.attention.h",
        lambda v: unit(v["blk.0.layer"]) * tensor("blk.2.attn_norm.weight"),
        "the reference reads `blk.0.layer` here, ours reads `blk.1.layer`",
    ),
    (
        "weighting",
        "blk.1.attn_q_norm",
        lambda v: v["blk.1.attn_q_norm"] * 0 + unit(v["blk.1.attn_q"].reshape(26, 4, -1)),
        "the reference has this norm without a weight",
    ),
]


def explained(detector: str, case: Case) -> str:
    """What one detector says."""
    cause = next(d for d in DETECTORS if d.__name__ == detector)(case)
    return "" if cause is None else cause.text


@pytest.mark.parametrize(
    ("detector", "label", "change", "says"), CHANGES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_changed_value_is_explained(
    detector: str, label: str, change: Callable[[Values], np.ndarray], says: str
) -> None:
    right = recorded(NAME)
    values = {
        name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in right.named().items()
    }
    wrong = replace(right, values=right.values | {label: change(values).astype(np.float32)})
    found = against(NAME, wrong)
    assert found.findings[0].row.label in (label, *right.told(label)["names"])
    assert found.findings[0].cause is not None  # by the first detector that fits, which may be another
    told = explained(detector, first_case(NAME, wrong))
    assert re.search(says, told), told


# What a port may do to attention and rotation: an edit of the right spec is the reference, the shipped one is compared.
EDITS = [
    (
        "rotation",
        "freqs=freqs)\n  if src",
        "freqs=freqs, interleaved=true)\n  if src",
        "the reference takes pairs side by side",
    ),
    (
        "rotation",
        'theta = "rope.freq_base_swa"',
        'theta = "rope.freq_base" or "rope.freq_base_swa"',
        "theta 1e.06|a base of 1e.06",
    ),
    ("settings", "scale=1,", "scale=hd ** -0.5,", r"scale 8 \*\* -0.5 \(one over the root of the head size\), ours 1"),
    ("settings", "window=window)", "window=window, softcap=cap)", r"softcap 30 \(final_logit_softcapping\), ours none"),
    ("settings", "  window = W\n", "  window = W + 1\n", "the reference has window 8, ours 7"),
    ("settings", "  window = W\n", "  window = W * 1000\n", "the reference has window none, ours 7"),
    (
        "caches",
        "last(j < L - S : kind",
        "last(j < L - S : j < 2 and kind",
        "the reference attends to `blk.1.cache`, ours to",
    ),
    ("epsilon", "h = x |> rms(attn_norm)", "h = x |> rms(attn_norm, eps=1e-5)", "eps 1e-05, ours 1e-06"),
    ("epsilon", "h = x |> rms(attn_norm)", "h = x |> rms(attn_norm, eps=3.7e-4)", "eps 0.00037, ours 1e-06"),
    ("replaced", "d = gelu(u", "d = silu(u", "the reference has silu here, ours gelu"),
    (
        "swapped",
        "gelu(u |> linear(ffn_gate)) * (u |> linear(ffn_up))",
        "gelu(u |> linear(ffn_up)) * (u |> linear(ffn_gate))",
        "the reference has gelu of `blk.0.ffn_up` here, ours of `blk.0.ffn_gate`: the two are swapped",
    ),
    (
        "reordered",
        "|> rms(attn_q_norm) |> rope(theta, dims=rot, freqs=freqs)",
        "|> rope(theta, dims=rot, freqs=freqs) |> rms(attn_q_norm)",
        "the reference has rms_norm before rope here, ours after it",
    ),
    (
        "elsewhere",
        "cache[i] <- k, v |> rms()",
        "cache[i] <- (v |> rms()), k",
        "the reference has here what ours has as `blk.0.attention.k`|what ours has as `blk.0.cache.v`",
    ),
]


@pytest.mark.parametrize(("detector", "old", "new", "says"), EDITS, ids=lambda v: v if v.isalpha() else "")
def test_another_setting_is_explained(detector: str, old: str, new: str, says: str) -> None:
    name = "gemma4_donors" if detector == "caches" else NAME
    known = model(name)
    text = known.tree.source
    assert text.count(old) == 1
    tree = parse(text.replace(old, new), "other.arch")
    source = source_of(tree, known.header)
    if detector == "reordered":  # here the wrong spec is the one compared
        case = first_case(name, recorded(name), source.module)
    else:
        other = Model(known.file, source, "reference", known.options)
        case = first_case(name, record(other, tokens(name)))
    told = explained(detector, case)
    assert re.search(says, told), told


def test_every_detector_is_tried_here() -> None:
    tried = {name for name, *_ in (*CHANGES, *EDITS)}
    assert tried == {detector.__name__ for detector in DETECTORS}
