"""Costs of kept channels and ranks, on a network that is counted by hand."""

import numpy as np
import pytest

from tfcompress.cost import layer_costs, total_cost

FULL_RANKS = {"a": 8, "b": 12, "c": 5}


def test_full_cost_is_that_of_the_model(width_model, keep_groups, counted_net):
    macs, params = width_model("macs"), width_model("params")
    assert macs.full_cost() == macs.cost(keep_groups(), FULL_RANKS)
    assert macs.full_cost() == total_cost(layer_costs(counted_net)).macs
    assert params.full_cost() == total_cost(layer_costs(counted_net)).params


def test_cost_of_kept_channels_is_that_of_narrower_layers(width_model, keep_groups):
    keep = keep_groups(a=5, b=7)
    # 6 x 6 positions of a, 4 x 4 of b, 2 x 2 of the depthwise convolution.
    expected = 36 * 27 * 5 + 16 * 45 * 7 + 4 * 9 * 7 + 7 * 5
    assert width_model("macs").cost(keep, FULL_RANKS) == pytest.approx(expected)
    expected = 27 * 5 + 4 * 5 + (45 + 1) * 7 + (9 + 1) * 7 + (7 + 1) * 5
    assert width_model("params").cost(keep, FULL_RANKS) == pytest.approx(expected)


def test_cost_of_kept_ranks_is_that_of_two_layers(width_model, keep_groups):
    """Two layers for b: 3 filters of 3 x 3 x 5, and 7 of 1 x 1 x 3."""
    cost = width_model("macs").cost(keep_groups(a=5, b=7), {**FULL_RANKS, "b": 3})
    expected = 36 * 27 * 5 + 16 * (45 * 3 + 3 * 7) + 4 * 9 * 7 + 7 * 5
    assert cost == pytest.approx(expected)


@pytest.mark.parametrize(("margin", "largest"), [(1.0, 10), (0.7, 7), (0.4, 4)])
def test_a_layer_is_decomposed_only_within_the_margin(
    width_model, keep_groups, margin, largest
):
    """b costs 72 * 12 = 864 per position, a rank of it 72 + 12 = 84."""
    model = width_model(margin=margin)
    decomposed = [model.is_decomposed("b", keep_groups(), r) for r in range(13)]
    assert decomposed == [r <= largest for r in range(13)]
    costs, merged_cost = model.rank_costs("b", keep_groups())
    assert merged_cost == 16 * 864
    np.testing.assert_allclose(costs[:largest], 16 * 84 * np.arange(1, largest + 1))
    assert np.isinf(costs[largest:]).all()


def test_a_layer_that_is_never_decomposed_stays_one_layer(width_model, keep_groups):
    model = width_model()
    assert model.is_decomposed("b", keep_groups(), 1)
    model.never_decompose("b")
    assert not model.is_decomposed("b", keep_groups(), 1)


@pytest.mark.parametrize("unit", ["macs", "params"])
def test_savings_are_those_of_one_channel_less(
    width_model, keep_groups, channels, unit
):
    model = width_model(unit)
    savings = model.savings(len(channels.frozen))
    for group in np.concatenate([channels.written["a"], channels.written["b"]]):
        keep = keep_groups()
        keep[group] = False
        saved = model.full_cost() - model.cost(keep, FULL_RANKS)
        assert savings[group] == pytest.approx(saved)
