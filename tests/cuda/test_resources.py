"""Kernels as the GPU's own compiler sees them: all of them compile, none spills, and what they take leaves room.

Kernels of all models together, each once: of the tiny ones without packing, of true sizes as they are run. Of tiny
models' kernels, and for older GPUs of all, the largest stands for those that differ from it in nothing but sizes. What
the compiler said is kept between runs, by all that it depends on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from briolette.backends.base import Options
from briolette.backends.cuda import nvrtc
from briolette.backends.cuda.compilation import GROUPS
from briolette.backends.cuda.engine import compilation_of
from briolette.backends.cuda.nvrtc import ARCHITECTURES, Resources, parsed, resources
from briolette.backends.cuda.occupancy import LIMITS
from briolette.backends.cuda.source import LIBRARY, Kernel, Together, library, module_source
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
# Models of true sizes, with caches but the first some layers of them: all kinds are among these, in all formats.
RUNS = [
    *((model if kv == "f16" else f"{model}:14", kv) for model in ("gemma4-e2b", "gemma4-26b-a4b") for kv in CACHES),
    ("gemma4-e2b:5", "f32"),
]
TOGETHER = 60  # kernels in a translation unit
AnyKernel = Kernel | Together


def compiler_or_skip() -> None:
    """Skips where the wheels of the compiler are missing; on CI that fails."""
    if find_spec("cupy") is None:
        said = "CuPy and NVRTC are not installed: pip install 'briolette[cuda]' (make test does it on Linux)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)


def kernels_of(
    header: Header, kv: str, weights: str, groups: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[AnyKernel, int]]:
    """Kernels, and bytes of shared memory that their launches add."""
    compilation = compilation_of(source_of(None, header))
    options = Options(context=4096, cache=kv, weights=weights)
    for group in groups:
        made = compilation.compiled(options, group)
        launches = [launch for program in made.programs.values() for launch in program.launches]
        added = {launch.kernel: launch.shared for launch in launches}
        yield from ((kernel, added[kernel.name]) for kernel in made.kernels)


def kind_of(kernel: AnyKernel) -> str:
    """What is left of a kernel's text when all sizes above one are the same."""
    text = re.sub(r"_[0-9a-f]{10}\b", "_", "\n".join([*kernel.needs, kernel.text]))
    return re.sub(r"\d+", lambda found: found[0] if found[0] in "01" else "2", text)


def largest(made: Iterable[tuple[AnyKernel, int]]) -> dict[str, tuple[AnyKernel, int]]:
    """Of kernels that differ in nothing but sizes the one with the largest, by name."""
    found: dict[str, tuple[int, AnyKernel, int]] = {}
    for kernel, added in made:
        kind, size = kind_of(kernel), sum(map(int, re.findall(r"\b\d{1,6}\b", kernel.text + "".join(kernel.needs))))
        if kind not in found or size > found[kind][0]:
            found[kind] = size, kernel, added
    return {kernel.name: (kernel, added) for _, kernel, added in found.values()}


@cache
def kernels() -> dict[str, tuple[AnyKernel, int]]:
    """Kernels by name, with the shared memory that launches add."""
    tiny = [made for path in TINY for made in kernels_of(open_gguf(path).header, "f16", "mapped", GROUPS)]
    true = [made for model, kv in RUNS for made in kernels_of(sizes(model).header, kv, "packed", GROUPS[:1])]
    return largest(tiny) | {kernel.name: (kernel, added) for kernel, added in true}


def compiled(wanted: Iterable[AnyKernel], architecture: int) -> dict[str, Resources]:
    """What kernels take: as an earlier run was told, or compiled now, two translation units at a time."""
    from cupy.cuda import nvrtc as compiler

    depends = "\0".join([library(), inspect.getsource(nvrtc), str(compiler.getVersion())])
    of = hashlib.sha256(depends.encode()).hexdigest()[:20]
    file = Path(os.environ["BRIOLETTE_CACHE"]) / f"nvrtc-{architecture}-{of}.json"
    told = json.loads(file.read_text()) if file.exists() else {}
    missing = [kernel for kernel in wanted if kernel.name not in told]
    units = [module_source(missing[at : at + TOGETHER]) for at in range(0, len(missing), TOGETHER)]
    with ThreadPoolExecutor(2) as pool:
        for part in pool.map(lambda unit: resources(unit, architecture), units):
            told |= {name: astuple(taken) for name, taken in part.items()}
    if missing:
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(told))
        scratch.replace(file)
    return {kernel.name: Resources(*told[kernel.name]) for kernel in wanted}


def check(wanted: dict[str, tuple[AnyKernel, int]], architecture: int) -> None:
    found = compiled([kernel for kernel, _ in wanted.values()], architecture)
    assert {name: taken for name, taken in found.items() if taken.spilled} == {}
    assert {name: taken for name, taken in found.items() if taken.registers > MOST_REGISTERS} == {}
    assert {name: taken for name, taken in found.items() if taken.shared > MOST_SHARED} == {}
    most = LIMITS[architecture].most
    assert {name: taken for name, taken in found.items() if taken.shared + wanted[name][1] > most} == {}


def test_no_kernel_spills():
    compiler_or_skip()
    assert len(kernels()) > 300
    check(kernels(), ARCHITECTURES[-1])


@pytest.mark.parametrize("architecture", ARCHITECTURES[:-1])
def test_older_gpus_are_compiled_for(architecture):
    compiler_or_skip()
    check(largest(kernels().values()), architecture)


def test_a_trained_model_compiles(gemma3_path):
    compiler_or_skip()
    header = open_gguf(gemma3_path).header
    found = {k.name: (k, added) for kv in CACHES for k, added in kernels_of(header, kv, "packed", GROUPS[:1])}
    check({name: made for name, made in found.items() if name not in kernels()}, ARCHITECTURES[-1])


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
