"""Every reference point of Gemma 4 is a line of gemma4.arch, and changing that line is noticed.

Each mutation is a typical wrong port (rows 1 to 10 of the reference points this project started from).
It must either be refused when it meets a file, or move the logits of an oracle model well away from
transformers'. Each is tried on one model that has what it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import tiny

from briolette.compiler.elaborate import elaborate
from briolette.compiler.interp import Interpreter
from briolette.compiler.unroll import unroll
from briolette.engine.gguf import GgufFile, open_gguf
from briolette.spec.errors import SpecError
from briolette.spec.syntax import parse, shipped
from briolette.spec.tree import Architecture

MODELS = sorted(path.stem for path in tiny.ORACLE.glob("gemma4_*.gguf"))
RIGHT = 1e-5  # relative error of logits; transformers' own f32 is 1e-5 from its f64 on gemma4_donors
TOLERANCE = dict.fromkeys(MODELS, RIGHT) | {"gemma4_donors": 2e-5}
WRONG = 1e-3
# The model that notices a row's mutations, unless one names another; "dense" where a row is not here.
NOTICES = {1: "e2b", 3: "moe", 4: "qkv", 5: "donors", 6: "donors", 7: "e2b"}
TEXT = shipped()["gemma4"].read_text(encoding="utf-8")


@dataclass(frozen=True)
class Mutation:
    """Text replacements, and what notices them: "logits"; "file" where the spec no longer fits it; "value"
    for a scale that a later norm takes out again, but for its eps. `on` is the model, if not the row's."""

    row: int
    what: str
    changes: tuple[tuple[str, str], ...]
    by: str = "logits"
    on: str = ""

    @property
    def model(self) -> str:
        return f"gemma4_{self.on or NOTICES.get(self.row, 'dense')}"

    def apply(self) -> str:
        text = TEXT
        for old, new in self.changes:
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in gemma4.arch"
            text = text.replace(old, new)
        return text


SCALED = "return z * layer_output_scale if has(layer_output_scale) else z"
PLE = "  z = z + ple(z, p[:, i], i) when P > 0\n"
V_NORM = "cache[i] <- k, v |> rms()"
ROUTER = "r = rms(y) * D ** -0.5 * ffn_gate_inp.scale"
ATTEND = "a = attend(q, cache[src[i]], scale=1, window=window)"
CAPPED = "return logits |> softcap(cap) if cap > 0 else logits"
DONOR = "last(j < L - S : kind[j] == kind[i])"
SWA_BASE = 'theta = "rope.freq_base_swa" or "rope.local.freq_base" or 10000'
TOKEN_PART = "e = embed(per_layer_token_embd, tokens) * P ** 0.5 : [T, L, P] when P > 0"
PLE_SUM = "p = (e + g) * 2 ** -0.5 if P > 0 else none"


def swap(row: int, what: str, old: str, new: str, by: str = "logits", on: str = "") -> Mutation:
    return Mutation(row, what, ((old, new),), by, on)


