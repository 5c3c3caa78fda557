"""Finalized models, compared with their students."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph.graph import Graph
from tfcompress.layers import (
    PackedKernel,
    QuantConv2D,
    QuantDense,
    QuantizeActivation,
)
from tfcompress.quantizers import Ternary, Uniform, UniformActivation


def randomize(model, seed=0):
    """Weights and statistics as after a training: gammas of both signs and zero."""
    rng = np.random.default_rng(seed)
    for layer in Graph(model).layers().values():
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(rng.normal(size=variable.shape))
            layer.moving_variance.assign(
                rng.uniform(0.1, 2, layer.moving_variance.shape)
            )
            if layer.gamma is not None:
                layer.gamma.assign(np.where(rng.random(layer.gamma.shape) < 0.2, 0,
                                            layer.gamma))  # fmt: skip
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(size=layer.bias.shape))


def conv(filters=6, name=None, quantizer=Ternary, **config):
    return QuantConv2D(
        filters, 3, padding="same", kernel_quantizer=quantizer(), name=name, **config
    )


def plain_chain(x):
    x = layers.BatchNormalization()(conv()(x))
    return layers.BatchNormalization(scale=False)(
        conv(use_bias=False)(layers.ReLU()(x))
    )


def residual(x):
    y = layers.BatchNormalization(name="folded")(conv(3)(x))
    return layers.Add()([y, conv(3)(x)])


def depthwise(x):
    x = tfc.layers.QuantDepthwiseConv2D(
        3, depth_multiplier=2, use_bias=False, kernel_quantizer=Ternary(sparsity=0.5)
    )(x)
    return layers.BatchNormalization(center=False)(x)


def dense(x):
    x = QuantDense(7, kernel_quantizer=Uniform(4))(layers.Flatten()(x))
    return layers.BatchNormalization()(x)


def read_twice(x):
    y = conv(3)(x)
    return layers.Add()([layers.BatchNormalization(name="kept")(y), y])


def shared(x):
    layer = conv(3)
    norms = [layers.BatchNormalization(name=f"kept{i}") for i in range(2)]
    return norms[1](layer(norms[0](layer(x))))


def with_activation(x):
    return layers.BatchNormalization(name="kept")(conv(activation="relu")(x))


def wrong_axis(x):
    return layers.BatchNormalization(axis=1, name="kept")(conv()(x))


def before(x):
    return conv()(layers.BatchNormalization(name="kept")(x))


def nested(x):
    inner_in = keras.Input(x.shape[1:])
    inner = keras.Model(inner_in, conv(3, name="inner_conv")(inner_in), name="inner")
    tail = keras.Sequential(
        [keras.Input(x.shape[1:]), layers.BatchNormalization(), layers.ReLU()]
    )
    return tail(inner(x))


GRAPHS = [
    plain_chain, residual, depthwise, dense, read_twice, shared, with_activation,
    wrong_axis, before, nested,
]  # fmt: skip


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_finalized_model_predicts_as_the_student_and_reloads(graph, tmp_path):
    inputs = keras.Input((8, 8, 3))
    student = keras.Model(inputs, graph(inputs))
    randomize(student)
    x = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype("float32")
    expected = np.asarray(student(x, training=False))

    tiny = tfc.finalize(student)
    found = np.asarray(tiny(x, training=False))
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    left = Graph(tiny).layers().values()
    norms = [layer for layer in left if isinstance(layer, layers.BatchNormalization)]
    assert all(norm.name.startswith("kept") for norm in norms)
    for layer in left:
        if isinstance(layer, PackedKernel):
            assert (np.asarray(layer.kernel_scale) > 0).all()

    tiny.save(tmp_path / "tiny.keras")
    restored = keras.models.load_model(tmp_path / "tiny.keras")
    np.testing.assert_array_equal(restored(x, training=False), found)


def test_finalize_leaves_the_student_untouched():
    inputs = keras.Input((8, 8, 3))
    student = keras.Model(inputs, plain_chain(inputs))
    randomize(student)
    weights = student.get_weights()
    tfc.finalize(student)
    assert len(student.layers) == 6
    for old, new in zip(weights, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_finalized_codes_are_the_students_up_to_the_sign_of_gamma():
    inputs = keras.Input((8, 8, 3))
    student = keras.Model(inputs, layers.BatchNormalization()(conv()(inputs)))
    randomize(student)
    layer, norm = student.layers[1:]
    codes, _ = layer.kernel_quantizer.encode(layer.latent_kernel)
    tiny = tfc.finalize(student)
    np.testing.assert_array_equal(tiny.layers[1].codes, codes * np.sign(norm.gamma))


def test_mixed_precision_students_become_float32_models():
    inputs = keras.Input((8, 8, 3))
    x = conv(dtype="mixed_bfloat16")(inputs)
    x = layers.BatchNormalization(dtype="mixed_bfloat16")(x)
    x = layers.GlobalAveragePooling2D(dtype="mixed_bfloat16")(x)
    student = keras.Model(inputs, QuantDense(3, kernel_quantizer=Uniform(8))(x))
    randomize(student)
    tiny = tfc.finalize(student)
    assert {layer.compute_dtype for layer in tiny.layers} == {"float32"}
    x = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(tiny(x), student(x), atol=0.05)


def test_channel_of_zeros_stays_finite_when_its_norm_is_folded():
    inputs = keras.Input((8, 8, 3))
    student = keras.Model(inputs, layers.BatchNormalization()(conv()(inputs)))
    randomize(student)
    kernel = np.asarray(student.layers[1].latent_kernel).copy()
    kernel[..., 2] = 0
    student.layers[1].latent_kernel.assign(kernel)
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")
    found = np.asarray(tfc.finalize(student)(x))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, student(x), rtol=1e-4, atol=1e-4)


def test_adapted_normalization_is_kept_from_compress_to_finalize():
    x = np.random.default_rng(0).normal(3, 2, (100, 4)).astype("float32")
    norm = layers.Normalization()
    norm.adapt(x)
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(2)])
    uniform = tfc.PrunedTernary(overrides={"dense.*": tfc.QuantizeConfig(Uniform(8))})
    student = tfc.compress(model, uniform)
    np.testing.assert_allclose(student(x), model(x), atol=0.1)
    np.testing.assert_allclose(tfc.finalize(student)(x), student(x), atol=1e-5)


def quantized_input(bits=4, signed=False, clip=2.0):
    return UniformActivation(bits, signed, initial_clip=clip)


def quantized_inputs(x):
    """A chain, a layer called twice, and one inside a nested model."""
    x = conv(input_quantizer=quantized_input(8, signed=True, clip=3.0), name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    inner_in = keras.Input(x.shape[1:])
    y = conv(input_quantizer=quantized_input(2), name="conv")(inner_in)
    y = keras.Model(inner_in, layers.BatchNormalization()(y), name="inner")(x)
    twice = conv(input_quantizer=quantized_input(4, signed=True), name="twice")
    x = layers.ReLU()(layers.Add()([x, twice(layers.ReLU()(twice(y)))]))
    x = layers.GlobalAveragePooling2D()(x)
    return QuantDense(
        5, kernel_quantizer=Uniform(4), input_quantizer=quantized_input(3), name="head"
    )(x)


def test_quantized_inputs_become_layers_before_the_packed_ones(tmp_path):
    inputs = keras.Input((8, 8, 3), name="conv_input")  # a name that is taken
    student = keras.Model(inputs, quantized_inputs(inputs))
    randomize(student)
    scales = {
        "conv_input_levels": 6 / 255, "inner/conv_input_levels": 2 / 3,
        "twice_input": 4 / 15, "head_input": 2 / 7,
    }  # fmt: skip
    tiny = tfc.finalize(student)
    found = Graph(tiny).layers()
    assert not any(
        isinstance(layer, layers.BatchNormalization) for layer in found.values()
    )
    assert {
        name: float(layer.scale)
        for name, layer in found.items()
        if isinstance(layer, QuantizeActivation)
    } == pytest.approx(scales)
    assert len(Graph(tiny).calls_of(found["twice_input"])) == 2

    x = np.random.default_rng(1).normal(size=(64, 8, 8, 3)).astype("float32")
    expected = np.asarray(student(x, training=False))
    predicted = np.asarray(tiny(x, training=False))
    # Folding rounds otherwise, which tips an activation to its neighbor at times.
    difference = np.abs(predicted - expected).max(axis=1)
    assert np.mean(difference <= 1e-5 * np.abs(expected).max()) > 0.9
    assert np.mean(predicted.argmax(axis=1) == expected.argmax(axis=1)) > 0.95

    tiny.save(tmp_path / "tiny.keras")
    restored = keras.models.load_model(tmp_path / "tiny.keras")
    np.testing.assert_array_equal(restored(x), predicted)


def test_trained_clips_are_copied_exactly():
    inputs = keras.Input((50,))
    layer = QuantDense(
        4, kernel_quantizer=Uniform(8), input_quantizer=quantized_input(8), name="only"
    )
    student = keras.Model(inputs, layer(inputs))
    layer.input_quantizer.clip.assign(-1.2345678)  # its magnitude counts
    x = np.random.default_rng(1).normal(size=(64, 50)).astype("float32")
    np.testing.assert_array_equal(tfc.finalize(student)(x), student(x))


def test_finalize_warns_of_unfinished_quantizers(monkeypatch):
    monkeypatch.setattr(UniformActivation, "unfinished", lambda self: "not there yet")
    inputs = keras.Input((4,))
    layer = QuantDense(
        2, kernel_quantizer=Uniform(4), input_quantizer=quantized_input(), name="early"
    )
    with pytest.warns(UserWarning, match="Layer 'early': not there yet"):
        tfc.finalize(keras.Model(inputs, layer(inputs)))


def test_finalize_refuses_models_without_an_inference_form():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="Compress and train it first"):
        tfc.finalize(keras.Model(inputs, layers.Dense(2)(inputs)))
    diverged = keras.Model(inputs, QuantDense(2, kernel_quantizer=Ternary())(inputs))
    diverged.layers[1].bias.assign([np.nan, 0])
    with pytest.raises(ValueError, match="NaN or infinity in.*bias.*learning rate"):
        tfc.finalize(diverged)
    for quantizers, received in (
        ({"kernel_quantizer": Ternary(), "input_quantizer": Uniform(8)}, "<Uniform"),
        ({"input_quantizer": quantized_input()}, "kernel_quantizer=None"),
    ):
        layer = QuantDense(2, **quantizers, name="odd")
        with pytest.raises(ValueError, match=f"'odd' cannot be packed.*{received}"):
            tfc.finalize(keras.Model(inputs, layer(inputs)))
