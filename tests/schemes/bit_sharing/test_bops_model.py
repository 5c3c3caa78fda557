"""BOPs of bits and filters, by hand and against the cost of real layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.graph import Graph
from tfcompress.schemes.bit_sharing.bops_model import BopsModel
from tfcompress.schemes.bit_sharing.search_space import SearchSpace

# MACs of `network`, on 8 x 8 x 3 images.
MACS = {
    "first": 3 * 3 * 3 * 4 * 8 * 8,
    "depthwise": 3 * 3 * 4 * 8 * 8,
    "second": 4 * 6 * 8 * 8,
    "shortcut": 3 * 6 * 8 * 8,
    "head": 6 * 5,
}


def network():
    """Only the filters of `first` can go; `depthwise` and `second` read them."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(6, 1, name="second")(x)
    x = layers.Add()([x, layers.Conv2D(6, 1, name="shortcut")(inputs)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(5, name="head")(x))


def model_of(model):
    return BopsModel(Graph(model), model)


def test_bops_model_has_a_term_per_layer_and_the_float_bops():
    bops_model = model_of(network())
    assert {t.name: t.macs for t in bops_model.terms} == MACS
    reads = {t.name: t.reads for t in bops_model.terms if t.reads}
    assert reads == {"depthwise": "first", "second": "first"}
    assert [t.makes for t in bops_model.terms if t.makes] == ["first"]
    assert bops_model.float_bops == 32 * 32 * sum(MACS.values())


@pytest.mark.parametrize("share", [1.0, 0.75, 0.25])
def test_total_is_the_sum_by_hand(share):
    bits = {"first": (8, 8), "depthwise": (4, 2), "second": (2, 4), "head": (8, 2)}
    found = model_of(network()).total(bits, {"first": share})
    expected = share * (
        MACS["first"] * 8 * 8 + MACS["depthwise"] * 4 * 2 + MACS["second"] * 2 * 4
    )
    expected += MACS["shortcut"] * 32 * 32 + MACS["head"] * 8 * 2
    assert found == pytest.approx(expected)


def test_bops_of_a_layer_shrink_with_the_filters_that_it_reads_and_makes():
    inputs = keras.Input((6, 6, 2))
    x = inputs
    for name in ("a", "b", "c"):
        x = layers.Conv2D(4, 1, name=name)(x)
    found = model_of(keras.Model(inputs, x)).total({}, {"a": 0.5, "b": 0.25, "c": 0.1})
    a, b, c = 2 * 4 * 36, 4 * 4 * 36, 4 * 4 * 36
    # The model returns the channels of c: they stay.
    assert found == 32 * 32 * (a * 0.5 + b * 0.5 * 0.25 + c * 0.25)


def test_nested_layer_that_is_called_twice_counts_twice():
    inner_in = keras.Input((6, 6, 2))
    inner = keras.Model(inner_in, layers.Conv2D(2, 1, name="conv")(inner_in), name="in")
    inputs = keras.Input((6, 6, 2))
    bops_model = model_of(keras.Model(inputs, inner(inner(inputs))))
    assert bops_model.total({"in/conv": (4, 2)}, {}) == 2 * (2 * 2 * 36) * 4 * 2


def test_total_is_differentiable_in_bits_and_shares():
    bops_model = model_of(network())
    weight_bits, share = tf.Variable(4.0), tf.Variable(0.5)
    with tf.GradientTape() as tape:
        total = bops_model.total({"second": (weight_bits, 8)}, {"first": share})
    to_bits, to_share = tape.gradient(total, (weight_bits, share))
    assert float(to_bits) == pytest.approx(MACS["second"] * 8 * 0.5)
    float_macs = MACS["first"] + MACS["depthwise"]
    expected = float_macs * 32 * 32 + MACS["second"] * 4 * 8
    assert float(to_share) == pytest.approx(expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_expected_bops_equal_the_cost_of_the_student_and_of_its_final_form(bits):
    student = tfc.compress(network(), tfc.BitSharing(penalty=0.0, group_size=1))
    space = SearchSpace(student)
    for layer in space.layers.values():
        for quantizer in (layer.kernel_quantizer, layer.input_quantizer):
            wanted = bits if len(quantizer.candidates) > 1 else quantizer.bits
            quantizer.gates.freeze(wanted)
    space.filter_gates["first"].freeze(np.ones(4, bool))
    # A student still has all of its filters.
    assert float(space.expected_bops()) == total_cost(layer_costs(student)).bops
    space.filter_gates["first"].freeze(np.array([True, False, True, True]))
    found = float(space.expected_bops())
    assert found == total_cost(layer_costs(tfc.finalize(student))).bops
    assert space.bops_model.float_bops == model_of(network()).float_bops
