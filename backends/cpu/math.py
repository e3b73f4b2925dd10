"""f32 functions in IR, for scalars and vectors of any length: no library call, no table, no fast-math flag.

Every function takes and returns values of one type, f32 or a vector of it. NaN in, NaN out. Errors are those
of the tests, against numpy in double precision; a target without fused multiplication may lose half an ulp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce

from briolette.backends.cpu.build import I32, Build, Value, like

# Added to a float of small magnitude it leaves the nearest integer in the lowest bits: 1.5 * 2^23.
ROUNDER, ROUNDER_BITS = 12582912.0, 0x4B400000

# ln 2 in two pieces (Cody and Waite 1980): nine bits, so that n * HIGH is exact for |n| < 2^15, and the rest.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4

# Minimax polynomials of Cephes (Moshier), expf.c and tanhf.c, highest power first:
# exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2, and tanh(x) = x + x^3 P(x^2) for |x| < 0.625.
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
TANH = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def _polynomial(b: Build, x: Value, coefficients: Sequence[float]) -> Value:
    first, *rest = (b.const(x.type, c) for c in coefficients)
    return reduce(lambda value, c: b.fma(value, x, c), rest, first)


def exp(b: Build, x: Value) -> Value:
    """e to the x, within 1 ulp, subnormal results too: 0 from -104 down, infinity from 88.73 up."""
    x = b.max(-104.0, b.min(89.0, x))  # the operand that may be NaN comes second and so stays
    n, power = _exp_parts(b, x)
    # n goes from -150 to 128, further than one f32 power of two; of two factors only the last rounds.
    half = b.ir.ashr(n, b.const(n.type, 1))
    for part in (half, b.sub(n, half)):
        power = b.mul(power, _two_to(b, part, x))
    return power


def exp_normal(b: Build, x: Value) -> Value:
    """e to the x from -87 to 88, bit for bit as `exp` has it, for less; anything for other numbers."""
    n, power = _exp_parts(b, x)
    return b.mul(power, _two_to(b, n, x))


def _exp_parts(b: Build, x: Value) -> tuple[Value, Value]:
    """n, i32, and y: e to the x is y times 2 to the n."""
    ty = x.type
    rounded = b.fma(x, b.const(ty, math.log2(math.e)), b.const(ty, ROUNDER))
    n, whole = b.sub(b.bits(rounded, like(ty, I32)), ROUNDER_BITS), b.sub(rounded, ROUNDER)
    r = b.fma(whole, b.const(ty, -LN2_HIGH), x)
    r = b.fma(whole, b.const(ty, -LN2_LOW), r)
    return n, b.add(b.fma(b.mul(r, r), _polynomial(b, r, EXP), r), 1.0)


def _two_to(b: Build, n: Value, x: Value) -> Value:
    return b.bits(b.shl(b.add(n, 127), 23), x.type)


def tanh(b: Build, x: Value) -> Value:
    """Hyperbolic tangent, relative error below 2e-7 (a subnormal or a small x keeps its own precision)."""
    integers = like(x.type, I32)
    bits = b.bits(x, integers)
    size = b.bits(b.bit_and(bits, 0x7FFFFFFF), x.type)
    square = b.mul(size, size)
    near = b.fma(b.mul(square, _polynomial(b, square, TANH)), size, size)
    far = b.sub(1.0, b.div(2.0, b.add(exp(b, b.add(size, size)), 1.0)))
    found = b.ir.select(b.ir.fcmp_ordered("<", size, b.const(x.type, 0.625)), near, far)
    return b.bits(b.bit_or(b.bits(found, integers), b.bit_and(bits, 0x80000000)), x.type)


def rsqrt(b: Build, x: Value) -> Value:
    """1 / sqrt(x), both operations rounded exactly, as numpy does it."""
    return b.div(1.0, b.intrinsic("llvm.sqrt", x.type, [x], over=[x.type]))


def gelu(b: Build, x: Value) -> Value:
    """GELU, tanh form (Hendrycks and Gimpel 2016, section 2), within 2e-7 |x|.

    (1 + tanh u) / 2 is the logistic function of 2u; written so, the negative tail does not cancel.
    """
    slope = 2 * math.sqrt(2 / math.pi)
    factor = b.fma(b.mul(x, x), b.const(x.type, -slope * 0.044715), b.const(x.type, -slope))
    return b.div(x, b.add(exp(b, b.mul(x, factor)), 1.0))


def silu(b: Build, x: Value) -> Value:
    """x times its logistic function (Elfwing et al. 2018), within 2 ulp."""
    return b.div(x, b.add(exp(b, b.neg(x)), 1.0))


def softcap(b: Build, x: Value, cap: float) -> Value:
    """cap * tanh(x / cap)."""
    return b.mul(tanh(b, b.div(x, cap)), cap)


# How kernels emit the elementwise ops of `briolette.compiler.ops`: operands by position, attributes by name.
ELEMENTWISE: dict[str, Callable[..., Value]] = {
    "add": Build.add,
    "sub": Build.sub,
    "mul": Build.mul,
    "div": Build.div,
    "exp": exp,
    "tanh": tanh,
    "rsqrt": rsqrt,
    "gelu": gelu,
    "silu": silu,
    "softcap": softcap,
}
