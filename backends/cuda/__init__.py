"""The CUDA backend: kernels as C++ source specialised by constants, a launch plan as data, devices to run it."""
