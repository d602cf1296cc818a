"""Functions that give the same bits on every machine: exp, log, cos, powers, random normals.

Each is made of elementwise +, -, *, /, square roots and roundings to whole numbers, which IEEE 754
defines to the last bit. Nothing else is used: numpy's own exp and log differ between the vector
units of processors, and those of the C library between its versions. numpy stores every
intermediate result, so that no product and sum are fused into one rounding.

The largest errors, against decimal arithmetic of 50 digits, are tested: relative ones of 1e-14
(exp) and 1e-15 (log, power per multiplication), an absolute one of 1e-15 (cos).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distsgd.core.arrays import Floats

__all__ = ["LEAST_EXPONENT", "cos_pi", "exp", "log", "normals", "power", "rounded"]

Array = NDArray[np.float64]

_LN2_HIGH, _LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
"""ln 2 in two parts; the first has 32 bits, so that k times it is exact for k < 2**20."""

_STEPS = 64
_STEP_HIGH, _STEP_LOW, _INVERSE_STEP = _LN2_HIGH / _STEPS, _LN2_LOW / _STEPS, 92.33248261893674
"""ln 2 / 64 in two parts, and 64 / ln 2."""

_EXP = (1.0, 1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120)
"""Taylor coefficients of exp: for |r| <= ln 2 / 128 the rest is below 4e-17."""


def _roots() -> NDArray[np.float64]:
    """2**(j / 64) for j from 0 to 63, by square roots and products."""
    roots, factor = np.ones(_STEPS), 2.0
    for bit in (32, 16, 8, 4, 2, 1):
        factor = math.sqrt(factor)
        roots[(np.arange(_STEPS) & bit) > 0] *= factor
    return roots


_ROOTS = _roots()

_COS = (
    1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200,
    1 / 20922789888000,
)  # fmt: skip
_SIN = (
    1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800,
    -1 / 1307674368000, 1 / 355687428096000,
)  # fmt: skip
"""Taylor coefficients of cos x and of sin x / x in powers of x**2, for |x| <= pi / 4."""

_PI = 3.141592653589793

LEAST_EXPONENT = -700.0
"""Below it, `exp` gives exp(-700), which is 1e-304."""


def rounded(values: Floats, bits: int, out: Floats | None = None) -> Floats:
    """The nearest multiples of 2**-bits, halfway cases to the even one.

    By adding 1.5 * 2**(52 - bits), a number so large that its last bit is worth 2**-bits, and
    subtracting it. Values of 2**(51 - bits) or more are rounded to coarser multiples.

    Args:
        values: float64.
        bits: of the fraction; may be negative.
        out: overwritten and returned; None for a new array.
    """
    large = 1.5 * 2.0 ** (52 - bits)
    sums = np.add(values, large, out=out)
    return np.subtract(sums, large, out=sums)


def exp(values: Floats, out: Floats | None = None) -> Floats:
    """e**x for x <= 709, with a relative error below 1e-14.

    2**n 2**(j / 64) e**r with x = (64 n + j) ln 2 / 64 + r.

    Args:
        values: float64; those below `LEAST_EXPONENT` count as that.
        out: overwritten and returned; may be ``values``; None for a new array.
    """
    x = np.maximum(values, LEAST_EXPONENT)
    k = x * _INVERSE_STEP
    np.rint(k, out=k)
    part = k * _STEP_HIGH
    x -= part
    np.multiply(k, _STEP_LOW, out=part)
    x -= part
    with np.errstate(invalid="ignore"):  # a NaN stays one
        steps = k.astype(np.int64)
    power = np.multiply(x, _EXP[-1], out=out)
    power += _EXP[-2]
    for coefficient in _EXP[-3::-1]:
        power *= x
        power += coefficient
    power *= _ROOTS[steps & (_STEPS - 1)]
    steps >>= 6
    steps += 1023
    steps <<= 52
    power *= steps.view(np.float64)  # 2**n, made of its bits
    return power


def log(values: Floats) -> Array:
    """ln x of float64 above 0, with a relative error below 1e-15 away from 1.

    x = m 2**k with m from sqrt(1/2) to sqrt(2); ln m = 2 (s + s**3 / 3 + s**5 / 5 + ...) with
    s = (m - 1) / (m + 1).
    """
    m, k = np.frexp(values)  # m from 1/2 to 1: a change of bits alone
    low = m < 0.7071067811865476
    m = np.where(low, m + m, m)
    exponent = k.astype(np.float64) - low
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = np.full_like(s, 1 / 21)
    for n in range(19, 1, -2):
        series *= square
        series += 1 / n
    series *= square * s
    small = (s + s) + (series + series)
    small += exponent * _LN2_LOW
    small += exponent * _LN2_HIGH
    return small


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value *= x
        value += coefficient
    return value


def cos_pi(turns: Floats | float) -> Array:
    """cos(pi t) for t from 0 to 1, with an error below 1e-15.

    Args:
        turns: t, float64.
    """
    t = np.asarray(turns, dtype=np.float64)
    from_end = np.minimum(t, 1.0 - t)  # from 0 to 1/2; both differences are exact, or t is tiny
    outer = from_end * _PI
    inner = (0.5 - from_end) * _PI
    near_end = _polynomial(_COS, outer * outer)
    near_middle = inner * _polynomial(_SIN, inner * inner)
    size = np.where(from_end < 0.25, near_end, near_middle)
    return np.where(t > 0.5, -size, size)


def power(base: float, exponent: int) -> float:
    """base**n for n >= 0, by repeated squaring: at most 2 log2(n) roundings."""
    value = 1.0
    while exponent:
        if exponent & 1:
            value *= base
        base *= base
        exponent >>= 1
    return value


def normals(key: list[int], count: int) -> Array:
    """Independent normal deviates, float64, shape (count,), from a key of the random stream.

    r cos(2 pi u) with r = sqrt(-2 ln v), u and v uniform. numpy's own come from the C library's
    exp and log. The raw bits of PCG64 are what numpy guarantees.

    Source: Box and Muller 1958.
    """
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(2 * count)
    fractions = (raw >> np.uint64(11)).astype(np.float64)
    v = (fractions[:count] + 1.0) * 2.0**-53
    u = fractions[count:] * 2.0**-52
    turns = np.where(u > 1.0, 2.0 - u, u)
    radius = np.sqrt(log(v) * -2.0)
    return np.asarray(radius * cos_pi(turns))
