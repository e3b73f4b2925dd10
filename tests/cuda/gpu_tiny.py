"""Tiny models end to end on the GPU, for compute-sanitizer to watch: prompt, decoding, all logits, a batch of two
sequences, coded caches. Between them they call a kernel of every kind.

Memory is allocated piece by piece, without CuPy's pool: a kernel that leaves its piece is then seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from briolette.backends.base import Options, Weights
from briolette.backends.cuda import engine as cuda
from briolette.backends.cuda.device import Device, open_device
from briolette.engine.gguf import open_gguf
from briolette.engine.source import source_of

MODELS = Path(__file__).resolve().parents[1] / "oracle" / "models"
RUNS = (  # model, KV cache, how weights are kept
    ("gemma4_e2b", "f32", "mapped"),
    ("gemma4_moe", "f16", "packed"),
    ("gemma4_donors", "compact", "packed"),
    ("gemma2_caps", "bf16", "packed"),
)
PROMPT = list(range(3, 14))


def run(name: str, kv: str, weights: str, device: Device) -> np.ndarray:
    """The logits of every step that is made, one after the other."""
    file = open_gguf(MODELS / f"{name}.gguf")
    options = Options(48, kv, chunk=8, weights=weights, sequences=2)
    engine = cuda.compile(source_of(None, file.header), Weights(file.tensor_bytes), options, device)
    found = [engine.step(PROMPT, 0), *(engine.step([token], len(PROMPT) + i) for i, token in enumerate((5, 7, 9)))]
    found += [engine.step(PROMPT, 0, "all"), engine.batch([4, 6, 8], [0, 1, 0], [0, 0, 1])]
    engine.close()
    return np.concatenate(found)


def main(opened: Callable[[], Device] = open_device) -> int:
    device = opened()
    for one in RUNS:
        if not np.isfinite(run(*one, device)).all():
            print(f"{one}: logits that are no numbers", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    import cupy

    cupy.cuda.set_allocator(None)
    sys.exit(main())
