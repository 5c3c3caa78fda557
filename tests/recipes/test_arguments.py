"""Texts of the command line."""

import pytest
from absl import app

from recipes.common.arguments import refuse_arguments, share_or_count


def test_share_or_count_keeps_shares_and_reads_counts_above_1():
    assert share_or_count("1/60") == "1/60"
    assert share_or_count("0.02") == "0.02"
    assert share_or_count("4e7") == 4e7


def test_refuse_arguments_accepts_flags_only():
    refuse_arguments(["recipe"])
    with pytest.raises(app.UsageError, match="only --flags.*cifar10"):
        refuse_arguments(["recipe", "cifar10"])
