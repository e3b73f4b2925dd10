"""Builds the oracle models with transformers: NAME.gguf, and NAME.npz with the fp32 answers.

    python tests/oracle/make_models.py OUTDIR [NAME ...]

Needs torch, transformers and gguf. The same seeds give the same files.
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from catalog import MODELS, F, Model, S, config_of
from dialect import write_gguf

TOKENS = 26  # longer than every window
CLASSES = {
    "gemma4": (transformers.Gemma4TextConfig, transformers.Gemma4ForCausalLM),
    "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def rope_parameters(arch: str, h: dict[str, Any]) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": h.get("theta_swa")}
    match arch:
        case "gemma4":
            full = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": h["theta"]}
            return {S: local, F: full}
        case "gemma3":
            scaling = {"rope_type": "linear", "factor": h["linear_factor"]} if "linear_factor" in h else {}
            return {S: local, F: {"rope_type": "default"} | scaling | {"rope_theta": h["theta"]}}
        case _:
            scaling = {"rope_type": "llama3"} | h["llama3"] if "llama3" in h else {"rope_type": "default"}
            return scaling | {"rope_theta": h["theta"]}


OURS = {"theta", "theta_swa", "linear_factor", "llama3"}  # hyper-parameters transformers spells otherwise


def build(model: Model) -> Any:
    h = config_of(model)
    given = {key: value for key, value in h.items() if key not in OURS}
    given |= {"rope_parameters": rope_parameters(model.arch, h), "attn_implementation": "eager"}
    if model.arch == "gemma4":
        given["vocab_size_per_layer_input"] = h["vocab_size"]
    if model.arch == "gemma3":
        given["query_pre_attn_scalar"] = h["head_dim"]
    config_class, model_class = CLASSES[model.arch]
    hf = model_class(config_class(**given)).float().eval()
    for layer, heads in zip(hf.model.layers, model.kv_heads, strict=False):
        attention = layer.self_attn  # transformers wants one count for a layer type; the code does not care
        attention.num_key_value_groups = h["num_attention_heads"] // heads
        for name in ("k_proj", "v_proj"):
            if getattr(attention, name) is not None:
                shape = h["hidden_size"], heads * attention.head_dim
                setattr(attention, name, torch.nn.Linear(*shape, bias=False))
    randomise(hf, model)
    return hf


# (ending of the name, low, high) for what is drawn uniformly: first match wins.
UNIFORM = [
    ("layers.0.layer_scalar", 0.0178, 0.0178),
    ("layer_scalar", 0.1, 1.3),
    ("q_norm.weight", None, None),  # see QK_NORM
    ("k_norm.weight", None, None),
    ("model.norm.weight", 0.8, 2.4),
    ("norm.weight", 0.4, 1.6),
    ("norm_1.weight", 0.4, 1.6),
    ("norm_2.weight", 0.4, 1.6),
    ("router.scale", 0.4, 1.6),
    ("per_expert_scale", 0.4, 1.6),
]
# Attention scores get a standard deviation of two or three, whatever the architecture's scale is.
QK_NORM = {"gemma4": (0.3, 1.0), "gemma3": (0.8, 2.2), "qwen3": (0.8, 2.2)}
# (ending of the name, gain): normal with standard deviation gain / sqrt(columns).
GAIN = [
    ("embed_tokens_per_layer.weight", None),  # rows hold every layer's slice: see randomise
    ("q_proj.weight", 1.5),
    ("k_proj.weight", 1.5),
    ("router.proj.weight", 9.0),
    ("lm_head.weight", 1.5),
    ("", 1.1),
]


def randomise(hf: Any, model: Model) -> None:
    """Draws every parameter, so that none is a neutral 1 or 0 and no activation dies or explodes."""
    h, rng = config_of(model), np.random.default_rng(model.seed)
    state = hf.state_dict()
    for name, tensor in state.items():
        if name == "lm_head.weight" and h["tie_word_embeddings"]:
            continue
        shape = tuple(tensor.shape)
        bounds = next(((low, high) for end, low, high in UNIFORM if name.endswith(end)), None)
        if bounds is not None:
            low, high = QK_NORM[model.arch] if bounds[0] is None else bounds
            value = rng.uniform(low, high, shape)
            if model.arch in ("gemma2", "gemma3"):
                value -= 1  # transformers adds one
            if name.endswith(model.ones or ("\0",)):
                value = np.ones(shape)
        else:
            gain = next(gain for end, gain in GAIN if name.endswith(end))
            columns = shape[-1]
            if gain is None:
                gain, columns = 1.0, h["hidden_size_per_layer_input"]
            if name == "model.embed_tokens.weight" and not model.arch.startswith("gemma"):
                gain = 2.2  # no sqrt(D) on the way in
            value = gain / math.sqrt(columns) * rng.standard_normal(shape)
        tensor.copy_(torch.from_numpy(value.astype(np.float32)))


def answers(hf: Any, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, and h0 (embedding), h1 … hL (after each layer; hL after the final norm too; last before it)."""
    seen: list[torch.Tensor] = []
    hooks = [hf.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))]
    hooks += [layer.register_forward_hook(lambda _m, _a, out: seen.append(out.clone())) for layer in hf.model.layers]
    hooks += [hf.model.norm.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))]
    margins: list[float] = []
    for name, module in hf.named_modules():
        if name.endswith("router"):

            def margin(m: Any, _: Any, out: Any) -> None:
                ordered = out[0].sort(-1, descending=True).values
                k = m.config.top_k_experts
                margins.append(float((ordered[:, k - 1] - ordered[:, k]).min()))

            hooks.append(module.register_forward_hook(margin))
    # output_hidden_states also keeps Gemma4TextModel from a shortcut that fails on KV sharing without PLE.
    with torch.no_grad():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        logits = hf(ids, use_cache=False, output_hidden_states=True).logits[0]
    for hook in hooks:
        hook.remove()
    assert min(margins, default=1.0) > 5e-4, f"an expert's choice is too close to call: {min(margins)}"
    *hidden, last, final = [x[0].numpy() for x in seen]
    out = {"tokens": tokens, "logits": logits.numpy()}
    out |= {f"h{i}": x for i, x in enumerate([*hidden, final])}
    return out | {"last": last}


def make(name: str, model: Model, outdir: Path) -> None:
    torch.manual_seed(model.seed)
    hf = build(model)
    rng = np.random.default_rng(model.seed + 2)
    tokens = np.concatenate([[2], rng.integers(4, config_of(model)["vocab_size"], TOKENS - 1)]).astype(np.int32)
    result = answers(hf, tokens)
    write_gguf(outdir / f"{name}.gguf", name, model, {k: v.numpy() for k, v in hf.state_dict().items()})
    np.savez_compressed(outdir / f"{name}.npz", **result)
    sizes = [os.path.getsize(outdir / f"{name}.{end}") / 1e3 for end in ("gguf", "npz")]
    spread = " ".join(f"{result[f'h{i}'].std():.2f}" for i in range(len(hf.model.layers) + 1))
    print(f"{name:18} {sizes[0]:5.0f} + {sizes[1]:3.0f} kB  logits {result['logits'].std():.2f}  h {spread}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("outdir", type=Path)
    parser.add_argument("names", nargs="*", help="only these models")
    args = parser.parse_args()
    args.outdir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name, model in MODELS.items():
        if not args.names or name in args.names:
            make(name, model, args.outdir)


if __name__ == "__main__":
    main()
