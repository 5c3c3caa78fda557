import lzma

import numpy as np
import pytest

from tfcompress.cost.arithmetic import entropy_bits
from tfcompress.quantizers.packing import pack
from tfcompress.schemes.size_budget import SizeBudget, coded_bytes, parse_size

COUNTED = ("value_bits", "xz_bytes", "bytes")


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
def test_sizes_with_units_and_shares(size, expected):
    found = parse_size(size, 6000)
    assert isinstance(found, float) and found == pytest.approx(expected)


@pytest.mark.parametrize("size", [
    "", " ", "kB", "100 GB", "100 k", "1/50 kB", "-1 kB", "0 MB", "1.2.3 B", "a lot",
    "nan", "inf", "1e3 B", "1/0", 0, -5, float("nan"), float("inf"), None, True, b"1 B",
    [100],
])  # fmt: skip
def test_everything_else_is_refused(size):
    with pytest.raises(ValueError, match=r"`size` (has|is).*Received: size="):
        parse_size(size, 6000)


@pytest.mark.parametrize("counted", COUNTED)
def test_a_budget_allows_its_bits_but_for_what_is_no_codes(counted):
    budget = SizeBudget(1000, counted, "uniform", overhead=100)
    assert budget.allowed() == {"value_bits": 900}.get(counted, 8 * 900)
    assert budget.sparse == (counted != "bytes")


@pytest.mark.parametrize("counted, codebook, expected", [
    ("value_bits", "uniform", {2: 1, 3: 3, 4: 4, 5: 5, 8: 8}),
    ("value_bits", "kmeans", {1: 1, 2: 2, 3: 3, 8: 8}),
    ("bytes", "uniform", {2: 2, 3: 4, 4: 4, 5: 8, 8: 8}),
])  # fmt: skip
@pytest.mark.parametrize("density", [0.01, 0.5, 1.0])
def test_a_value_costs_its_index_or_its_container(counted, codebook, expected, density):
    budget = SizeBudget(1000, counted, codebook)
    assert {bits: budget.cost(bits, density) for bits in expected} == expected


@pytest.mark.parametrize("codebook, value", [("uniform", 1), ("kmeans", 2)])
@pytest.mark.parametrize("density", [0.003, 0.1, 0.5, 0.9])
def test_positions_cost_the_entropy_of_zero_or_not(codebook, value, density):
    size = 1_000_000
    kept = round(density * size)
    positions = entropy_bits(np.repeat([1, 0], [kept, size - kept])) * size
    budget = SizeBudget(1000, "xz_bytes", codebook)
    received = (budget.cost(2, density) - value) * kept
    assert received == pytest.approx(positions / size, rel=1e-9)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_the_cost_is_finite_where_all_or_no_weights_are_kept(density):
    cost = SizeBudget(1000, "xz_bytes", "uniform").cost(4, density)
    assert 4 <= cost < 30
    if density == 1:
        assert cost == pytest.approx(4, abs=1e-3)


@pytest.mark.parametrize("counted", COUNTED)
@pytest.mark.parametrize("codebook", ["uniform", "kmeans"])
def test_what_codes_take(counted, codebook):
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
        "value_bits": 1 * nonzeros["a"] + 3 * nonzeros["b"],  # 2 levels and 6
        "bytes": 70 + sum(map(len, packed)),
        "xz_bytes": 70 + len(lzma.compress(b"".join(map(bytes, packed)), preset=9)),
    }[counted]
    assert SizeBudget(1000, counted, codebook, overhead=70).size_of(named) == expected


def test_coded_bytes_are_those_of_containers():
    named = {"a": (codes((5, 5), 1, 0.5), 2), "b": (codes((31,), 15, 0.5), 5)}
    assert coded_bytes(named, compressed=False) == 7 + 31  # ceil(25 * 2 / 8), 31
    many = {"zeros": (np.zeros((100, 100), np.int8), 8)}
    assert coded_bytes(many, compressed=False) == 10_000
    assert coded_bytes(many, compressed=True) < 150


@pytest.mark.parametrize("counted", COUNTED)
def test_what_codes_took_decides_how_many_bits_are_granted(counted):
    """With nominal bits that took twice their size, half as many are allowed."""
    budget = SizeBudget(1000, counted, "uniform", overhead=200)
    unit = 1 if counted == "value_bits" else 8
    budget.learn(nominal=300 * unit, size=200 + 600)
    assert budget.allowed() == pytest.approx(unit * 800 / 2)
    budget.learn(nominal=300 * unit, size=200 + 300)  # not on top of the last
    assert budget.allowed() == pytest.approx(unit * 800)
    for size in (200, 200 + 10**9):  # limits
        budget.learn(nominal=300 * unit, size=size)
        assert 800 / 4 <= budget.allowed() / unit <= 800 * 4
