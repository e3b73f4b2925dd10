"""A host emulator: executes unmodified CUDA C++ kernel sources on the CPU, one fiber for each CUDA thread.

    module = Module(source)
    kernel = module.kernel("name")
    memory = Memory()
    x = memory.alloc(1024)
    kernel.launch((4, 1, 1), (128, 1, 1), [x])

A kernel is `extern "C" __global__ void name(...)`. It sees what NVRTC would let it see, and `BRIOLETTE_EMULATED`
defined. Threads run in an order drawn from a seed, shared memory starts poisoned, device memory lies between guard
pages, and what a kernel does wrong is a `KernelFault` that names its line, block and thread.

Faults found in every run: divergent barriers and barriers after a return, masks that name who does not come, addresses
outside of allocations or freed, stack overflow, division by zero, traps, launches that do not end. Instrumented modules
(`sanitize`) also find misaligned accesses, undefined arithmetic, and races: between threads of a block on any memory,
and between blocks. `same_on_all_seeds` compares what different orders of the threads compute.

Inline PTX does not compile here: kernels give another form of it under `#ifdef BRIOLETTE_EMULATED`. For tensor cores
that is a call of `emulated_mma_f16` and its like, with the same registers (include/emulated_mma.h).

What this does not prove: that kernels agree with a GPU's memory model, its approximate intrinsics, its order of sums in
tensor cores, and its limits of registers and static shared memory. Static shared memory has no guard pages; only
sanitize="address" and, for arrays indexed by name, "undefined" see past its ends. Runs on Linux, x86-64 and aarch64.
"""

from .build import address_environment, compiler
from .errors import CompileError, EmulatorError, KernelFault, UnknownKernel
from .memory import Memory
from .module import Kernel, Module
from .seeds import ScheduleDependence, same_on_all_seeds

__all__ = [
    "CompileError",
    "EmulatorError",
    "Kernel",
    "KernelFault",
    "Memory",
    "Module",
    "ScheduleDependence",
    "UnknownKernel",
    "address_environment",
    "compiler",
    "same_on_all_seeds",
]
