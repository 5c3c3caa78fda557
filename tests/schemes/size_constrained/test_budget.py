"""Sizes as users write them, and the cost of codes in each unit."""

import lzma

import numpy as np
import pytest

from tfcompress.cost.arithmetic import entropy_bits
from tfcompress.quantizers.packing import pack
from tfcompress.schemes.size_constrained import budget as budget_module
from tfcompress.schemes.size_constrained.budget import (
    SizeBudget,
    coded_bytes,
    parse_size,
)

UNITS = ("value_bits", "xz_bytes", "bytes")


def codes(shape, limit, density, seed=0):
    """int8 array with that share of non-zero codes, of all levels up to the limit."""
    rng = np.random.default_rng(seed)
    levels = [level for level in range(-limit, limit + 1) if level]
    drawn = rng.choice(levels, size=shape) * (rng.random(shape) < density)
    drawn.flat[: len(levels)] = levels
    return drawn.astype(np.int8)


@pytest.mark.parametrize("size, expected", [
    (5000, 5000.0), (2.5e6, 2.5e6), (np.int64(7), 7.0),
    ("100 B", 100.0), ("100kB", 1e5), (" 1.5 MB ", 1.5e6), ("3 kib", 3 * 2**10),
    ("1.5 MiB", 1.5 * 2**20), (".5 KB", 500.0),
    ("1/50", 120.0), ("0.02", 120.0), (" 1/3 ", 2000.0), ("2", 12000.0),
])  # fmt: skip
def test_parse_size_takes_bytes_units_and_shares(size, expected):
    found = parse_size(size, 6000)
    assert isinstance(found, float) and found == pytest.approx(expected)


@pytest.mark.parametrize("size", [
    "", " ", "kB", "100 GB", "100 k", "1/50 kB", "-1 kB", "0 MB", "1.2.3 B", "a lot",
    "nan", "inf", "1e3 B", "1/0", 0, -5, float("nan"), float("inf"), None, True, b"1 B",
    [100], 10**400,
])  # fmt: skip
def test_parse_size_refuses_everything_else(size):
    with pytest.raises(ValueError, match=r"`size` (has|is).*Received: size="):
        parse_size(size, 6000)


@pytest.mark.parametrize("unit", UNITS)
def test_budget_allows_its_total_less_the_overhead(unit):
    budget = SizeBudget(1000, unit, "uniform", overhead=100)
    assert budget.allowed() == {"value_bits": 900}.get(unit, 8 * 900)
    assert budget.sparse == (unit != "bytes")


@pytest.mark.parametrize("codebook, bits, index", [
    ("uniform", 2, 1), ("uniform", 3, 3), ("uniform", 8, 8),
    ("kmeans", 1, 1), ("kmeans", 2, 2), ("kmeans", 8, 8),
])  # fmt: skip
def test_value_bits_are_indices_of_non_zero_weights(codebook, bits, index):
    """Also where not all levels are in use."""
    budget = SizeBudget(1000, "value_bits", codebook)
    assert budget.rate(np.array([5, 0]), 400, bits) == 5 * index
    codes = np.array([0, 1, 1, -1, 0], np.int8)
    assert budget.size_of({"a": (codes, bits)}) == 3 * index


