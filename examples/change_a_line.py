"""Changes one line of an architecture and shows what it does to the next token.

`python examples/change_a_line.py [MODEL.gguf]`, by default Gemma 3 270M from its package.
"""

import sys

import numpy as np

import briolette
from briolette.spec import syntax

from models import gemma3

BEFORE, AFTER = "rms(attn_q_norm)", "rms()"  # what if the query norm had no weight?
PROMPT = "The capital of France is Paris. The capital of Italy is"


def likeliest(model: briolette.Model, text: str) -> list[str]:
    """The five likeliest next tokens, with their logits."""
    logits = model.prefill(model.tokenize(text))
    return [f"{model.detokenize([int(i)])!r} {logits[i]:.2f}" for i in np.argsort(-logits)[:5]]


def main(path: str) -> None:
    text = syntax.shipped()["gemma3"].read_text()
    print(f"as shipped:            {'  '.join(likeliest(briolette.load(path), PROMPT))}")
    # The weight would now go unread, which is an error; the changed file must say that it means it.
    changed = text.replace(BEFORE, AFTER)
    changed = changed.replace("h = x |> rms(attn_norm)", "h = x |> rms(attn_norm)\n  ignore attn_q_norm")
    model = briolette.load(path, spec=syntax.parse(changed, "changed.arch"))
    print(f"{BEFORE} -> {AFTER}: {'  '.join(likeliest(model, PROMPT))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else gemma3())
