import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.graph.parts import blocks
from tfcompress.graph.parts.replacement import replace_by_parts


class OwnConv(layers.Conv2D):
    """Convolution with arguments of its own, and no `get_config`."""

    def __init__(self, size, act=None, **kwargs):
        super().__init__(4, size, padding="same", activation=act, **kwargs)
        self.size = size

    def helper(self):
        return self.size


class OwnDense(layers.Dense):
    def get_config(self):
        config = super().get_config()
        return {"width": config.pop("units"), **config}


class OwnDepthwise(layers.DepthwiseConv2D):
    pass


class OwnSeparable(layers.SeparableConv2D):
    pass


class OwnEinsum(layers.EinsumDense):
    pass


SAME = {
    "Conv2D": lambda: OwnConv(3, "relu", name="block"),
    "function": lambda: OwnConv(3, lambda x: 2 * ops.relu(x), name="block"),
    "Dense": lambda: OwnDense(5, kernel_regularizer="l2", name="block"),
    "DepthwiseConv2D": lambda: OwnDepthwise(3, name="block"),
    "SeparableConv2D": lambda: OwnSeparable(4, 3, name="block"),
    "EinsumDense": lambda: OwnEinsum("abcd,de->abce", (8, 8, 5), name="block"),
}


@pytest.mark.parametrize("name", SAME)
def test_subclass_that_computes_the_same_becomes_the_layer_of_keras(name):
    model = blocks.net(SAME[name]())
    replaced = replace_by_parts(model)
    assert replaced.reasons == {}
    new = replaced.model.get_layer("block")
    assert type(new).__module__.startswith("keras.")
    assert len(replaced.model.losses) == len(model.losses)
    outputs = [m.predict(blocks.images(), verbose=0) for m in (model, replaced.model)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    treated = [row.name for row in tfc.plan(model, tfc.PrunedTernary()).treated()]
    assert "block" in treated


class OwnCall(layers.Dense):
    def call(self, inputs):
        return super().call(inputs) * 2


class OwnConvolution(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, ops.tanh(kernel))


class OwnWeights(layers.Dense):
    def add_weight(self, *args, **kwargs):
        return super().add_weight(*args, **kwargs)


class OneMoreWeight(layers.Dense):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = self.add_weight(shape=(), name="scale")


class OtherActivation(layers.Dense):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shadow = self.activation
        self.call = lambda inputs: ops.tanh(layers.Dense.call(self, inputs))


OTHER = {
    "is a Dense with its own `call`": lambda: OwnCall(4, name="block"),
    "is a Conv2D with its own `convolution_op`": lambda: OwnConvolution(
        4, 1, name="block"
    ),
    "is a Dense with its own `add_weight`": lambda: OwnWeights(4, name="block"),
    "is a Dense with variables of its own": lambda: OneMoreWeight(4, name="block"),
    "computes something else": lambda: OtherActivation(4, name="block"),
}


@pytest.mark.parametrize("reason", OTHER)
def test_subclass_that_computes_something_else_stays_whole(reason):
    layer = OTHER[reason]()
    model = blocks.net(layer)
    replaced = replace_by_parts(model)
    assert reason in replaced.reasons["block"]
    assert type(replaced.model.get_layer("block")) is type(layer)


def test_subclass_within_a_block_becomes_the_layer_of_keras():
    inputs = keras.Input((8, 8, 4))
    block = blocks.Twice(OwnConv(3, name="given"), name="block")
    model = keras.Model(inputs, block(inputs))
    replaced = replace_by_parts(model)
    assert type(replaced.model.get_layer("block").get_layer("given")) is layers.Conv2D
