"""Properties that hold for any input: packing, bounds, allocation, channel surgery."""

import itertools

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.graph import graphs
from tests.graph.removal import randomize, remove_some
from tfcompress.core.budget import at_least, at_most
from tfcompress.cost.knapsack import multiple_choice_knapsack
from tfcompress.quantizers.packing import pack, packed_bytes, unpack
from tfcompress.schemes.size_constrained.allocation import keep_largest

settings.register_profile("same each time", derandomize=True, deadline=None)
settings.load_profile("same each time")
FINITE = some.floats(-1e3, 1e3, width=32)
POSITIVE = some.floats(1e-3, 1e3)


@given(some.sampled_from([2, 4, 8]), some.data())
def test_unpack_inverts_pack(bits, data):
    low = -(2 ** (bits - 1))
    codes = data.draw(some.lists(some.integers(low, -low - 1), max_size=50))
    packed = pack(np.array(codes, int), bits)
    assert packed.size == packed_bytes(len(codes), bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(some.floats(1e-6, 1e18))
def test_bounds_as_text_keep_the_bounds(bound):
    assert bound <= float(at_least(bound)) <= 1.0011 * bound
    assert 0.9989 * bound <= float(at_most(bound)) <= bound


CHOICES = some.lists(some.tuples(POSITIVE, POSITIVE), min_size=1, max_size=4)


@given(some.lists(CHOICES, min_size=1, max_size=4), some.floats(0, 1), some.booleans())
def test_knapsack_keeps_its_budget_and_is_near_the_best(layers, share, off_hull):
    costs = {str(i): np.array([c for c, _ in layer]) for i, layer in enumerate(layers)}
    losses = {str(i): np.array([x for _, x in layer]) for i, layer in enumerate(layers)}
    least, most = (sum(f(x) for x in costs.values()) for f in (min, max))
    budget = (least + share * (most - least)) * (1 + 1e-9)
    chosen = multiple_choice_knapsack(costs, losses, budget, off_hull)

    def total(values, choices):
        return sum(values[name][i] for name, i in zip(values, choices, strict=True))

    ranges = [range(len(x)) for x in costs.values()]
    best = min(
        total(losses, choices)
        for choices in itertools.product(*ranges)
        if total(costs, choices) <= budget
    )
    received = [chosen[name] for name in costs]
    assert total(costs, received) <= budget * (1 + 1e-9)
    gain = max(x.max() - x.min() for x in losses.values())
    assert total(losses, received) <= best + gain + 1e-6


KERNEL = some.lists(FINITE, min_size=1, max_size=12)


@given(some.lists(some.tuples(KERNEL, POSITIVE), min_size=1, max_size=4), some.data())
def test_projection_keeps_the_largest_weights_within_its_budget(layers, data):
    weights = {str(i): np.float32(x) for i, (x, _) in enumerate(layers)}
    bits = {str(i): cost for i, (_, cost) in enumerate(layers)}
    least = {n: data.draw(some.integers(0, x.size)) for n, x in weights.items()}
    budget = data.draw(
        some.floats(0, 2 * sum(bits[n] * x.size for n, x in weights.items()))
    )
    masks = keep_largest(weights, bits, budget, least)
    required = sum(bits[n] * least[n] for n in weights)
    spent = sum(bits[n] * mask.sum() for n, mask in masks.items())
    assert spent <= max(budget, required) * (1 + 1e-9)
    for name, mask in masks.items():
        assert mask.sum() >= least[name]
        kept, dropped = (np.abs(weights[name][x]) for x in (mask, ~mask))
        assert not kept.size or not dropped.size or kept.min() >= dropped.max()


@settings(max_examples=8)
@given(
    some.sampled_from([graphs.chain, graphs.inverted_residual, graphs.basic_block]),
    some.integers(0, 2**16),
    some.floats(0.1, 0.8),
)
def test_removal_of_any_closed_channels_keeps_predictions(graph, seed, share):
    rng = np.random.default_rng(seed)
    inputs = keras.Input((8, 8, 3))
    model = randomize(keras.Model(inputs, graph(inputs)), rng)
    assert remove_some(model, rng, share=share)[-1] < 1e-5
