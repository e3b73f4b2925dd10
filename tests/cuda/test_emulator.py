"""The emulator runs correct kernels as numpy computes, and reports what incorrect ones do.

The kernels are kernels/correct.cu and kernels/wrong.cu.
"""

from __future__ import annotations

import _ctypes
import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import emulator
import numpy as np
import pytest
from emulator.places import base_of

if emulator.compiler() is None and not os.environ.get("CI"):
    pytest.skip("the emulator needs g++", allow_module_level=True)

HERE = Path(__file__).parent
CORRECT = (HERE / "kernels/correct.cu").read_text()
WRONG = (HERE / "kernels/wrong.cu").read_text()
SEEDS = [None, 0, 1, 2]


@functools.cache
def module(source: str, sanitize: str | None = None) -> emulator.Module:
    return emulator.Module(source, sanitize)


@pytest.fixture
def memory():
    owner = emulator.Memory()
    yield owner
    owner.check()
    owner.close()


@pytest.fixture
def draw():
    return np.random.default_rng(20)


@pytest.fixture(params=[None, "undefined", "race"])
def sanitize(request):
    return request.param


@pytest.fixture
def run(memory, sanitize):
    """Runs a correct kernel: what it writes. Outputs are arrays of what was there before. Schedules must agree."""

    def run(name, grid, block, inputs, outputs, shared_bytes=0):
        given = [memory.upload(np.asarray(values)) for values in inputs]
        made = [memory.upload(values) for values in outputs]
        spans = [(address, values.nbytes) for address, values in zip(made, outputs, strict=True)]
        kernel = module(CORRECT, sanitize).kernel(name)
        emulator.same_on_all_seeds(kernel, grid, block, [*given, *made], spans, shared_bytes, SEEDS)
        return [memory.download(a, values.dtype, values.shape) for a, values in zip(made, outputs, strict=True)]

    return run


def nothing(shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_shuffles_sum_rows(run, draw):
    x = draw.standard_normal((7, 1000), np.float32)
    (out,) = run("row_sums", (7, 1, 1), (256, 1, 1), [x, np.int32([1000])], [nothing(7)])
    np.testing.assert_allclose(out, x.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (45, 70), (1, 3)])
