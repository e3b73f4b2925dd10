"""transformers' side of the greedy comparison: run with the peers' Python.

Reads `{"model": path, "prompts": [[ids], ...], "count": n}` from standard input, loads the GGUF dequantised
to fp32 and prints, for each prompt, the n greedy tokens and the gaps between the two best logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    request = json.load(sys.stdin)
    path = Path(request["model"])
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        answers = [greedy(model, prompt, request["count"]) for prompt in request["prompts"]]
    print(json.dumps(answers))


def greedy(model: object, prompt: list[int], count: int) -> dict[str, list[float]]:
    tokens, gaps, cache = [], [], None
    following = torch.tensor([prompt])
    for _ in range(count):
        result = model(following, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        values, ids = result.logits[0, -1].topk(2)
        tokens.append(int(ids[0]))
        gaps.append(float(values[0] - values[1]))
        following = ids[:1].reshape(1, 1)
    return {"tokens": tokens, "gaps": gaps}


if __name__ == "__main__":
    main()
