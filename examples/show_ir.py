"""Prints one layer of a model as the compiler sees it, and what the rewrites did to the whole.

`python examples/show_ir.py [MODEL.gguf]`, by default Gemma 3 270M from its package.
"""

import sys

import briolette
from briolette.compiler.pipeline import Form, Trace, front, optimise
from briolette.compiler.plan import plan
from briolette.compiler.text import print_module

from models import gemma3


def main(path: str) -> None:
    model = briolette.load(path)
    trace = Trace()
    module = front(model.tree, model.header, trace)
    text = print_module(trace.modules["elaborated"], tensors=False)
    print("\n\n".join(part for part in text.split("\n\n") if part.startswith("block attention")))
    steps = Trace()
    fused = optimise(module, Form(tokens=1), steps)
    for stage, hits in steps.hits.items():
        print(f"{stage}: " + (", ".join(f"{rule} {count}" for rule, count in hits.items()) or "nothing to do"))
    print(plan(fused, rows=1).report().splitlines()[0])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else gemma3())
