"""GGUF files of a tiny Llama, in any block format: what the tests of formats and of the engine load."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants
from programs import random_blocks

from briolette.backends import formats

HEADS, KV, SIZE, VOCABULARY = 4, 2, 64, 48
D, FFN = HEADS * SIZE, 512


def stored(format: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of weights whose products keep the size of their input: quantised by gguf where it can do that,
    else random bits."""
    kind = GGMLQuantizationType[format.upper()]
    values = (rng.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)
    if format == "f32":
        return values
    try:
        return quants.quantize(values, kind)
    except NotImplementedError:
        seed = int(rng.integers(1 << 30))
        for_size = random_blocks(format, rows, columns, np.random.default_rng(seed))
        size = float(np.sqrt(np.mean(formats.decode(format, for_size) ** 2) * columns))
        return random_blocks(format, rows, columns, np.random.default_rng(seed), 1 / size)


def write(
    path: Path, format: str = "f32", layers: int = 2, tied: bool = False, norms: str = "f32", broken: str = ""
) -> Path:
    """A model with all its matrices in one format; the tensor `broken` has a NaN where it is f32."""
    rng = np.random.default_rng(7)
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(layers)
    out.add_context_length(512)
    out.add_embedding_length(D)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV)
    out.add_key_length(SIZE)
    out.add_value_length(SIZE)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(SIZE)
    out.add_rope_freq_base(10000.0)

    def add(name: str, rows: int, columns: int) -> None:
        data = stored(format, rows, columns, rng)
        if name == broken:
            data[1, 2] = np.nan
        raw = None if data.dtype in (np.float32, np.float16) else GGMLQuantizationType[format.upper()]
        out.add_tensor(f"{name}.weight", data, raw_dtype=raw)

    def norm(name: str) -> None:
        values = rng.uniform(0.5, 1.5, D).astype(np.float32)
        out.add_tensor(f"{name}.weight", values.astype(np.float16) if norms == "f16" else values)

    add("token_embd", VOCABULARY, D)
    for i in range(layers):
        norm(f"blk.{i}.attn_norm")
        add(f"blk.{i}.attn_q", D, D)
        add(f"blk.{i}.attn_k", KV * SIZE, D)
        add(f"blk.{i}.attn_v", KV * SIZE, D)
        add(f"blk.{i}.attn_output", D, D)
        norm(f"blk.{i}.ffn_norm")
        add(f"blk.{i}.ffn_gate", FFN, D)
        add(f"blk.{i}.ffn_up", FFN, D)
        add(f"blk.{i}.ffn_down", D, FFN)
    norm("output_norm")
    if not tied:
        add("output", VOCABULARY, D)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
