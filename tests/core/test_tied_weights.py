"""Layers that share variables are refused; a layer that is called twice is not."""

import keras
import pytest
from keras import layers, ops

import tfcompress as tfc


class TiedDense(layers.Layer):
    """Decoder with the transposed kernel of another layer, held in one of ways."""

    def __init__(self, encoder=None, way="variable", **kwargs):
        super().__init__(**kwargs)
        self.way = way
        if encoder is None:
            return
        if way == "variable":
            self.kernel = encoder.kernel
        elif way == "layer":
            self.encoder = encoder
        elif way == "untracked layer":
            self.lookup = lambda: encoder.kernel
        elif way == "untracked variable":
            vars(self)["kernels"] = {"encoder": encoder.kernel}

    def call(self, x):
        kernel = {
            "variable": lambda: self.kernel,
            "layer": lambda: self.encoder.kernel,
            "untracked layer": lambda: self.lookup(),
            "untracked variable": lambda: self.kernels["encoder"],
        }[self.way]()
        return ops.matmul(x, ops.transpose(kernel))


def autoencoder(decode, shape=(8,)):
    encoder = layers.Dense(4, name="encoder")
    inputs = keras.Input(shape)
    x = encoder(inputs)
    return keras.Model(inputs, decode(encoder)(x))


def tied_dense(way):
    return lambda encoder: TiedDense(encoder, way, name="decoder")


def of_lambda(encoder):
    return layers.Lambda(
        lambda x: ops.matmul(x, ops.transpose(encoder.kernel)),
        output_shape=(8,),
        name="decoder",
    )


TIED = {
    **{way: tied_dense(way) for way in (
        "variable", "layer", "untracked layer", "untracked variable",
    )},
    "lambda": of_lambda,
}  # fmt: skip


@pytest.mark.parametrize("way", TIED)
def test_decoder_with_the_kernel_of_an_encoder_is_refused(way):
    model = autoencoder(TIED[way])
    for step in (tfc.plan, tfc.compress):
        # An error that the layer cannot be copied would not help.
        with pytest.raises(ValueError, match="encoder/kernel.*'encoder' and 'decoder'"):
            step(model, tfc.PrunedTernary())


def test_variable_among_the_arguments_of_an_operation_is_refused():
    model = autoencoder(lambda encoder: lambda x: ops.add(x, encoder.bias))
    with pytest.raises(ValueError, match="encoder/bias.*'encoder' and 'add"):
        tfc.compress(model, tfc.PrunedTernary())


def test_layer_that_is_called_both_itself_and_by_a_wrapper_is_refused():
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((5, 4))
    x = layers.TimeDistributed(shared, name="wrapper")(shared(inputs))
    with pytest.raises(ValueError, match="shared/kernel.*'shared' and 'wrapper'"):
        tfc.compress(keras.Model(inputs, x), tfc.PrunedTernary())


def test_two_layers_that_were_given_one_variable_are_refused():
    first, second = layers.Dense(4, name="first"), layers.Dense(4, name="second")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, second(first(inputs)))
    vars(second)["_kernel"] = first._kernel
    second._trainable_variables[0] = first._kernel
    with pytest.raises(ValueError, match="first/kernel.*'first' and 'second'"):
        tfc.compress(model, tfc.PrunedTernary())


def test_ties_between_nested_models_are_refused():
    encoder = layers.Dense(4, name="encoder")
    inputs = keras.Input((8,))
    inner = keras.Model(inputs, encoder(inputs), name="inner")
    x = TiedDense(encoder, name="decoder")(inner(inputs))
    with pytest.raises(ValueError, match="'inner/encoder' and 'decoder'"):
        tfc.compress(keras.Model(inputs, x), tfc.PrunedTernary())


def test_layer_that_is_called_twice_stays_shared():
    shared, inputs = layers.Dense(4, name="shared"), keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    student = tfc.compress(model, tfc.PrunedTernary())
    assert len(student.layers) == len(model.layers)
    assert len(student.get_layer("shared").weights) > 0


def test_layers_of_two_models_may_share_variables():
    """Only ties within the model that is compressed come apart."""
    model = autoencoder(lambda encoder: layers.Dense(8))
    outer = keras.Sequential([keras.Input((8,)), model])
    tfc.compress(model, tfc.PrunedTernary())
    tfc.compress(outer, tfc.PrunedTernary())
