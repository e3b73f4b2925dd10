"""What a compressed cache costs where tokens come one by one, as in generating: attention reads its codes in integers.

`python examples/decode_kld.py MODEL.gguf TEXT KV... [--ctx 512] [--windows 4] [--weights packed]`

The second half of each of the text's first windows is decoded, all windows side by side, with an f32 cache and with
each of the policies, on the same weights. (`briolette eval kld` reads many tokens at once; there attention is in f32.)
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import briolette
from briolette.engine.divergence import joined, positions
from briolette.engine.evaluation.windows import windows

PART = 4096  # token ids looked at together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("kv", nargs="+")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--weights", default="packed", help="packed, or mapped: then attention is in f32 too")
    how = parser.parse_args()

    def load(kv: str) -> briolette.Model:
        return briolette.load(
            how.model, kv=kv, context=how.ctx, sequences=how.windows, weights=how.weights, prefill="exact"
        )

    models = [load("f32"), *map(load, how.kv)]
    cut = windows(how.text.read_text(encoding="utf-8"), models[0].tokenizer, how.ctx, how.windows)
    slots: Sequence[int] = range(len(cut))
    for model in models:
        for slot in slots:
            model.engine.step(cut.ids[slot, : cut.first].tolist(), 0, sequence=slot)
    found = []
    for at in range(cut.first, how.ctx - 1):
        ids = cut.ids[:, at].tolist()
        logits = [model.engine.batch(ids, [at] * len(cut), slots) for model in models]
        parts = ([each[:, i : i + PART] for each in logits] for i in range(0, logits[0].shape[1], PART))
        found.append(positions(parts, cut.ids[:, at + 1]))
    own, *others = (joined(parts) for parts in zip(*found, strict=True))
    print(f"{'KV':<44} {'mean KLD':>9} {'±':>9} {'median':>9} {'99.9 %':>9} {'same top':>8}")
    for kv, other in zip(how.kv, others, strict=True):
        kl, same = other.kl, np.mean(own.top == other.top)
        figures = (kl.mean(), kl.std() / len(kl) ** 0.5, np.median(kl), np.quantile(kl, 0.999))
        print(f"{kv:<44} " + " ".join(f"{figure:>9.5f}" for figure in figures) + f" {same:>8.1%}")


if __name__ == "__main__":
    main()
