"""llama.cpp's side of the greedy comparison: the same request and answer as transformers_greedy.py."""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    request = json.load(sys.stdin)
    model = llama_cpp.Llama(request["model"], n_ctx=1024, logits_all=True, verbose=False)
    print(json.dumps([greedy(model, prompt, request["count"]) for prompt in request["prompts"]]))


def greedy(model: llama_cpp.Llama, prompt: list[int], count: int) -> dict[str, list[float]]:
    tokens, gaps = [], []
    model.reset()
    model.eval(prompt)
    for _ in range(count):
        logits = np.array(model.scores[model.n_tokens - 1])
        second, first = np.argsort(logits)[-2:]
        tokens.append(int(first))
        gaps.append(float(logits[first] - logits[second]))
        model.eval([int(first)])
    return {"tokens": tokens, "gaps": gaps}


if __name__ == "__main__":
    main()
