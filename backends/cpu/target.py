"""The machine that code is generated for: what it is called, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """A machine that code is generated for, in LLVM's words.

    features: as LLVM lists them, `+avx2,-avx512f`. lanes: the width of the f32 vectors that kernels use.
    """

    triple: str
    cpu: str
    features: str
    lanes: int

    @staticmethod
    def host(lanes: int | None = None) -> Target:
        """This machine, with its widest vectors unless `lanes` (4, 8 or 16) says otherwise."""
        triple, features = llvm.get_process_triple(), llvm.get_host_cpu_features().flatten()
        found = Target(triple, llvm.get_host_cpu_name(), features, 4)
        return replace(found, lanes=lanes or found.widest)

    @cached_property
    def enabled(self) -> frozenset[str]:
        return frozenset(f[1:] for f in self.features.split(",") if f.startswith("+"))

    def has(self, *features: str) -> bool:
        return self.enabled.issuperset(features)

    @property
    def arm(self) -> bool:
        return self.triple.startswith(("aarch64", "arm64"))

    @property
    def widest(self) -> int:
        """f32 lanes of the widest register."""
        return 16 if self.has("avx512f") else 8 if self.has("avx2") else 4

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 32 if self.arm or self.has("avx512f") else 16

    @property
    def multiplies_bytes(self) -> bool:
        """Whether four products of bytes and their sum are one instruction."""
        return self.has("avxvnni") or self.has("avx512vnni", "avx512vl")

    @property
    def multiplies_panels(self) -> bool:
        """Whether the same goes for vectors of 16 words, and there are registers for the sums of two of these."""
        return self.has("avx512vnni") and self.lanes == 16

    @property
    def wants_prefetch(self) -> bool:
        """Whether streams from memory get faster by being asked for. AMD's cores fetch those ahead on their own; what
        is asked for takes the few places of L1 misses (Zen 4: 16 GB/s with, 26 without, a core)."""
        return not self.cpu.startswith(("znver", "bdver", "btver", "amdfam"))

    @property
    def fma(self) -> bool:
        return self.arm or self.has("fma") or self.has("avx512f")

    @property
    def half(self) -> bool:
        """Whether f16 <-> f32 is an instruction (elsewhere LLVM would call a run-time library)."""
        return self.arm or self.has("f16c") or self.has("avx512f")

    def machine(self, opt: int = 2) -> llvm.TargetMachine:
        """A code generator for this target (registers every target of LLVM on first use)."""
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        found = llvm.Target.from_triple(self.triple)
        return found.create_target_machine(cpu=self.cpu, features=self.features, opt=opt)
