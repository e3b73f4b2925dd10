"""A host emulator: executes unmodified CUDA C++ kernel sources on the CPU, one fiber for each CUDA thread.

    module = Module(source)
    kernel = module.kernel("name")
    memory = Memory()
    x = memory.alloc(1024)
    kernel.launch((4, 1, 1), (128, 1, 1), [x])

A kernel is `extern "C" __global__ void name(...)`. It sees what NVRTC would let it see, and `BRIOLETTE_EMULATED`
defined. Threads run in an order drawn from a seed, shared memory starts poisoned, device memory lies between guard
pages, and what a kernel does wrong is a `KernelFault` that names its line, block and thread.

What it does not prove: that kernels agree with a GPU's memory model, approximate intrinsics and limits of resources.
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
