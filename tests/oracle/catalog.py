"""The oracle models, as data: what each one is, and how its file deviates from the converter's habits."""

from dataclasses import dataclass, field
from typing import Any

S, F = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Export:
    """Choices a GGUF file may make without changing what the model computes."""

    fuse_qkv: bool = False  # attn_qkv (rows q, k, v) wherever a layer has all three
    split_gate_up: bool = False  # ffn_gate_exps + ffn_up_exps instead of ffn_gate_up_exps
    dead_kv: bool = False  # K/V tensors in KV-shared layers, which nothing reads
    drop_keys: tuple[str, ...] = ()  # keys left out, without the architecture's prefix
    rename_keys: dict[str, str] = field(default_factory=dict)
    extra_keys: dict[str, Any] = field(default_factory=dict)
    drop_tensors: tuple[str, ...] = ()  # endings of tensor names left out


@dataclass(frozen=True)
class Model:
    arch: str
    seed: int
    config: dict[str, Any]  # what transformers' config class gets, over DEFAULTS[arch]
    covers: str
    export: Export = Export()
    kv_heads: tuple[int, ...] = ()  # per-layer K/V heads, where they differ within one layer type
    ones: tuple[str, ...] = ()  # endings of parameter names that are 1 rather than random
    llama_cpp_overrides: dict[str, float] = field(default_factory=dict)  # keys llama.cpp would get wrong
    llama_cpp_runs: bool = True


DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4": {
        "vocab_size": 80,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "use_double_wide_mlp": False,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "theta": 1_000_000.0,
        "theta_swa": 10_000.0,
    },
    "gemma3": {
        "vocab_size": 80,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "theta": 1_000_000.0,
        "theta_swa": 10_000.0,
    },
    "gemma2": {
        "vocab_size": 80,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "theta": 10_000.0,
    },
    "llama": {
        "vocab_size": 80,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "theta": 10_000.0,
    },
    "qwen3": {
        "vocab_size": 80,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "theta": 1_000_000.0,
    },
}

MOE = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "head_dim": 8,
    "global_head_dim": 16,
    "layer_types": [S, S, F, S, F],
    "sliding_window": 6,
    "attention_k_eq_v": True,
    "enable_moe_block": True,
    "num_experts": 6,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}

