"""Private APIs of tensorflow-model-optimization and of tf_keras."""

import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

from tfcompress import tfmot as wrappers
from tfcompress.compat.tfmot_private import (
    QuantizeLayer,
    add_layer_weights,
    kernels_and_quantizers,
    output_quantizers,
)

annotate = tfmot.quantization.keras.quantize_annotate_layer
quantize_apply = tfmot.quantization.keras.quantize_apply


@pytest.fixture
def wrapper():
    """The wrapper of a dense layer with a quantized kernel and output."""
    config = wrappers.BitSharingQuantizeConfig(penalty=1.0, activation_bits=4)
    layer = annotate(tf_keras.layers.Dense(6, name="dense"), config)
    model = tf_keras.Sequential([tf_keras.Input((12,)), layer])
    return quantize_apply(model, wrappers.AnnotatedOnlyScheme()).layers[-1]


def test_quantize_apply_adds_quantize_layers_to_inputs():
    layer = annotate(tf_keras.layers.Dense(6))
    model = quantize_apply(tf_keras.Sequential([tf_keras.Input((12,)), layer]))
    kinds = [isinstance(layer, QuantizeLayer) for layer in model.layers]
    assert kinds.count(True) == 1


def test_kernels_and_quantizers_are_those_of_the_wrapper(wrapper):
    ((kernel, quantizer),) = kernels_and_quantizers(wrapper)
    assert kernel.shape == (12, 6)
    assert any(kernel is weight for weight in wrapper.trainable_weights)
    threshold = quantizer.state["threshold"]
    assert any(threshold is weight for weight in wrapper.trainable_weights)


def test_output_quantizers_are_those_of_the_wrapper(wrapper):
    (quantizer,) = output_quantizers(wrapper)
    assert any(quantizer.state["clip"] is weight for weight in wrapper.weights)


def test_output_quantizers_are_empty_without_one():
    config = wrappers.UniformQuantizeConfig(4)
    layer = annotate(tf_keras.layers.Dense(6), config)
    model = tf_keras.Sequential([tf_keras.Input((12,)), layer])
    model = quantize_apply(model, wrappers.AnnotatedOnlyScheme())
    assert output_quantizers(model.layers[-1]) == []


def test_add_layer_weights_puts_them_before_later_ones():
    layer = tf_keras.layers.Dense(6)
    layer.build((None, 12))
    config = wrappers.UniformQuantizeConfig(4)
    wrapper = tfmot.quantization.keras.QuantizeWrapperV2(layer, config)
    add_layer_weights(wrapper)
    later = wrapper.add_weight(name="later", shape=())
    expected = [*layer.trainable_weights, later]
    received = wrapper.trainable_weights
    assert [id(x) for x in received] == [id(x) for x in expected]