def test_tiles_transpose(run, draw, rows, columns):
    x = draw.standard_normal((rows, columns), np.float32)
    grid = (-(-columns // 32), -(-rows // 32), 1)
    (out,) = run("transpose", grid, (32, 8, 1), [x, np.int32([rows, columns])], [nothing((columns, rows))])
    np.testing.assert_array_equal(out, x.T)


def test_dot_products_of_bytes(run, draw):
    rows, blocks = 12, 9
    weights = np.zeros((rows, blocks), np.dtype([("scale", "f2"), ("codes", "i1", 32)]))
    weights["scale"] = draw.standard_normal((rows, blocks))
    weights["codes"] = draw.integers(-128, 128, (rows, blocks, 32))
    codes = draw.integers(-128, 128, (blocks, 32), np.int8)
    scales = draw.standard_normal(blocks, np.float32)
    inputs = [weights.view(np.uint8), codes, scales, np.int32([blocks])]
    (out,) = run("matvec", (3, 1, 1), (32, 4, 1), inputs, [nothing(rows)])
    dots = np.einsum("rbi,bi->rb", weights["codes"].astype(np.int64), codes.astype(np.int64))
    np.testing.assert_allclose(out, (dots * weights["scale"].astype(float) * scales).sum(1), rtol=1e-5)


def test_halves_and_bfloat16(run, draw):
    x = np.concatenate([draw.standard_normal(240), [0, -0.0, 65504, 65520, 1e9, -np.inf, np.nan, 6e-8]] * 2)
    x[:100] *= 10.0 ** draw.integers(-8, 6, 100)
    x = x[: 2 * (x.size // 2)].astype(np.float32)[:488]
    n = x.size // 2
    outputs = [nothing(2 * n, np.uint16), nothing(2 * n, np.uint16), nothing((n, 2)), nothing(2 * n, np.uint16)]
    half, bfloat, back, fused = run("narrow", (2, 1, 1), (n // 2, 1, 1), [x], outputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(np.float16)
        twice = (expected.astype(np.float64) ** 2 + 1).astype(np.float16)
    same = ~np.isnan(x)
    np.testing.assert_array_equal(half.view(np.float16), expected)
    np.testing.assert_array_equal(fused.view(np.float16), twice)
    wide = x.view(np.uint32).astype(np.uint64)
    rounded = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(bfloat[same], rounded[same])
    assert np.isnan((bfloat[~same].astype(np.uint32) << 16).view(np.float32)).all()
    np.testing.assert_array_equal(back[:, 0], expected[::2].astype(np.float32))
    np.testing.assert_array_equal(back[:, 1].view(np.uint32) >> 16, bfloat[1::2])


def ballot(votes):
    return np.sum(votes.astype(np.int64) << np.arange(votes.size))


def test_votes_and_reductions_of_warps(run, draw):
    x = draw.integers(-99, 100, 96).astype(np.int32)
    (out,) = run("votes", (1, 1, 1), (96, 1, 1), [x], [nothing((96, 12), np.uint32)])
    for t in range(96):
        warp, lane = x[t // 32 * 32 : t // 32 * 32 + 32], t % 32
        half = warp[lane // 16 * 16 : lane // 16 * 16 + 16]
        expected = [
            ballot(warp & 1),
            ballot(half > 0) << lane // 16 * 16,
            (warp > 90).any() + 2 * (warp > -90).all(),
            warp.sum(),
            half.min(),
            warp.view(np.uint32).max(),
            ballot((warp & 3) == (warp[lane] & 3)),
            (x > 0).sum(),
            (x > 95).any() + 2 * (x > -1000).all(),
            warp[lane - 3] if lane >= 3 else warp[lane],
            warp[lane // 8 * 8 + 5],
            warp[lane + 2] if lane % 16 < 14 else warp[lane],
        ]
        np.testing.assert_array_equal(out[t], np.array([int(e) & 0xFFFFFFFF for e in expected], np.uint32), str(t))


def test_atomics(memory, draw, sanitize):
    x = draw.integers(-500, 500, 6 * 128).astype(np.int32)
    for workers in (1, 2) if sanitize != "race" else (1,):
        start = [nothing(16, np.int32), nothing(1), np.int64([0]), np.int32([-1000, 1000, -1, 0])]
        made = [memory.upload(values) for values in start]
        kernel = module(CORRECT, sanitize).kernel("atomics")
        kernel.launch((6, 1, 1), (128, 1, 1), [memory.upload(x), *made], workers=workers)
        found = [memory.download(a, values.dtype, values.shape) for a, values in zip(made, start, strict=True)]
        histogram, total, count, (most, least, first, second) = found
        np.testing.assert_array_equal(histogram, np.bincount(x & 15, minlength=16))
        assert total == x.sum()
        assert count == 3 * x.size
        assert (most, least) == (x.max(), x.min())
        assert first == second
        assert first in x


def test_the_last_block_sees_what_the_others_wrote(run, draw):
    x = draw.integers(-99, 99, 6 * 64).astype(np.int32)
    outputs = [nothing(6, np.int32), nothing(1, np.int32), nothing(1, np.int32)]
    parts, done, total = run("last_block_sums", (6, 1, 1), (64, 1, 1), [x], outputs)
    np.testing.assert_array_equal(parts, x.reshape(6, 64).sum(1))
    assert (done, total) == (0, x.sum())


def test_dynamic_shared_memory(run, draw):
    x = draw.standard_normal((5, 200), np.float32)
    (out,) = run("softmax", (5, 1, 1), (128, 1, 1), [x, np.int32([200])], [nothing((5, 200))], shared_bytes=4 * 204)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(out, e / e.sum(1, keepdims=True), rtol=1e-5)


def test_integer_intrinsics(run, draw):
    x = draw.integers(0, 2**32, (64, 2), np.uint64)
    x[0], x[1] = (0, 0), (1, 2**32 - 1)
    (out,) = run("bits", (1, 1, 1), (64, 1, 1), [x.astype(np.uint32)], [nothing((64, 12), np.uint32)])

    def bytes_of(v, kind):
        return np.frombuffer(int(v).to_bytes(4, "little"), kind).astype(np.int64)

    def sign(byte):
        return 255 * (byte >> 7)

    def signed(v):
        return int(v) - (int(v) >> 31 << 32)

    for (a, b), mine in zip([(int(a), int(b)) for a, b in x], out, strict=True):
        both = (a | b << 32).to_bytes(8, "little")
        first_bit = (a & -a).bit_length()
        expected = [
            a.bit_count() | (32 - b.bit_length()) << 8 | first_bit << 16,
            int(f"{a:032b}"[::-1], 2),
            int.from_bytes([both[0], both[4], both[2], both[6]], "little"),
            int.from_bytes([sign(both[7]), both[1], sign(both[4]), sign(both[1])], "little"),
            bytes_of(a, "u1") @ bytes_of(b, "u1") + 7,
            bytes_of(a, "i1") @ bytes_of(b, "i1") - 7,
            (a | b << 32) >> 13,
            int.from_bytes(np.clip(bytes_of(a, "i1") - bytes_of(b, "i1"), -128, 127).astype("i1").tobytes(), "little"),
            a * b >> 32,
            a,
            int(np.rint(np.float32(signed(a) >> 12) * np.float32(0.5))),
            min(signed(a), signed(b)) ^ max(a, b),
        ]
        np.testing.assert_array_equal(mine, np.array([int(e) & 0xFFFFFFFF for e in expected], np.uint32))


def test_every_thread_of_a_grid_runs_once(run):
    grid, block = (3, 2, 4), (5, 3, 2)
    (out,) = run("numbers", grid, block, [], [nothing((24, 30), np.int32)])
    np.testing.assert_array_equal(out, np.arange(24)[:, None] * 1000 + np.arange(30))


def test_scalar_arguments(memory):
    out = memory.alloc(8)
    kernel = module(CORRECT).kernel("scalars")
    kernel.launch((1, 1, 1), (2, 1, 1), [out, -3, 0.5, 7 << 32, 0.25])
    np.testing.assert_array_equal(memory.download(out, np.float32, 2), [5.75, 5.75])
    with pytest.raises(ValueError, match="takes 5 arguments, not 1"):
        kernel.launch((1, 1, 1), (2, 1, 1), [out])


def test_tensor_cores(run, draw):
    a, b = draw.standard_normal((16, 16)).astype(np.float16), draw.standard_normal((16, 8)).astype(np.float16)
    (out,) = run("tensor", (1, 1, 1), (32, 1, 1), [a, b], [nothing((16, 8))])
    np.testing.assert_allclose(out, a.astype(float) @ b.astype(float), rtol=1e-6, atol=1e-6)
    a, b = draw.integers(-128, 128, (16, 32), np.int8), draw.integers(-128, 128, (32, 8), np.int8)
    columns = np.ascontiguousarray(b.T)
    (out,) = run("tensor_bytes", (1, 1, 1), (32, 1, 1), [a, columns], [nothing((16, 8), np.int32)])
    np.testing.assert_array_equal(out, a.astype(np.int64) @ b.astype(np.int64))


def line_of(mark: str) -> int:
    (line,) = [number for number, text in enumerate(WRONG.splitlines(), 1) if text.endswith(f"// here: {mark}")]
    return line


def launch_wrong(memory, name, sanitize=None, seed=0, x=None, shared_bytes=512):
    """Launches an incorrect kernel on one block of 128 threads; its output."""
    given = memory.upload(np.arange(128, dtype=np.int32) if x is None else x, "x")
    out = memory.alloc(512, "out")
    module(WRONG, sanitize).kernel(name).launch((1, 1, 1), (128, 1, 1), [given, out], shared_bytes, seed)
    return memory.download(out, np.float32, 128)


REPORTED = {
    "divergent_barrier": "divergent __syncthreads: other threads wait in the one at kernel.cu:",
    "barrier_after_return": "__syncthreads waits for 28 threads that have returned, thread (100, 0, 0) first",
    "barrier_in_half_a_warp": "__shfl_*_sync with mask 0xffffffff waits for lane 1, which waits in __syncthreads",
    "mask_names_the_exited": "__shfl_*_sync has mask 0xffffffff, which names lane 20, and that lane has returned",
    "mask_without_caller": "__ballot_sync is called by lane 16, which its mask 0x0000ffff does not name",
    "masks_disagree": "mask 0xffffffff waits for lane 16, which waits in __any_sync with mask 0xffff0001",
    "reads_outside_the_mask": "__shfl_*_sync reads lane 20, which its mask 0x0000ffff does not name",
    "reads_past_the_end": "out of bounds: access 0 bytes past the end of 'x' (512 bytes)",
    "past_dynamic_shared": "out of bounds: access 0 bytes past the end of dynamic shared memory",
    "divides_by_zero": "integer division by zero",
    "asserts": "assertion failed: x[threadIdx.x] < 5",
}
SANITIZED = {
    ("alignment", "misaligned"): "misaligned: load of address",
    ("alignment", "misaligned_hint"): "as 'const int', which needs a multiple of 4",
    ("undefined", "misaligned"): "misaligned: load of address",
    ("undefined", "shifts_too_far"): "a shift by",
    ("undefined", "indexes_past_an_array"): "out of bounds: index",
    ("race", "missing_barrier"): "race: nothing orders this",
    ("race", "missing_second_barrier"): "race: nothing orders this",
    ("race", "missing_syncwarp"): "race: nothing orders this",
    ("race", "bytes_then_words"): "race: nothing orders this",
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_a_kernel_does_wrong_is_reported(memory, name):
    for seed in SEEDS:
        with pytest.raises(emulator.KernelFault) as caught:
            launch_wrong(memory, name, seed=seed)
        fault = caught.value
        places = {line_of(name)} if name != "divergent_barrier" else {line_of("one"), line_of("other")}
        assert fault.kernel == name
        assert fault.line in places
        assert fault.block == (0, 0, 0)
        assert f"kernel.cu:{fault.line}" in str(fault)
        if seed is None:  # threads run in their natural order: which of them is caught is known
            assert REPORTED[name] in fault.message


@pytest.mark.parametrize(("sanitize", "name"), SANITIZED)
def test_what_instrumented_kernels_do_wrong_is_reported(memory, sanitize, name):
    with pytest.raises(emulator.KernelFault) as caught:
        launch_wrong(memory, name, sanitize, x=np.zeros(34 * 128, np.uint8))
    assert SANITIZED[sanitize, name] in caught.value.message
    if sanitize != "race":
        assert caught.value.line == line_of(name)
    else:  # either of the two may be the one that comes second
        other = re.search(r"by thread \(\d+, 0, 0\) of block \(0, 0, 0\) at kernel.cu:(\d+)", caught.value.message)
        assert line_of(name) in (caught.value.line, int(other[1]))


def test_races_between_blocks(memory):
    out = memory.upload(np.zeros(32 * 5, np.int32))
    kernel = module(WRONG, "race").kernel("blocks_in_place")
    with pytest.raises(emulator.KernelFault, match=r"race: nothing orders this .* of block \(\d, 0, 0\)") as caught:
        kernel.launch((4, 1, 1), (64, 1, 1), [0, out])
    assert caught.value.line == line_of("blocks_in_place")
    for _ in range(2):  # launches are ordered
        kernel.launch((1, 1, 1), (32, 1, 1), [0, out])


def test_a_write_far_from_its_array(memory):
    with pytest.raises(emulator.KernelFault, match=r"in store: .* bytes before the start of 'out'") as caught:
        launch_wrong(memory, "writes_before_the_start")
    assert caught.value.line == line_of("writes_before_the_start")


def test_a_write_just_beside_an_array():
    """Alignment leaves bytes over; a write there is seen at the next check."""
    memory = emulator.Memory()
    given, out = memory.upload(np.zeros(128, np.int32)), memory.alloc(512 - 4)
    module(WRONG).kernel("reads_past_the_end").launch((1, 1, 1), (127, 1, 1), [given, out])
    memory.check()
    module(CORRECT).kernel("numbers").launch((1, 1, 1), (128, 1, 1), [out])
    with pytest.raises(emulator.EmulatorError, match="wrote 508 bytes from the start of an allocation of 508"):
        memory.check()


def test_memory_that_was_freed(memory):
    out = memory.alloc(512, "out")
    memory.free(out)
    with pytest.raises(emulator.KernelFault, match=r"use after free: access to byte \d+ of 'out'"):
        module(CORRECT).kernel("numbers").launch((1, 1, 1), (128, 1, 1), [out])
    with pytest.raises(ValueError, match="not the address of an allocation"):
        memory.free(out)
    with pytest.raises(ValueError, match="not inside one allocation"):
        memory.view(out, 4)


def test_schedules_show_what_is_not_synchronised(memory):
    """Without instrumentation: some order of the threads gives other results, or poison, than another."""
    x, out = memory.upload(np.arange(128, dtype=np.int32)), memory.alloc(512)
    for name in ("missing_barrier", "missing_second_barrier"):  # a shuffle does bring its lanes together here
        kernel = module(WRONG).kernel(name)
        with pytest.raises(emulator.ScheduleDependence, match=f"{name}: output 0 differs between seeds"):
            emulator.same_on_all_seeds(kernel, (1, 1, 1), (128, 1, 1), [x, out], [(out, 512)], 512)


def test_shared_memory_starts_as_nan(memory):
    for _ in range(2):  # in each block anew
        out = launch_wrong(memory, "uninitialised_shared", shared_bytes=256)
        assert out[7] == 4
        assert np.isnan(np.delete(out, 7)).all()


def test_a_stack_overflow(memory):
    with pytest.raises(emulator.KernelFault, match="stack overflow"):
        launch_wrong(memory, "recurses")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loop_without_end(memory, workers):
    out = memory.alloc(512)
    args = [memory.upload(np.zeros(1, np.int32)), out]
    with pytest.raises(emulator.KernelFault, match="the kernel does not end") as caught:
        module(WRONG).kernel("never_ends").launch((2, 1, 1), (1, 1, 1), args, workers=workers, seconds=0.1)
    assert abs(caught.value.line - line_of("never_ends")) <= 1


def test_a_fault_leaves_the_emulator_usable(memory, run, draw):
    for workers in (1, 2):
        with pytest.raises(emulator.KernelFault):
            module(WRONG).kernel("divergent_barrier").launch(
                (9, 1, 1), (128, 1, 1), [0, memory.alloc(512)], workers=workers
            )
        test_shuffles_sum_rows(run, draw)


def test_the_same_seed_gives_the_same_order(memory):
    """What a racy kernel computes is a trace of the order that its threads ran in."""
    runs = [launch_wrong(memory, "missing_barrier", seed=seed).tobytes() for seed in (3, 3, 4, None)]
    assert runs[0] == runs[1]
    assert len(set(runs)) == 3


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ('extern "C" __global__ void k(float* x) {\n  x[0] = INFINITY;\n}', 2, "INFINITY"),
        ("\n#include <cstdint>\n", 2, "cstdint"),
        ('extern "C" __global__ void k(int* x) {\n\n  uint8_t y = 3;\n}', 3, "uint8_t"),
        ('extern __shared__ float x[];\nextern "C" __global__ void k() {}', 1, "not allowed outside functions"),
        ("%s a() { %s float x[]; }\n%s b() { %s int x[]; }" % (("__device__ void", "extern __shared__") * 2), 2, "x"),
    ],
)
def test_what_does_not_compile_is_shown_in_the_kernels_lines(source, line, message):
    with pytest.raises(emulator.CompileError, match=message) as caught:
        emulator.Module(source)
    assert f"kernel.cu:{line}:" in str(caught.value)
    assert source.splitlines()[line - 1].strip() in str(caught.value)


def test_errors_of_the_host(memory):
    with pytest.raises(emulator.UnknownKernel, match=r"no kernel 'sum': this module has row_sums, transpose"):
        module(CORRECT).kernel("sum")
    kernel = module(CORRECT).kernel("numbers")
    for grid, block, shared, message in [
        ((0, 1, 1), (1, 1, 1), 0, "grid"),
        ((1, 1, 1), (1, 1, 65), 0, "block"),
        ((1, 1, 1), (64, 32, 1), 0, "2048 threads"),
        ((1, 1, 1), (32, 1, 1), 1 << 20, "dynamic shared memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernel.launch(grid, block, [memory.alloc(4)], shared)
    with pytest.raises(ValueError, match="sanitize='memory' is none of"):
        emulator.Module(CORRECT, "memory")


def test_address_sanitizer_in_a_process_of_its_own():
    """It knows the bounds of static shared memory too."""
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import emulator, numpy as np\n"
        f"source = open({str(HERE / 'kernels/wrong.cu')!r}).read()\n"
        "memory = emulator.Memory(); x, out = memory.upload(np.zeros(128, np.int32)), memory.alloc(512)\n"
        "kernel = emulator.Module(source, 'address').kernel('past_static_shared')\n"
        "kernel.launch((1, 1, 1), (127, 1, 1), [x, out]); print('fine', flush=True)\n"
        "kernel.launch((1, 1, 1), (128, 1, 1), [x, out]); print('not caught')\n"
    )
    environment = emulator.address_environment()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
    assert "global-buffer-overflow" in done.stderr
    assert f"kernel.cu:{line_of('past_static_shared')}" in done.stderr
    with pytest.raises(emulator.EmulatorError, match="address_environment"):
        emulator.Module(WRONG, "address")


def test_a_library_is_found_also_where_another_process_has_made_the_same_once_more(tmp_path):
    library, again = tmp_path / "library.so", tmp_path / "again.so"
    for copy in (library, again):
        shutil.copy(_ctypes.__file__, copy)
    loaded = ctypes.CDLL(str(library))
    before = base_of(library)
    again.replace(library)
    assert loaded is not None
    assert before is not None
    assert base_of(library) == before
