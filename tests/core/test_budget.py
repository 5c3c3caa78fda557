"""Budgets as counts and as shares of the float model."""

import fractions

import numpy as np
import pytest

from tfcompress.core.budget import parse_budget


@pytest.mark.parametrize("budget, expected", [
    ("1/60", 100.0), ("1/2.5", 2400.0), ("0.02", 120.0), (" 1/3 ", 2000.0),
    ("2", 12000.0), ("1e-3", 6.0),
    (7, 7.0), (2.5e9, 2.5e9), (np.float32(8), 8.0), (np.int64(9), 9.0),
    (1, 1.0), (fractions.Fraction(9, 2), 4.5),
])  # fmt: skip
def test_parse_budget_returns_counts_and_shares_in_absolute_units(budget, expected):
    found = parse_budget(budget, 6000, "bops")
    assert isinstance(found, float) and found == pytest.approx(expected)


@pytest.mark.parametrize("budget", [
    "", "half", "1/2/3", "1/0", "1/", "60%", "-1/60", "0", "nan", "inf", "1e999",
    0, -3, 0.5, 1e-9, float("nan"), float("inf"), 10**400, True, None, b"1/60", [1], 1j,
])  # fmt: skip
def test_parse_budget_refuses_what_is_no_positive_count_or_share(budget):
    with pytest.raises(
        ValueError, match=r"`bops` is a count of at least 1.*Received: bops="
    ):
        parse_budget(budget, 6000, "bops")