MODELS: dict[str, Model] = {
    "gemma4_e2b": Model(
        "gemma4",
        101,
        {
            "hidden_size": 40,
            "intermediate_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 24,
            "layer_types": [S, F, S, F, S, S, F],
            "sliding_window": 7,
            "num_kv_shared_layers": 3,
            "hidden_size_per_layer_input": 8,
            "use_double_wide_mlp": True,
        },
        "PLE; 3 KV-shared layers whose K/V tensors are in the file, unread; double-wide FFN in those; "
        "irregular pattern",
        export=Export(dead_kv=True),
    ),
    "gemma4_donors": Model(
        "gemma4",
        102,
        {
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": [F, S, S, S, F, S, F],
            "sliding_window": 5,
            "num_kv_shared_layers": 3,
            "hidden_size_per_layer_input": 12,
            "use_double_wide_mlp": True,
        },
        "KV sharing where the last two owners are (sliding, sliding): the global donor is layer 0, the "
        "sliding one layer 3; no K/V tensors in shared layers; PLE",
        llama_cpp_runs=False,  # it takes layers n - 2 and n - 1 as donors, whatever their types
    ),
    "gemma4_moe": Model(
        "gemma4",
        103,
        MOE,
        "MoE (6 experts, top 2) beside the dense FFN, fused ffn_gate_up_exps; K = V on global layers "
        "(no attn_v); kv heads 2 / 1",
    ),
    "gemma4_moe_split": Model(
        "gemma4",
        103,
        MOE,
        "the same model as gemma4_moe, with ffn_gate_exps + ffn_up_exps",
        export=Export(split_gate_up=True),
    ),
    "gemma4_dense": Model(
        "gemma4",
        105,
        {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "num_global_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": [S, S, F, S, S, F],
            "sliding_window": 8,
            "attention_k_eq_v": True,
        },
        "dense, K = V on global layers; kv heads 4, 2, 2, 1, 4, 1: they differ within a layer type",
        kv_heads=(4, 2, 2, 1, 4, 1),
    ),
    "gemma4_qkv": Model(
        "gemma4",
        106,
        {
            "hidden_size": 40,
            "intermediate_size": 48,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_global_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": [S, F, S, F, S, F],
            "sliding_window": 6,
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 2,
        },
        "attn_qkv on layers that have q, k and v; q + k on global layers (K = V); q alone on KV-shared "
        "ones; KV sharing without PLE and without double-wide FFN",
        export=Export(fuse_qkv=True),
    ),
    "gemma4_plain": Model(
        "gemma4",
        107,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 16,
            "layer_types": [S, S, F, S, F],
            "sliding_window": 6,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "theta_swa": 2_000.0,
        },
        "rope.local.freq_base (2000) and no rope.freq_base_swa; no final softcap key (none is applied); no "
        "layer_output_scale; untied; head_count_kv and feed_forward_length scalar; no shared_kv_layers key",
        export=Export(
            rename_keys={"rope.freq_base_swa": "rope.local.freq_base"},
            drop_keys=("attention.shared_kv_layers",),
            drop_tensors=("layer_output_scale.weight",),
        ),
        ones=("layer_scalar",),
        # llama.cpp reads neither rope.local.freq_base nor a missing softcap key (it takes 30)
        llama_cpp_overrides={"gemma4.rope.freq_base_swa": 2_000.0, "gemma4.final_logit_softcapping": 0.0},
    ),
    "gemma3_scaled": Model(
        "gemma3",
        108,
        {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "layer_types": [S, S, S, S, S, F, S, S],
            "sliding_window": 6,
            "linear_factor": 8.0,
        },
        "no sliding_window_pattern key (period 6: layer 5 is global); no local theta key (10000); linear "
        "rope scaling, factor 8, on global layers only",
        export=Export(drop_keys=("rope.freq_base_swa",)),
    ),
    "gemma3_array": Model(
        "gemma3",
        109,
        {
            "hidden_size": 48,
            "intermediate_size": 40,
            "num_hidden_layers": 5,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "layer_types": [S, F, F, S, F],
            "sliding_window": 7,
            "tie_word_embeddings": False,
            "theta": 500_000.0,
            "theta_swa": 3_000.0,
            "final_logit_softcapping": 5.0,
        },
        "sliding_window_pattern as a bool array; rope.freq_base_swa 3000; untied; head_dim 24, not D / H; "
        "final softcap 5",
        export=Export(extra_keys={"attention.sliding_window_pattern": [True, False, False, True, False]}),
    ),
    "gemma3_period": Model(
        "gemma3",
        110,
        {
            "hidden_size": 40,
            "intermediate_size": 40,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "layer_types": [S, S, F, S, S, F],
            "sliding_window": 5,
        },
        "sliding_window_pattern as a number (period 3); no grouped heads",
        export=Export(extra_keys={"attention.sliding_window_pattern": 3}),
    ),
    "gemma2_caps": Model(
        "gemma2",
        111,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 6,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
        "attention softcap 4, final softcap 6, alternating windows (layer 0 slides); no rope.freq_base key "
        "and no pattern key, as the converter leaves them out",
    ),
    "gemma2_odd": Model(
        "gemma2",
        112,
        {
            "hidden_size": 36,
            "intermediate_size": 40,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 5,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        "the real caps 50 / 30; hidden size 36 (not a multiple of 8), 6 / 3 heads of 8, odd layer count",
    ),
    "llama_plain": Model(
        "llama",
        113,
        {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": False,
        },
        "grouped heads, untied head, q/k rows permuted for interleaved rope",
    ),
    "llama_scaled": Model(
        "llama",
        114,
        {
            "hidden_size": 40,
            "intermediate_size": 56,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "theta": 10_000.0,
            "llama3": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        "llama3 rope scaling as a rope_freqs tensor; tied; one K/V head",
    ),
    "llama_qkv": Model(
        "llama",
        115,
        {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": False,
        },
        "attn_qkv (rows q, k, v, the first two permuted); no key_length, value_length: D / H",
        export=Export(fuse_qkv=True, drop_keys=("attention.key_length", "attention.value_length")),
    ),
    "qwen3_tied": Model(
        "qwen3",
        116,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": True,
        },
        "q/k norm before rope; tied",
    ),
    "qwen3_untied": Model(
        "qwen3",
        117,
        {
            "hidden_size": 40,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 24,
            "tie_word_embeddings": False,
            "theta": 10_000.0,
        },
        "untied; head_dim 24, not D / H",
    ),
}


def config_of(model: Model) -> dict[str, Any]:
    """The complete hyper-parameters of a model."""
    config = DEFAULTS[model.arch] | model.config
    if "layer_types" in config:
        config.setdefault("num_hidden_layers", len(config["layer_types"]))
    return config
