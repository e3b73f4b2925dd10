"""Every kind of kernel under the emulator's sanitizers: races, misaligned accesses, what C++ leaves undefined."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import EmulatedDevice
from programs import Program, T
from running import Running
from test_attention import attention
from test_row_kernels import CHAINS, kept

from briolette.backends.base import Choice
from briolette.backends.cuda.choosing import THREADS, sample_kernel, wish
from briolette.backends.cuda.source import module_source
from briolette.compiler.ops import node


@pytest.mark.parametrize("sanitize", ["race", "undefined"])
@pytest.mark.parametrize("weights", ["mapped", "packed"])
def test_products_rows_and_attention(sanitize, weights):
    p = Program(seed=11)
    x, ids = kept(p, "x", 24, 128), node("top", p.input("scores", 200, 5), k=2)
    normed = node("rms_norm", x, eps=1e-6)
    product = node("linear", normed, p.weight("w", 40, 128, format="q5_0"))
    experts = node("expert_linear", normed, p.weight("e", 5, 32, 128, format="q8_0"), ids)
    chains = [CHAINS[name](x, p.weight("v", 128), x, node("mean", x)) for name in ("softmax", "two norms of one")]
    layers = [attention(p, 0, 6, 2, 64, T), attention(p, 1, 2, 1, 32, T, window=9)]
    device = EmulatedDevice(seed=2, sanitize=sanitize)
    cache = "all=k:tq6,v:tq3;sink=2;recent=5"
    running = Running(p, [product, experts, *chains, *layers], "all", device, cache=cache, weights=weights, chunk=20)
    running.step(20)
    running.step(1, 20, "decode")
    running.engine.close()


@pytest.mark.parametrize("sanitize", ["race", "undefined"])
def test_choosing(sanitize):
    kernel, device = sample_kernel(1100), EmulatedDevice(seed=2, sanitize=sanitize)
    logits = np.random.default_rng(1).normal(size=1100).astype(np.float32)
    wished = wish(Choice(0.8, 30, 0.9, 0.05, 1.2, (1, 2, 1000), 0.4))
    given, to, chosen = (device.alloc(n) for n in (logits.nbytes, wished.nbytes, 4))
    device.write(given, logits.view(np.uint8))
    device.write(to, wished)
    device.launch(device.module(module_source([kernel])).kernel(kernel.name), (1, 1, 1), THREADS, [given, to, chosen])
    assert 0 <= int(device.read(chosen, 4).view(np.int32)[0]) < 1100
