"""Kernel families of the CPU backend, one file each."""
