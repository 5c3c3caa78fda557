"""MACs of graphs, as budgets count them."""

import keras
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.cost import layer_costs
from tfcompress.cost.layer_macs import layer_macs
from tfcompress.graph.graph import Graph

SCHEMES = {
    "bits": lambda: tfc.BitSharing(penalty=1.0),
    "ternary": lambda: tfc.PrunedTernary(),
    "ranks": lambda: tfc.Decomposition(penalty=1.0),
}


def net():
    inputs = keras.Input((8, 6, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.Conv2DTranspose(4, 3, strides=2)(x)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def expected(model):
    return {cost.name: cost.macs for cost in layer_costs(model) if cost.macs}


def test_layer_macs_are_those_of_layer_costs():
    model = net()
    rows = layer_macs(Graph(model))
    assert {row.name: row.macs for row in rows} == expected(model)
    assert not any(row.open_size for row in rows)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_layer_macs_of_students_are_those_of_layer_costs(scheme):
    student = tfc.compress(net(), scheme())
    found = {row.name: row.macs for row in layer_macs(Graph(student))}
    assert found == expected(student)


def test_layer_macs_of_a_packed_model_are_those_of_layer_costs():
    student = tfc.compress(net(), tfc.PrunedTernary())
    tiny = tfc.finalize(student)
    found = {row.name: row.macs for row in layer_macs(Graph(tiny))}
    assert found == expected(tiny)


def test_layer_macs_tell_an_open_size():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3)(inputs))
    (row,) = layer_macs(Graph(model))
    assert row.macs is None and row.open_size
