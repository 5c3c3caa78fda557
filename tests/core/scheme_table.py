"""The schemes in the tests that train with each of them."""

import warnings

import pytest

import tfcompress as tfc

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.9),
    "bits": lambda: tfc.BitSharing(bops="1/40"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/20"),
    "ranks": lambda: tfc.Decomposition(macs="1/2"),
}
EPOCHS, BATCH, SAMPLES = 4, 32, 192
RATE = 0.02
UNMET = "does not meet the goal of its scheme"


def each_scheme(*slow):
    """All schemes; those in `slow` in the long tests only."""
    marks = {name: pytest.mark.slow if name in slow else () for name in SCHEMES}
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks[name]) for name in SCHEMES]
    )


def assert_kept(student):
    """The student has all that was asked for, and its final form too."""
    assert student.scheme.unmet(student) is None
    measured = student.scheme.measure(student)
    assert measured["phase"] == 1.0
    # Ternary kernels keep the largest weight of each filter.
    assert 0.8 < measured["budget_ratio"] < 1.02
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfc.finalize(student)