MUTATIONS = [
    swap(1, "only the layer's change is scaled", SCALED, SCALED.replace("z *", "x + (z - x) *")),
    Mutation(
        1,
        "scaled before PLE",
        ((PLE, "  z = z * layer_output_scale when has(layer_output_scale)\n" + PLE), (SCALED, "return z")),
    ),
    Mutation(
        1,
        "scaled before the FFN",
        (
            (
                "  z = y + ffn(y, i)\n",
                "  y = y * layer_output_scale when has(layer_output_scale)\n  z = y + ffn(y, i)\n",
            ),
            (SCALED, "return z"),
        ),
    ),
    swap(1, "scale left out", SCALED, "return z", by="file"),
    swap(1, "scale ignored", SCALED, "ignore layer_output_scale\n  return z"),
    swap(2, "no V-norm", V_NORM, "cache[i] <- k, v"),
    Mutation(2, "V-norm after attention", ((V_NORM, "cache[i] <- k, v"), (ATTEND, ATTEND + " |> rms()"))),
    swap(2, "V-norm with K's weight", V_NORM, "cache[i] <- k, v |> rms(attn_k_norm)"),
    swap(2, "V-norm over all heads at once", V_NORM, "cache[i] <- k, rms(v : [T, KV[i] * vd]) : [T, KV[i], vd]"),
    swap(3, "router reads the experts' input", ROUTER, ROUTER.replace("rms(y)", "rms(y, pre_ffw_norm_2)")),
    swap(3, "router reads the FFN's input", ROUTER, ROUTER.replace("rms(y)", "rms(rms(y, ffn_norm))")),
    swap(3, "router without norm", ROUTER, ROUTER.replace("rms(y)", "y")),
    swap(3, "router without 1/sqrt(n_embd)", ROUTER, ROUTER.replace(" * D ** -0.5", "")),
    swap(3, "router's scale left out", ROUTER, ROUTER.replace(" * ffn_gate_inp.scale", ""), by="file"),
    swap(
        3,
        "router's scale ignored",
        ROUTER,
        f"ignore ffn_gate_inp.scale\n  {ROUTER.removesuffix(' * ffn_gate_inp.scale')}",
    ),
    swap(
        3,
        "expert weights that do not sum to 1",
        "w = take(r, e) / sum(take(r, e)) *",
        "w = take(r, e) *",
        by="value",
    ),
    swap(4, "one head size", '  hd = "attention.key_length_swa"', '  hd = "attention.key_length"', by="file"),
    swap(
        4,
        "one rotary size",
        'rot = "rope.dimension_count_swa" or hd',
        'rot = "rope.dimension_count" or hd',
        by="file",
    ),
    swap(4, "half of a sliding head turns", 'rot = "rope.dimension_count_swa" or hd', "rot = hd / 2", by="file"),
    swap(4, "one frequency base, key left out", SWA_BASE, 'theta = "rope.freq_base"', by="file"),
    swap(4, "one frequency base", SWA_BASE, SWA_BASE.replace('theta = "', 'theta = "rope.freq_base" or "', 1)),
    swap(
        4,
        "no fallback to rope.local.freq_base",
        SWA_BASE,
        SWA_BASE.replace(' or "rope.local.freq_base"', ""),
        by="file",
        on="plain",
    ),
    Mutation(
        4,
        "rope.local.freq_base ignored",
        (
            (SWA_BASE, SWA_BASE.replace(' or "rope.local.freq_base"', "")),
            ('ignore "', 'ignore "rope.local.freq_base", "'),
        ),
        on="plain",
    ),
    swap(4, "rope_freqs left out", "freqs = rope_freqs", "freqs = none", by="file"),
    Mutation(
        4,
        "rope_freqs ignored",
        (("freqs = rope_freqs", "freqs = none"), ("  x = embed", "  ignore rope_freqs\n  x = embed")),
    ),
    swap(4, "rope_freqs in sliding layers", "freqs = none", "freqs = rope_freqs", by="file"),
    swap(
        4,
        "pairs side by side",
        "|> rms(attn_q_norm) |> rope(",
        "|> rms(attn_q_norm) |> rope(interleaved=true, theta=",
    ),
    swap(5, "attention softcap of Gemma 2", ATTEND, ATTEND.replace("window)", "window, softcap=50)")),
    swap(5, "final softcap on the scores", ATTEND, ATTEND.replace("window)", "window, softcap=cap)")),
    swap(5, "final softcap off", CAPPED, "return logits", by="file"),
    swap(5, "final softcap far away", CAPPED, CAPPED.replace("softcap(cap)", "softcap(1000 * cap)")),
    swap(
        5,
        "final softcap where the file has none",
        '"final_logit_softcapping" or 0',
        '"final_logit_softcapping" or 30',
        on="plain",
    ),
    swap(6, "donor of any kind", DONOR, "last(j < L - S : true)", by="file"),
    swap(6, "donor n - 2 or n - 1", DONOR, "(L - S - 2 if swa[i] else L - S - 1)", by="file"),
    swap(6, "first donor of the kind", DONOR, DONOR.replace(":", ": j < 2 and")),
    swap(6, "a donor earlier", "last(j < L - S :", "last(j < L - S - 1 :"),
    swap(6, "one layer too few shares", "i if i < L - S else", "i if i < L - S + 1 else", by="file"),
    swap(7, "token part not scaled", TOKEN_PART, TOKEN_PART.replace(" * P ** 0.5", "")),
    swap(7, "token part scaled as the embedding", TOKEN_PART, TOKEN_PART.replace("P ** 0.5", "D ** 0.5")),
    swap(7, "sum not scaled", PLE_SUM, PLE_SUM.replace(" * 2 ** -0.5", ""), by="value"),
    swap(
        7,
        "projected part not normed",
        "[T, L, P] |> rms(per_layer_proj_norm) when",
        "[T, L, P] when",
        by="file",
    ),
    swap(7, "the first layer's slice in every layer", "ple(z, p[:, i], i)", "ple(z, p[:, 0], i)"),
    swap(7, "slices in the other order", "ple(z, p[:, i], i)", "ple(z, p[:, L - 1 - i], i)"),
    Mutation(
        7,
        "before the FFN's residual",
        (
            (PLE, ""),
            ("  z = y + ffn(y, i)\n", "  y = y + ple(y, p[:, i], i) when P > 0\n  z = y + ffn(y, i)\n"),
        ),
    ),
    swap(7, "not gated", "gelu(z |> linear(inp_gate)) * p", "(z |> linear(inp_gate)) * p"),
    swap(
        7,
        "projected part not scaled",
        "per_layer_model_proj) * D ** -0.5",
        "per_layer_model_proj)",
        by="value",
    ),
    swap(8, "V from the normed K", "v = c if wv == none", "v = (c |> rms(attn_k_norm)) if wv == none"),
    swap(8, "V from the rotated K", "v = c if wv == none", "v = k if wv == none"),
    swap(8, "V from the queries", "v = c if wv == none", "v = q[:, :KV[i]] if wv == none"),
    swap(9, "1 / sqrt(head size)", ATTEND, ATTEND.replace("scale=1", "scale=hd ** -0.5")),
    swap(10, "1 + w: attn_norm", "h = x |> rms(attn_norm)", "h = x |> rms(1 + attn_norm)"),
    swap(10, "1 + w: attn_q_norm", "rms(attn_q_norm)", "rms(1 + attn_q_norm)"),
    swap(10, "1 + w: attn_k_norm", "c |> rms(attn_k_norm)", "c |> rms(1 + attn_k_norm)"),
    swap(10, "1 + w: post_attention_norm", "rms(post_attention_norm)", "rms(1 + post_attention_norm)"),
    swap(10, "1 + w: ffn_norm", "rms(ffn_norm)", "rms(1 + ffn_norm)"),
    swap(10, "1 + w: post_ffw_norm", "rms(post_ffw_norm)", "rms(1 + post_ffw_norm)"),
    swap(10, "1 + w: pre_ffw_norm_2", "rms(pre_ffw_norm_2)", "rms(1 + pre_ffw_norm_2)", on="moe"),
    swap(10, "1 + w: post_ffw_norm_1", "rms(d, post_ffw_norm_1)", "rms(d, 1 + post_ffw_norm_1)", on="moe"),
    swap(10, "1 + w: post_ffw_norm_2", "i), post_ffw_norm_2)", "i), 1 + post_ffw_norm_2)", on="moe"),
    swap(10, "1 + w: post_norm", "rms(post_norm)", "rms(1 + post_norm)", on="e2b"),
    swap(10, "1 + w: per_layer_proj_norm", "rms(per_layer_proj_norm)", "rms(1 + per_layer_proj_norm)", on="e2b"),
    swap(10, "1 + w: output_norm", "rms(output_norm)", "rms(1 + output_norm)"),
]