@pytest.mark.parametrize("bits, container", [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_rate_in_bytes_is_the_container_of_each_weight(bits, container):
    rate = SizeBudget(1000, "bytes", "uniform").rate(np.array([3, 4]), 400, bits)
    assert rate == 400 * container


@pytest.mark.parametrize("counts", [[0], [400], [10, 20, 0, 70], [200, 200]])
def test_rate_in_xz_bytes_is_the_entropy_of_the_codes(counts):
    codes = np.repeat(np.arange(len(counts) + 1), [400 - sum(counts), *counts])
    rate = SizeBudget(1000, "xz_bytes", "uniform").rate(np.array(counts), 400, 3)
    assert rate == pytest.approx(entropy_bits(codes))


@pytest.mark.parametrize("unit", UNITS)
def test_nominal_bits_of_codes_in_each_unit(unit):
    named = {"a": (codes((40, 9), 1, 0.2), 2), "b": (codes((3, 3, 9), 3, 0.6), 3)}
    nominal = SizeBudget(1000, unit, "uniform").nominal_bits(named)
    for (name, (array, _)), bits, index in zip(
        named.items(), (2, 4), (1, 3), strict=True
    ):
        expected = {
            "value_bits": index * np.count_nonzero(array),
            "bytes": bits * array.size,
            "xz_bytes": entropy_bits(array),
        }[unit]
        assert nominal[name] == pytest.approx(expected)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("codebook", ["uniform", "kmeans"])
def test_size_of_codes_in_each_unit(unit, codebook):
    """A k-means codebook is stored with 8 bits, however few levels it has."""
    arrays = {"a": codes((40, 9), 1, 0.2), "b": codes((3, 3, 9), 3, 0.6, seed=1)}
    named = {"a": (arrays["a"], 2), "b": (arrays["b"], 3)}
    containers = {"uniform": (2, 4), "kmeans": (8, 8)}[codebook]
    packed = [
        pack(array, bits)
        for array, bits in zip(arrays.values(), containers, strict=True)
    ]
    nonzeros = {name: np.count_nonzero(array) for name, array in arrays.items()}
    expected = {
        # A uniform grid of 2 bits has 2 levels, of 3 bits 6.
        "value_bits": {"uniform": 1, "kmeans": 2}[codebook] * nonzeros["a"]
        + 3 * nonzeros["b"],
        "bytes": 70 + sum(map(len, packed)),
        "xz_bytes": 70 + len(lzma.compress(b"".join(map(bytes, packed)), preset=9)),
    }[unit]
    assert SizeBudget(1000, unit, codebook, overhead=70).size_of(named) == expected


def test_coded_bytes_are_packed_or_compressed():
    named = {"a": (codes((5, 5), 1, 0.5), 2), "b": (codes((31,), 15, 0.5), 5)}
    assert coded_bytes(named, compressed=False) == 7 + 31  # ceil(25 * 2 / 8), 31
    many = {"zeros": (np.zeros((100, 100), np.int8), 8)}
    assert coded_bytes(many, compressed=False) == 10_000
    assert coded_bytes(many, compressed=True) < 150


@pytest.mark.parametrize("unit", UNITS)
def test_calibrated_budget_allows_nominal_bits_by_the_measured_size(unit):
    budget = SizeBudget(10_000, unit, "uniform", overhead=200)
    named = {"a": (codes((90, 50), 1, 0.2), 2)}
    real = budget.calibrate(named)
    assert real == budget.size_of(named)
    [nominal] = budget.nominal_bits(named).values()
    allowed = nominal / (real - 200) * (10_000 - 200)
    for _ in range(2):  # not on top of the last
        assert budget.allowed() == pytest.approx(allowed)
        budget.calibrate(named)
    bits_per_unit = {"value_bits": 1}.get(unit, 8)
    for array in (np.zeros(9), np.ones(10**5)):  # limits
        budget.calibrate({"a": (array.astype(np.int8), 2)})
        assert 9800 / 4 <= budget.allowed() / bits_per_unit <= 9800 * 4


def test_estimate_of_many_codes_is_their_size_once_measured():
    rng = np.random.default_rng(0)
    codes = {"a": (rng.binomial(6, 0.5, 400_000).astype("int8") - 3, 4)}
    budget = SizeBudget(10**6, "xz_bytes", "uniform", overhead=100)
    assert budget.estimate_of(codes) == pytest.approx(budget.size_of(codes), rel=0.2)
    size = budget.measure(codes)
    assert size == budget.size_of(codes) == pytest.approx(budget.estimate_of(codes))
    fewer = {"a": (codes["a"][0][:300_000], 4)}
    expected = budget.size_of(fewer)
    assert budget.estimate_of(fewer) == pytest.approx(expected, rel=0.01)


def test_sizes_of_large_models_are_estimated_by_a_sample(monkeypatch):
    rng = np.random.default_rng(0)
    deviations = 2.0 ** np.arange(5)  # of the codes of each kernel
    codes = {
        str(x): (np.clip(rng.normal(0, x, 2**20), -120, 120).astype("int8"), 8)
        for x in deviations
    }
    budget = SizeBudget(10**6, "xz_bytes", "uniform", overhead=100)
    size = budget.size_of(codes)
    lengths = []
    compress = budget_module.xz_bytes
    monkeypatch.setattr(
        budget_module, "xz_bytes", lambda x: lengths.append(len(x)) or compress(x)
    )
    assert budget.measure(codes) == pytest.approx(size, rel=0.005)
    assert budget.estimate_of(codes) == pytest.approx(size, rel=0.005)
    assert lengths == [2**21]
