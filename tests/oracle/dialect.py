"""How llama.cpp's converters spell each architecture in GGUF: tables, and the writer that reads them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from catalog import Model, S, config_of

Config = dict[str, Any]
Tensors = dict[str, np.ndarray]
Value = str | Callable[[Config], Any]  # the name of a hyper-parameter, or a rule; None leaves the key out


# --- keys -------------------------------------------------------------------------------------------------


def _sliding(h: Config) -> list[bool]:
    return [kind == S for kind in h["layer_types"]]


def _gemma4_ffn(h: Config) -> int | list[int]:
    n, shared, ffn = h["num_hidden_layers"], h["num_kv_shared_layers"], h["intermediate_size"]
    return [ffn if i < n - shared else 2 * ffn for i in range(n)] if h["use_double_wide_mlp"] else ffn


def _gemma4_kv_heads(h: Config) -> int | list[int]:
    if "kv_heads" in h:
        return h["kv_heads"]
    full, swa = h.get("num_global_key_value_heads"), h["num_key_value_heads"]
    return swa if full is None else [swa if sliding else full for sliding in _sliding(h)]


COMMON: dict[str, Value] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
}

KEYS: dict[str, dict[str, Value]] = {
    "gemma4": COMMON
    | {
        "feed_forward_length": _gemma4_ffn,
        "attention.head_count_kv": _gemma4_kv_heads,
        "attention.key_length": "global_head_dim",
        "attention.value_length": "global_head_dim",
        "attention.key_length_swa": "head_dim",
        "attention.value_length_swa": "head_dim",
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": _sliding,
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        "rope.freq_base": "theta",
        "rope.freq_base_swa": "theta_swa",
        "rope.dimension_count": "global_head_dim",
        "rope.dimension_count_swa": "head_dim",
        "final_logit_softcapping": "final_logit_softcapping",
        "expert_count": "num_experts",
        "expert_used_count": "top_k_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    "gemma3": COMMON
    | {
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "theta",
        "rope.freq_base_swa": "theta_swa",
        "rope.scaling.type": lambda h: "linear" if "linear_factor" in h else None,
        "rope.scaling.factor": "linear_factor",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma2": COMMON
    | {
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "llama": COMMON | {"vocab_size": "vocab_size", "rope.dimension_count": "head_dim", "rope.freq_base": "theta"},
    "qwen3": COMMON | {"rope.freq_base": "theta"},
}


# --- tensors ----------------------------------------------------------------------------------------------

TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}

LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
LLAMA_LAYER = LAYER | {"post_attention_layernorm.weight": "ffn_norm.weight"}
GEMMA_LAYER = LAYER | {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
GEMMA4_LAYER = GEMMA_LAYER | {
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
LAYERS = {
    "gemma4": GEMMA4_LAYER,
    "gemma3": GEMMA_LAYER,
    "gemma2": GEMMA_LAYER,
    "llama": LLAMA_LAYER,
    "qwen3": LLAMA_LAYER,
}
NORM_PLUS_ONE = {"gemma2", "gemma3"}  # transformers computes x * (1 + w); the file holds 1 + w
INTERLEAVED_ROPE = {"llama"}  # the file's q and k rows are ordered for pairs (2i, 2i + 1)


def gguf_name(arch: str, name: str) -> str:
    if not name.startswith("model.layers."):
        return TOP[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{LAYERS[arch][rest]}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Moves row i + d/2 of each head next to row i, as the converter's permute does."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rope_freqs(arch: str, h: Config) -> np.ndarray | None:
    """The divisors of the rotation frequencies, where the converter writes them."""
    if arch == "gemma4":  # proportional rope: a quarter of the global layers' pairs rotate
        rotating = int(h["global_head_dim"] * 0.25 / 2)
        return np.array([1.0] * rotating + [1e30] * (h["global_head_dim"] // 2 - rotating), np.float32)
    if arch == "llama" and "llama3" in h:
        p, d = h["llama3"], h["head_dim"]
        low, high = p["low_freq_factor"], p["high_freq_factor"]
        divisors = []
        for i in range(0, d, 2):
            turns = p["original_max_position_embeddings"] / (2 * math.pi * h["theta"] ** (i / d))
            smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
            divisors.append(1 / ((1 - smooth) / p["factor"] + smooth))
        return np.array(divisors, np.float32)
    return None


def tensors_of(model: Model, state: Tensors) -> Tensors:
    """The file's tensors from the names and layouts of transformers."""
    h, export = config_of(model), model.export
    out: Tensors = {}
    for name, array in state.items():
        if name == "lm_head.weight" and h["tie_word_embeddings"]:
            continue
        new = gguf_name(model.arch, name)
        if model.arch in NORM_PLUS_ONE and new.endswith("norm.weight"):
            array = array + np.float32(1)
        if model.arch in INTERLEAVED_ROPE and new.endswith(("attn_q.weight", "attn_k.weight")):
            heads = "num_attention_heads" if new.endswith("attn_q.weight") else "num_key_value_heads"
            array = interleave(array, h[heads])
        out[new] = array
    if (freqs := rope_freqs(model.arch, h)) is not None:
        out["rope_freqs.weight"] = freqs

    if export.dead_kv:
        rng = np.random.default_rng(model.seed + 1)
        for i in range(h["num_hidden_layers"] - h["num_kv_shared_layers"], h["num_hidden_layers"]):
            d = h["head_dim"] if h["layer_types"][i] == S else h["global_head_dim"]
            shape = (h["num_key_value_heads"] * d, h["hidden_size"])
            out[f"blk.{i}.attn_k.weight"] = rng.standard_normal(shape, np.float32)
            out[f"blk.{i}.attn_v.weight"] = rng.standard_normal(shape, np.float32)
            out[f"blk.{i}.attn_k_norm.weight"] = rng.uniform(0.5, 1.5, d).astype(np.float32)
    for i in range(h["num_hidden_layers"]):
        qkv = [f"blk.{i}.attn_{x}.weight" for x in "qkv"]
        if export.fuse_qkv and all(name in out for name in qkv):
            out[f"blk.{i}.attn_qkv.weight"] = np.concatenate([out.pop(name) for name in qkv])
        if export.split_gate_up:
            gate, up = np.split(out.pop(f"blk.{i}.ffn_gate_up_exps.weight"), 2, axis=1)
            out |= {f"blk.{i}.ffn_gate_exps.weight": gate, f"blk.{i}.ffn_up_exps.weight": up}
    return {name: a for name, a in out.items() if not name.endswith(export.drop_tensors or ("\0",))}