@cache
def model(name: str) -> tuple[GgufFile, np.ndarray, np.ndarray]:
    stored = np.load(tiny.ORACLE / f"{name}.npz")
    return open_gguf(tiny.ORACLE / f"{name}.gguf"), stored["tokens"], stored["logits"]


def interpreter(file: GgufFile) -> Interpreter:
    shapes = {info.name: info.shape for info in file.header.tensors.values()}
    return Interpreter(lambda name: file.tensor_bytes(name).view(np.float32).reshape(shapes[name]))


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.linalg.norm(found - wanted) / np.linalg.norm(wanted), nan=np.inf))


def error(tree: Architecture, name: str) -> float:
    """The relative error of a spec's logits. Raises SpecError where spec and file do not fit."""
    file, tokens, wanted = model(name)
    program = unroll(elaborate(tree, file.header))
    with np.errstate(all="ignore"):
        (found,) = interpreter(file).step(program.outputs, tokens, 0)
    return difference(found, wanted)


def named(tree: Architecture, name: str, wanted: tuple[str, ...], **keys: object) -> list[np.ndarray]:
    """What the spec's names stand for, such as `p`, or `w.2` in layer 2."""
    file, tokens, _ = model(name)
    program = unroll(elaborate(tree, tiny.oracle_header(name, **keys)))
    nodes = {label: node for node, label in program.names.items()}
    return interpreter(file).step([nodes[label] for label in wanted], tokens, 0)


