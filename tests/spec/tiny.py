"""A small architecture, and headers that fit it: what the error tables change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from briolette.compiler.header import Header, TensorInfo
from briolette.engine.gguf import open_gguf

SPEC = """arch tiny

param L     = "block_count"
param D     = "embedding_length"
param H     = "head_count"
param KV[i] = "head_count_kv" or H
param hd    = "key_length" or D // H
param rot   = "rotary" or hd
param W     = "window"
param local[i] = "pattern" or false
param eps   = "eps"
ignore "context_length"
dim T, V

kind near when local[i] { window = W }
kind far otherwise { window = none }

block attention(x: [T, D], i) -> [T, D] {
  h = x |> rms(attn_norm)
  q = h |> linear(attn_q) : [T, H, hd] |> rope(10000, dims=rot)
  k = h |> linear(attn_k) : [T, KV[i], hd] |> rope(10000, dims=rot)
  v = h |> linear(attn_v) : [T, KV[i], hd]
  cache[i] <- k, v
  return attend(q, cache[i], scale=hd ** -0.5, window=window) |> linear(attn_output) : [T, D]
}

block layer(x: [T, D], i) -> [T, D] at "blk.{i}" {
  return x + attention(x, i)
}

model(tokens: [T]) -> [T, V] {
  x = embed(token_embd, tokens) : [T, D]
  for i in L { x = layer(x, i) }
  return x |> rms(output_norm) |> linear(token_embd) : [T, V]
}
"""
KEYS: dict[str, object] = {
    "block_count": 2,
    "embedding_length": 8,
    "head_count": 4,
    "head_count_kv": [2, 1],
    "window": 3,
    "pattern": [True, False],
    "eps": 1e-6,
    "context_length": 64,
}


def header(
    keys: Mapping[str, object] | None = None,
    tensors: Mapping[str, tuple[int, ...] | None] | None = None,
    architecture: str = "tiny",
) -> Header:
    """The header of a model that fits SPEC, but for some keys and tensors; None takes one out."""
    metadata = {f"tiny.{key}": value for key, value in {**KEYS, **(keys or {})}.items() if value is not None}
    shapes: dict[str, tuple[int, ...] | None] = {"token_embd.weight": (16, 8), "output_norm.weight": (8,)}
    for layer, groups in enumerate([2, 1]):
        sizes = {
            "attn_q": (8, 8),
            "attn_k": (2 * groups, 8),
            "attn_v": (2 * groups, 8),
            "attn_output": (8, 8),
        }
        shapes |= {f"blk.{layer}.{name}.weight": size for name, size in sizes.items()}
        shapes[f"blk.{layer}.attn_norm.weight"] = (8,)
    shapes |= tensors or {}
    infos = {name: TensorInfo(name, shape, "f32") for name, shape in shapes.items() if shape is not None}
    return Header({"general.architecture": architecture, **metadata}, infos, "tiny.gguf")


ORACLE = Path(__file__).parents[1] / "oracle" / "models"


def oracle_header(name: str, **keys: object) -> Header:
    """The header of an oracle model, with keys changed; `__` stands for a dot, None takes a key out."""
    found = open_gguf(ORACLE / f"{name}.gguf").header
    changes = {f"{found.architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    metadata = {key: value for key, value in {**found.metadata, **changes}.items() if value is not None}
    return Header(metadata, found.tensors, f"{name}.gguf")
