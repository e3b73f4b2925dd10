"""Continues a text: `python examples/run_text.py [MODEL.gguf]`, by default Gemma 3 270M from its package."""

import sys

import briolette

from models import gemma3


def main(path: str) -> None:
    model = briolette.load(path)
    prompt = "The capital of France is"
    print(prompt, end="")
    for piece in model.generate(prompt, max_tokens=24):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else gemma3())
