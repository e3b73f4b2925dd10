"""The error table of the TurboQuant paper, computed and measured, with this project's codecs beside it.

`python examples/turboquant_table.py [SIZE]`: heads of SIZE values, a power of two, by default 128. No model is needed.
The paper's figures are rounded (0.03 stands for 0.0345, 0.047 for 0.0543): the exact columns are what code is held to.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from briolette.compiler import codecs
from briolette.compiler.codecs import paper
from briolette.compiler.codecs.lloyd_max import distortion

F64 = NDArray[np.float64]
VECTORS = 4096
PRINTED = {1: ("0.36", "1.57"), 2: ("0.117", "0.56"), 3: ("0.03", "0.18"), 4: ("0.009", "0.047")}


def vectors(size: int, seed: int) -> F64:
    """Unit vectors with heavy tails."""
    x = np.random.default_rng(seed).standard_t(3, (VECTORS, size))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def error(x: F64, decoded: F64) -> float:
    """D_mse: the mean squared error of unit vectors."""
    return float(np.mean(np.sum((x - decoded) ** 2, axis=-1)))


def product_error(x: F64, decoded: F64) -> float:
    """size * D_prod: the mean squared error of inner products with random unit vectors, times the size."""
    y = np.random.default_rng(2).standard_normal(x.shape)
    y /= np.linalg.norm(y, axis=-1, keepdims=True)
    return x.shape[-1] * float(np.mean(np.sum(y * (decoded - x), axis=-1) ** 2))


def ours(name: str, x: F64) -> F64:
    """Rotated, encoded, decoded, and rotated back, as a cache and attention do it."""
    codec = codecs.codec_named(name)
    turned = codecs.hadamard(x.astype(np.float32))
    return codecs.hadamard(codecs.decode(codec, *codecs.encode(codec, turned)), inverse=True).astype(np.float64)


def kept(codec: paper.Mse | paper.Prod, x: F64) -> F64:
    """Encoded and decoded by a variant of the paper."""
    return codec.decode(codec.encode(x))


def split_error(codec: paper.Split, x: F64) -> float:
    """D_mse with the channels that have the most energy as outliers."""
    channels = codec.channels(x)
    return error(x, codec.decode(codec.encode(x, channels), channels))


def whole_bits(size: int) -> None:
    x = vectors(size, seed=1)
    heads = ("printed", "exact", "measured", "ours", "printed", "exact", "measured", "ours")
    print(f"heads of {size}   D_mse{'':38}{size} * D_prod")
    print("bits" + "".join(f"{head:>11}" for head in heads))
    for bits in (1, 2, 3, 4, 5, 6, 8):
        printed_mse, printed_prod = PRINTED.get(bits, ("", ""))
        exact = np.pi / 2 * (distortion(bits - 1, size) if bits > 1 else 1)
        own = bits in codecs.TQ_BITS
        figures = [
            printed_mse,
            f"{distortion(bits, size):.3g}",
            f"{error(x, kept(paper.Mse(size, bits), x)):.3g}",
            f"{error(x, ours(f'tq{bits}', x)):.3g}" if own else "",
            printed_prod,
            f"{exact:.3g}",
            f"{product_error(x, kept(paper.Prod(size, bits), x)):.3g}",
            f"{product_error(x, ours(f'tq{bits}_eden', x)):.3g}" if own else "",
        ]
        print(f"{bits:>4}" + "".join(f"{figure:>11}" for figure in figures))
    print("ours: D_mse of tq2 to tq8, and D_prod of their _eden forms, both with a float16 scale; no sketch\n")


def split_bits(size: int) -> None:
    """Uneven bits, where channels are alike and where the outliers are four times as large."""
    x = vectors(size, seed=3)
    print(f"{'bits':>6}  {'outlier channels':<36}{'alike: exact':>13}{'measured':>10}{'outliers x4':>13}")
    for outliers, high, low in ((size // 4, 3, 2), (size // 2, 3, 2), (size // 2, 4, 3)):
        codec = paper.Split(size, outliers, high, low)
        share = outliers / size
        exact = share * distortion(high, outliers) + (1 - share) * distortion(low, size - outliers)
        uneven = x.copy()
        uneven[:, :outliers] *= 4
        uneven /= np.linalg.norm(uneven, axis=-1, keepdims=True)
        alike, large = split_error(codec, x), split_error(codec, uneven)
        text = f"{outliers} at {high} bits, {size - outliers} at {low}"
        print(f"{codec.bits:>6}  {text:<36}{exact:>13.3g}{alike:>10.3g}{large:>13.3g}")
    print("the first is what the paper calls 2.5 bits")


def main(size: int) -> None:
    whole_bits(size)
    split_bits(size)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
