"""Plain models with the quantized weights of a student."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc


def net(activation=None):
    inputs = x = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(5, activation, name="dense")(x))


def images(count=16):
    return np.random.default_rng(0).normal(size=(count, 12, 12, 3)).astype("float32")


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return net()


@pytest.mark.parametrize(
    "scheme",
    [tfc.PrunedTernary(first_last="ternary"), tfc.SizeConstrained(value_bits="1/8")],
)
def test_dequantized_model_predicts_as_the_student(model, scheme):
    student = tfc.compress(model, scheme)
    student.compile("sgd", "mse")
    student.fit(images(), np.zeros((16, 5)), batch_size=4, epochs=2, verbose=0)
    plain = tfc.dequantize(student)
    assert [type(x) for x in plain.layers] == [type(x) for x in model.layers]
    assert [x.name for x in plain.layers[1:]] == [x.name for x in model.layers[1:]]
    np.testing.assert_array_equal(
        plain.predict(images(), verbose=0), student.predict(images(), verbose=0)
    )
    # It shares nothing with the student, and may be compressed once more.
    before = student.predict(images(), verbose=0)
    plain.layers[1].kernel.assign(0 * plain.layers[1].kernel)
    np.testing.assert_array_equal(before, student.predict(images(), verbose=0))


def test_mixed_precision_student_becomes_a_float32_model(model):
    policy = keras.dtype_policies.get("mixed_bfloat16")
    student = tfc.compress(model, tfc.PrunedTernary(first_last="ternary"))
    for layer in student.layers:
        layer.dtype_policy = policy
    plain = tfc.dequantize(student)
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
    codes, scale = student.get_layer("conv").kernel_quantizer.encode(
        student.get_layer("conv").latent_kernel
    )
    np.testing.assert_array_equal(plain.get_layer("conv").kernel, codes * scale)


def test_chain_of_sizes_adds_zeros_with_each_size(model):
    zeros = []
    for share in ("1/8", "1/16"):
        student = tfc.compress(model, tfc.SizeConstrained(value_bits=share))
        student.compile("sgd", "mse")
        student.fit(images(), np.zeros((16, 5)), batch_size=4, epochs=2, verbose=0)
        zeros.append([np.mean(codes == 0) for codes, _ in codes_of(student)])
        model = tfc.dequantize(student)
    assert sum(zeros[0]) < sum(zeros[1])


def codes_of(student):
    return student.size_space.codebooks.codes().values()


def test_dequantize_refuses_plain_models_and_quantized_inputs(model):
    with pytest.raises(ValueError, match="quantized kernels is expected.*has none"):
        tfc.dequantize(model)
    student = tfc.compress(model, tfc.Uniform(4, 4))
    with pytest.raises(ValueError, match="float activations.*'conv' quantizes"):
        tfc.dequantize(student)
