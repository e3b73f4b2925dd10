"""The CPU backend: LLVM IR through llvmlite, one native function per program form."""