def hidden_errors(tree: Architecture) -> list[float]:
    """Errors of the values that a norm follows: `p` where eps is not small, and what experts weigh."""
    eps = 0.1
    file, tokens, _ = model("gemma4_e2b")
    sizes = {key: int(file.header.metadata[f"gemma4.{key}"]) for key in ("embedding_length", "block_count")}
    width, layers = sizes["embedding_length"], sizes["block_count"]
    read = interpreter(file).weight
    table, project = read("per_layer_token_embd.weight"), read("per_layer_model_proj.weight")
    part = table.shape[1] // layers
    x = read("token_embd.weight")[tokens] * width**0.5
    g = (x @ project.T / width**0.5).reshape(-1, layers, part)
    g = g / np.sqrt((g * g).mean(-1, keepdims=True) + eps) * read("per_layer_proj_norm.weight")
    e = table[tokens].reshape(-1, layers, part) * part**0.5
    (p,) = named(tree, "gemma4_e2b", ("p",), attention__layer_norm_rms_epsilon=eps)
    weights, experts = named(tree, "gemma4_moe", ("w.0", "e.0"))
    scales = interpreter(model("gemma4_moe")[0]).weight("blk.0.ffn_down_exps.scale")
    total = (weights / scales[experts]).sum(-1)
    return [difference(p, (e + g) * 2**-0.5), difference(total, np.ones_like(total))]


@pytest.mark.parametrize("name", MODELS)
def test_the_spec_as_it_is_agrees_with_transformers(name: str) -> None:
    assert error(parse(TEXT), name) < TOLERANCE[name]


def test_values_that_a_norm_follows_are_right() -> None:
    assert max(hidden_errors(parse(TEXT))) < 1e-6


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.row}: {m.what}")
def test_a_wrong_port_is_noticed(mutation: Mutation) -> None:
    tree = parse(mutation.apply())
    if mutation.by == "value":
        assert max(hidden_errors(tree)) > WRONG
        return
    if mutation.by == "file":
        with pytest.raises(SpecError):
            error(tree, mutation.model)
    else:
        assert error(tree, mutation.model) > WRONG


def test_every_reference_point_has_mutations() -> None:
    assert {mutation.row for mutation in MUTATIONS} == set(range(1, 11))
