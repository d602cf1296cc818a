"""Functions of elementwise IEEE operations, against decimal arithmetic of 50 digits."""

import decimal
import itertools
from decimal import Decimal

import numpy as np
import pytest

from distsgd.core.portable import LEAST_EXPONENT, cos_pi, exp, log, normals, power, rounded

decimal.getcontext().prec = 50
PI = Decimal("3.14159265358979323846264338327950288419716939937511")


def relative(found, wanted):
    return max(abs(float((Decimal(float(f)) - w) / w)) for f, w in zip(found, wanted, strict=True))


def cosine(x):
    """cos x as a series of 50 digits."""
    term = total = Decimal(1)
    for n in itertools.count(1):
        term *= -x * x / ((2 * n - 1) * (2 * n))
        total += term
        if abs(term) < Decimal(10) ** -45:
            return total
    raise AssertionError


def test_exp_is_within_its_error():
    rng = np.random.default_rng(0)
    x = np.concatenate([
        [0.0, -1e-300, -0.34657, 0.34657, -700.0, 700.0],
        -rng.exponential(3, 2000), rng.uniform(-690, 690, 1000), (np.arange(-300, 301) / 2) * 0.693,
    ])  # fmt: skip
    assert relative(exp(x), [Decimal(float(v)).exp() for v in x]) < 1e-14


def test_exp_of_very_small_numbers_and_in_place():
    x = np.array([-1e9, -np.inf, LEAST_EXPONENT, 0.0, np.nan])
    found = exp(x)
    assert found[0] == found[1] == found[2] < 1e-303
    assert found[3] == 1 and np.isnan(found[4])
    assert exp(x, out=x) is x
    np.testing.assert_array_equal(x, found)


def test_log_is_within_its_error():
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.uniform(1, 1000, 1000), 2.0 ** rng.uniform(-900, 900, 1000), [2**-53, 0.7, 0.71, 1.42],
    ])  # fmt: skip
    assert relative(log(x), [Decimal(float(v)).ln() for v in x]) < 1e-15
    near = 1 + rng.uniform(-0.2, 0.3, 1000)
    wanted = [float(Decimal(float(v)).ln()) for v in near]
    np.testing.assert_allclose(log(near), wanted, rtol=1e-14, atol=0)
    assert log(np.array([1.0]))[0] == 0


def test_cosine_is_within_its_error():
    t = np.concatenate([np.linspace(0, 1, 1001), np.random.default_rng(0).uniform(0, 1, 500)])
    wanted = np.array([float(cosine(PI * Decimal(float(v)))) for v in t])
    assert np.abs(cos_pi(t) - wanted).max() < 1e-15
    assert list(cos_pi(np.array([0, 0.5, 1]))) == [1, 0, -1]
    assert float(cos_pi(0.25)) == cos_pi(np.array([0.25]))[0]


@pytest.mark.parametrize(("base", "n"), [(0.999, 0), (0.999, 1), (0.999, 10**5), (0.9, 1234)])
def test_powers_are_within_their_error(base, n):
    wanted = Decimal(base) ** n
    assert relative([power(base, n)], [wanted]) < 1e-15 * max(1, n)


@pytest.mark.parametrize("bits", [-3, 0, 13, 32])
def test_rounding_is_that_to_the_nearest_even(bits):
    values = np.random.default_rng(bits + 9).standard_normal(1000) * 2.0 ** (10 - bits)
    values[:10] = (np.arange(10) - 4.5) * 2.0**-bits
    np.testing.assert_array_equal(rounded(values, bits), np.rint(values * 2.0**bits) / 2.0**bits)
    inplace = values.copy()
    assert rounded(inplace, bits, out=inplace) is inplace
    np.testing.assert_array_equal(inplace, rounded(values, bits))


def test_normal_deviates_are_normal():
    found = normals([3, 1], 200_000)
    assert abs(found.mean()) < 0.01 and abs(found.std() - 1) < 0.01
    assert abs((found**4).mean() - 3) < 0.1 and abs(found).max() < 8.6
    share = [np.mean(found < limit) for limit in (-1.96, 0, 1.96)]
    np.testing.assert_allclose(share, [0.025, 0.5, 0.975], atol=0.005)
    np.testing.assert_array_equal(normals([3, 1], 10), normals([3, 1], 10))
    assert not np.array_equal(normals([3, 1], 10), normals([3, 2], 10))