def keys_of(model: Model) -> dict[str, Any]:
    """The file's architecture keys, prefix included."""
    h, export = config_of(model), model.export
    if model.kv_heads:
        h["kv_heads"] = list(model.kv_heads)
    keys = {key: h.get(value) if isinstance(value, str) else value(h) for key, value in KEYS[model.arch].items()}
    keys = {key: value for key, value in keys.items() if value is not None and key not in export.drop_keys}
    keys = {export.rename_keys.get(key, key): value for key, value in keys.items()} | export.extra_keys
    return {f"{model.arch}.{key}": value for key, value in keys.items()}


# --- the file ---------------------------------------------------------------------------------------------


def tokenizer(size: int) -> dict[str, Any]:
    """A SentencePiece-style vocabulary of `size` tokens: specials, a few bytes, then letters and pairs."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    byte = [f"<0x{b:02X}>" for b in (0x0A, 0x09, 0x20, 0x21, 0xC3, 0xA9, 0xE2, 0x96)]
    text = ["▁", *letters, *("▁" + c for c in letters), *(a + b for a in "aeiou" for b in "nrst")]
    tokens = (special + byte + text)[:size]
    assert len(tokens) == size
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.BYTE] * len(byte)
    types += [gguf.TokenType.NORMAL] * (size - len(types))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(size)],
        "tokenizer.ggml.token_type": [int(t) for t in types],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def write_gguf(path: Path, name: str, model: Model, state: Tensors) -> None:
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in (keys_of(model) | tokenizer(config_of(model)["vocab_size"])).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for tensor, array in tensors_of(model, state).items():
        writer.add_tensor(tensor, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
