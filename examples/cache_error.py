"""What codecs do to a real cache: the relative squared error of K and V, with and without rotation.

`python examples/cache_error.py [MODEL.gguf]`, by default Gemma 3 270M from its package. Errors are compared with what
theory says of random directions: rotation should make any cache look like them. The prompt is the licence's beginning.
"""

import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import briolette
from briolette.compiler import codecs
from briolette.compiler.codecs.lloyd_max import distortion
from briolette.compiler.labels import per_token

from models import gemma3

TEXT, TOKENS = Path(__file__).resolve().parents[1] / "LICENSE", 256
NAMES = ("tq2", "tq3", "tq4", "tq5", "tq6", "tq8", "q4_0", "q8_0")
F32 = NDArray[np.float32]


def caches(model: briolette.Model, part: str) -> list[F32]:
    """The values [tokens, heads, size] that each layer stores, for `k` or `v`."""
    wanted = [name for name in per_token(model.module) if re.fullmatch(rf"blk\.\d+\.cache\.{part}", name)]
    found = model.values(model.tokenize(TEXT.read_text())[:TOKENS], wanted)
    return [np.asarray(found[name], dtype=np.float32) for name in wanted]


def error(codec: codecs.Codec, x: F32) -> float:
    """The mean over all heads of the squared error over the squared length."""
    decoded = codecs.decode(codec, *codecs.encode(codec, x))
    return float(np.mean(np.sum((x - decoded) ** 2, axis=-1) / np.sum(x**2, axis=-1)))


def expected(codec: codecs.Codec, size: int) -> float:
    """The error of random directions, once their length is kept. (Formats of GGUF: measured on normal values.)"""
    if codec.fit == "absmax":
        return error(codec, np.random.default_rng(0).standard_normal((4096, size), dtype=np.float32))
    return 2 - 2 * (1 - distortion(codec.bits, codec.width(size))) ** 0.5


def main(path: str) -> None:
    model = briolette.load(path)
    kept = {part: caches(model, part) for part in "kv"}
    print("squared errors, as multiples of theory's: mean of all layers (the worst layer)")
    print(f"{'codec':<7}{'theory':>9}" + "".join(f"{p.upper() + ' rotated':>18}{'not rotated':>18}" for p in kept))
    for name in NAMES:
        codec = codecs.codec_named(name)
        line = f"{name:<7}{expected(codec, kept['k'][0].shape[-1]):>9.2g}"
        for layers in kept.values():
            for turn in (codecs.hadamard, np.asarray):
                found = [error(codec, turn(x)) / expected(codec, x.shape[-1]) for x in layers]
                line += f"{np.mean(found):>9.2f} {f'({max(found):.2f})':>8}"
        print(line)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else gemma3())
