"""From CUDA C++ text to a C++ translation unit: what the preprocessor of C++ cannot say of CUDA's language."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from . import build

FILE = "kernel.cu"

# Kernels see only the emulator's own headers, as under NVRTC there is no <cstdint>.
PREPROCESS = ("-E", "-x", "c++", "-std=c++17", "-march=native", "-nostdinc", "-nostdinc++")
INCLUDES = (f"-I{build.INCLUDE}", f"-I{build.RUNTIME}")

KERNEL = re.compile(r'extern\s+"C"\s+__global__\s[^;{}()]*?(\w+)\s*\((?!\()')
# `extern __shared__ float x[];` becomes a pointer to the block's dynamic shared memory. The statement expression keeps
# it inside functions: at file scope there is no block whose memory it could be. The declaration in front makes two
# types of one name an error, as they are for CUDA.
DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:alignas\s*\(\w+\)|__attribute__\s*\(\(.*?\)\)|\s)*([\w:\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;"
)
POINTER = (
    r"extern \1 dynamic_shared_\2[]; "
    r"\1* const \2 = ({ reinterpret_cast<\1*>(emulator::emulator_thread->block->dynamic_shared); });"
)
# C++ wants alignas in front of what it applies to.
SHARED = re.compile(r"(?:\bstatic\s+)?\b__shared__\b(?:\s*(alignas\s*\([^()]*\)\s*))?")


def kernels(preprocessed: str) -> list[str]:
    """Names of all kernels with C linkage, in order."""
    return list(dict.fromkeys(KERNEL.findall(preprocessed)))


# What a launch finds by name: the call from an array of words, and the kinds of the kernel's parameters.
ENTRY = """
# 1 "<entry>"
extern "C" __attribute__((visibility("default"))) void emulated_entry_{name}(const emulator::Word* words) {{
  emulator::Entry<decltype(&{name})>::call({name}, words);
}}
extern "C" __attribute__((visibility("default"))) const char* emulated_kinds_{name}() {{
  return emulator::Entry<decltype(&{name})>::kinds;
}}
"""


def translate(source: str, scratch: Path, sanitize: str | None = None) -> tuple[str, list[str]]:
    """A translation unit that g++ compiles without preprocessing, and the names of its kernels.

    Lines keep their numbers and are those of kernel.cu, or of what the source's own #line directives say.
    """
    text = build.gxx([*PREPROCESS, *INCLUDES, "-"], scratch, f'#include "emulated.h"\n#line 1 "{FILE}"\n{source}\n')
    names = kernels(text)
    # Each worker has a copy of its own. AddressSanitizer knows the bounds of plain variables only.
    storage = "static" if sanitize == "address" else "static thread_local"
    text = DYNAMIC.sub(POINTER, text)
    text = SHARED.sub(rf"\1{storage} ", text)
    text = re.sub(r"\b__global__\b", "__attribute__((noinline))", text)
    return text + "".join(ENTRY.format(name=name) for name in names), names


def compile_flags(sanitize: str | None) -> list[str]:
    """Flags of the compiler proper."""
    return (BASE + SANITIZERS[sanitize]).split()


# -O1: a kernel of a test runs for milliseconds, and -O2 takes half as long again to compile for a tenth of that. What
# it leaves out is put back where it matters: products and sums are fused, as CUDA's compiler fuses them.
BASE = (
    "-std=c++17 -O1 -fexpensive-optimizations -ffp-contract=fast -g1 -fPIC -march=native -fno-math-errno "
    "-fno-trapping-math -fno-exceptions -fno-rtti -fno-strict-aliasing -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -fvisibility=hidden -fno-gnu-unique -fno-ipa-icf -fstack-clash-protection "
    "-fmax-errors=10 -w"
)
# The runtime answers what these flags make the compiler call, all but "address": the modules link no other library.
SANITIZERS = {
    None: "",
    "alignment": " -fsanitize=alignment",
    "undefined": " -fsanitize=alignment,bounds,null,shift-exponent,signed-integer-overflow,integer-divide-by-zero"
    ",pointer-overflow,bool,unreachable,return",
    "race": " -fsanitize=thread",
    "address": " -fsanitize=address",
}


def library(source: str, sanitize: str | None) -> tuple[Path, list[str]]:
    """The compiled module and the names of its kernels."""
    if sanitize not in SANITIZERS:
        raise ValueError(f"sanitize={sanitize!r} is none of {', '.join(map(repr, SANITIZERS))}")
    flags = compile_flags(sanitize)
    name = build.key(source, build.header_texts(), " ".join(flags))
    target, listed = build.folder() / f"{name}.so", build.folder() / f"{name}.kernels"
    if not (target.exists() and listed.exists()):
        compile_to(target, listed, source, sanitize)
    return target, listed.read_text().split()


def compile_to(target: Path, listed: Path, source: str, sanitize: str | None) -> None:
    """Translates and compiles a source. What the compiler says shows lines of the source itself."""
    with tempfile.TemporaryDirectory(dir=build.folder()) as folder:
        scratch = Path(folder)
        (scratch / FILE).write_text(source)  # for the lines that the compiler quotes
        text, names = translate(source, scratch, sanitize)
        build.gxx([*compile_flags(sanitize), "-c", "-fpreprocessed", "-x", "c++", "-", "-o", "made.o"], scratch, text)
        build.gxx(["-shared", "made.o", "-o", "made.so"], scratch)
        (scratch / "names").write_text("\n".join(names))
        (scratch / "names").replace(listed)
        (scratch / "made.so").replace(target)
