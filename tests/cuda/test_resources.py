"""Kernels as the GPU's own compiler sees them: all of them compile, none spills, and what they take leaves room.

Kernels of all models together, each once: of the tiny ones without packing, of true sizes as they are run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from briolette.backends.base import Options
from briolette.backends.cuda.compilation import GROUPS
from briolette.backends.cuda.engine import compilation_of
from briolette.backends.cuda.nvrtc import ARCHITECTURES, Resources, parsed, resources
from briolette.backends.cuda.source import LIBRARY, Kernel, module_source
from briolette.compiler.errors import BrioletteError
from briolette.compiler.header import Header
from briolette.engine.bench.sizes import sizes
from briolette.engine.gguf import open_gguf
from briolette.engine.source import source_of

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "backends" / "cuda" / "kernels"
TINY = sorted((ROOT / "tests" / "oracle" / "models").glob("*.gguf"))
CACHES = ("f16", "balanced;turning=64", "compact;turning=64")  # rotary factors are in files, of which these have none
MOST_REGISTERS, MOST_SHARED = 128, 48 << 10
LAYERS = 14  # of models of true sizes, with caches but the first: all kinds are among them, in all formats
TOGETHER = 60  # kernels in a translation unit
CHOSEN = ("gemma4_moe", "gemma4-e2b")  # whose kernels are compiled for every architecture, not for the newest alone


def compiler_or_skip() -> None:
    """Skips where the wheels of the compiler are missing; on CI that fails."""
    if find_spec("cupy") is None:
        said = "CuPy and NVRTC are not installed: pip install 'briolette[cuda]' (make test does it on Linux)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)


def kernels_of(header: Header, kv: str, weights: str, groups: tuple[tuple[str, ...], ...]) -> Iterator[Kernel]:
    compilation = compilation_of(source_of(None, header))
    options = Options(context=4096, cache=kv, weights=weights)
    for group in groups:
        yield from compilation.compiled(options, group).kernels


@cache
def models() -> dict[str, dict[str, Kernel]]:
    """Kernels by name, of each model those that no earlier one has."""
    found: dict[str, dict[str, Kernel]] = {}

    def add(model: str, kernels: Iterator[Kernel]) -> None:
        known = {name for others in found.values() for name in others}
        fresh = {kernel.name: kernel for kernel in kernels if kernel.name not in known}
        found.setdefault(model, {}).update(fresh)

    for path in TINY:
        add(path.stem, kernels_of(open_gguf(path).header, "f16", "mapped", GROUPS))
    for model, caches in (("gemma4-e2b", CACHES), ("gemma4-26b-a4b", CACHES)):
        for kv in caches:
            header = sizes(model if kv == "f16" else f"{model}:{LAYERS}").header
            add(model, kernels_of(header, kv, "packed", GROUPS[:1]))
    return found


def compiled(kernels: list[Kernel], architecture: int) -> dict[str, Resources]:
    """What kernels take; two translation units at a time."""
    units = [module_source(kernels[at : at + TOGETHER]) for at in range(0, len(kernels), TOGETHER)]
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(lambda unit: resources(unit, architecture), units)
        return {name: taken for part in parts for name, taken in part.items()}


def check(kernels: list[Kernel], architecture: int) -> None:
    found = compiled(kernels, architecture)
    assert set(found) == {kernel.name for kernel in kernels}
    assert {name: taken for name, taken in found.items() if taken.spilled} == {}
    assert {name: taken for name, taken in found.items() if taken.registers > MOST_REGISTERS} == {}
    assert {name: taken for name, taken in found.items() if taken.shared > MOST_SHARED} == {}


def test_no_kernel_spills():
    compiler_or_skip()
    kernels = [kernel for of_model in models().values() for kernel in of_model.values()]
    assert len(kernels) > 500
    check(kernels, ARCHITECTURES[-1])


@pytest.mark.parametrize("architecture", ARCHITECTURES[:-1])
def test_older_gpus_are_compiled_for(architecture):
    compiler_or_skip()
    check([kernel for model in CHOSEN for kernel in models()[model].values()], architecture)


def test_a_trained_model_compiles(gemma3_path):
    compiler_or_skip()
    known = {name for kernels in models().values() for name in kernels}
    header = open_gguf(gemma3_path).header
    found = {k.name: k for kv in CACHES for k in kernels_of(header, kv, "packed", GROUPS[:1]) if k.name not in known}
    check(list(found.values()), ARCHITECTURES[-1])


def test_what_is_wrong_is_told():
    compiler_or_skip()
    with pytest.raises(BrioletteError, match="refuses the kernels"):
        resources('extern "C" __global__ void f() { nothing(); }', ARCHITECTURES[-1])
    spilling = (
        'extern "C" __global__ void __launch_bounds__(1024) f(float* x) {\n  float v[96];\n'
        "#pragma unroll\n  for (int i = 0; i < 96; i++) v[i] = x[i * 1024 + threadIdx.x];\n  __syncthreads();\n"
        "#pragma unroll\n  for (int i = 0; i < 96; i++) x[(95 - i) * 1024 + threadIdx.x] = v[i] * v[(i * 7) % 96];\n}"
    )
    assert resources(spilling, ARCHITECTURES[-1])["f"].spilled > 0


def test_a_log_is_read():
    log = """ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Used 12 registers"""
    assert parsed(log) == {"one": Resources(40, 8, 16, 128), "two": Resources(12, 0, 0, 0)}


# --- the sources ------------------------------------------------------------------------------------

GUARDED = re.compile(r"^#ifdef BRIOLETTE_EMULATED\n.+?^#else\n.*?^#endif", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"//.*")


def test_kernels_stay_with_what_every_compiler_here_knows():
    """NVRTC has neither <cstdint> nor INFINITY, the emulator no inline assembly: that is wrapped, with another way."""
    assert {path.stem for path in KERNELS.glob("*.cuh")} == set(LIBRARY)
    for path in KERNELS.glob("*.cuh"):
        text = COMMENT.sub("", path.read_text())
        includes = set(re.findall(r"#include\s*(\S+)", text))
        assert includes <= {"<cuda_fp16.h>", "<cuda_bf16.h>", "<mma.h>"}, path.name
        assert not re.search(r"\bINFINITY\b|\bNAN\b|\bu?int\d+_t\b|\bprintf\b|\bassert\b", text), path.name
        assert not re.search(r"\basm\b", GUARDED.sub("", text)), f"{path.name}: assembly that only a GPU can run"
