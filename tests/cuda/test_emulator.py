"""The emulator runs correct kernels as numpy computes, and reports what incorrect ones do."""

from __future__ import annotations

import os
import shutil

import emulator
import numpy as np
import pytest

if not shutil.which(os.environ.get("CXX", "g++")) and not os.environ.get("CI"):
    pytest.skip("the emulator needs g++", allow_module_level=True)

SUMS = r"""
extern "C" __global__ void __launch_bounds__(256) sum(const float* x, const int* count, float* out) {
  __shared__ float part[8];
  float s = 0.0f;
  for (int i = threadIdx.x; i < *count; i += blockDim.x) s += x[blockIdx.x * *count + i];
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(0xffffffffu, s, o);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = s;
  __syncthreads();
  if (threadIdx.x < 32) {
    s = threadIdx.x < 8 ? part[threadIdx.x] : 0.0f;
    for (int o = 4; o > 0; o >>= 1) s += __shfl_down_sync(0xffffffffu, s, o);
    if (threadIdx.x == 0) out[blockIdx.x] = s;
  }
}
"""


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_reduction(seed):
    memory = emulator.Memory()
    x = np.random.default_rng(1).standard_normal((5, 1000)).astype(np.float32)
    out = memory.alloc(20)
    args = [memory.upload(x), memory.upload(np.int32([1000])), out]
    emulator.Module(SUMS).kernel("sum").launch((5, 1, 1), (256, 1, 1), args, seed=seed)
    np.testing.assert_allclose(memory.download(out, np.float32, 5), x.sum(1), rtol=1e-4, atol=1e-4)
