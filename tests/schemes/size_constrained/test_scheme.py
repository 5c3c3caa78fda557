"""Size-constrained students: size of the file, budgets, saving and interruption."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.schemes.size_constrained.small_space import used
from tfcompress import litert
from tfcompress.cost import layer_costs, total_cost
from tfcompress.litert import packed_size
from tfcompress.schemes.size_constrained.budget import estimated_size
from tfcompress.schemes.size_constrained.phases import RELAXATION

# Arguments of the scheme, and the key of the report that they limit.
SIZES = {
    "xz, uniform": ({"size": "1/5"}, "tflite_xz_bytes"),
    "xz, kmeans": ({"size": "2.2 kB", "codebook": "kmeans"}, "tflite_xz_bytes"),
    "none": ({"size": 4500, "compression": "none"}, "tflite_bytes"),
}


def fit(student, mnist, epochs, samples=240, **kwargs):
    images, labels = mnist[0]
    return student.fit(
        images[:samples], labels[:samples], batch_size=80, epochs=epochs, verbose=0,
        **kwargs,
    )  # fmt: skip


def value_bits(model):
    return total_cost(layer_costs(model)).value_bits


class ValidationRecorder(keras.callbacks.Callback):
    """State of the student before each validation; sizes are shares of the budget."""

    def __init__(self):
        super().__init__()
        self.quantized, self.size, self.searching = [], [], []

    def on_test_begin(self, logs=None):
        space = self.model.size_space
        self.searching.append(not space.is_frozen())
        self.quantized.append(True)
        for layer in space.codebooks.layers.values():
            codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
            self.quantized[-1] &= np.array_equal(layer.kernel, codes * scale)
        self.size.append(used(space))


def strided_net():
    """Two convolutions with batch normalization, and a dense layer."""
    x = inputs = keras.Input((28, 28, 1))
    for i, filters in enumerate((8, 32)):
        x = layers.Conv2D(filters, 3, strides=2, use_bias=False, name=f"conv{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x))


@pytest.fixture(scope="module")
def strided_weights(mnist, compile_for_digits):
    keras.utils.set_random_seed(0)
    model = strided_net()
    compile_for_digits(model, keras.optimizers.Adam(1e-2))
    model.fit(*mnist[0], epochs=6, batch_size=64, verbose=0)
    return model.get_weights()


@pytest.fixture(scope="module", params=SIZES)
def searched(request, strided_weights, mnist, compile_for_digits):
    """`(float model, student, recorder, history, report key)` after one whole fit."""
    keras.utils.set_random_seed(0)
    model = strided_net()
    model.set_weights(strided_weights)
    arguments, key = SIZES[request.param]
    student = tfc.compress(model, tfc.SizeConstrained(**arguments))
    compile_for_digits(student, keras.optimizers.SGD(0.02, momentum=0.9))
    recorder = ValidationRecorder()
    validation = tuple(x[:100] for x in mnist[1])
    history = fit(student, mnist, 2, validation_data=validation, callbacks=[recorder])
    return model, student, recorder, history.history, key


def test_file_takes_at_most_the_size_and_nearly_all_of_it(searched, mnist, tmp_path):
    model, student, *_, key = searched
    tiny = tfc.finalize(student)
    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=mnist[1][0][:100])
    assert report["agreement"]["top1"] == 1.0
    share = report["size"][key] / student.scheme.total(model)
    # Containers of 2, 4 and 8 bits for whole layers leave gaps.
    assert (0.95 if key == "tflite_xz_bytes" else 0.75) < share <= 1
    compressed = key == "tflite_xz_bytes"
    assert packed_size(tiny, compressed) == report["size"][key]
    # The estimated bytes of a graph are those of common layers.
    assert (
        0.75 < estimated_size(tiny, student.scheme.unit()) / report["size"][key] < 1.4
    )


def test_finished_model_predicts_like_the_student(searched, mnist):
    _, student, *_ = searched
    images, labels = mnist[1]
    expected = student.predict(images, verbose=0)
    received = tfc.finalize(student).predict(images, verbose=0)
    np.testing.assert_allclose(received, expected, atol=1e-4 * np.abs(expected).max())
    assert (received.argmax(1) == labels).mean() > 0.5


def test_norms_are_rounded_where_the_file_is_compressed(searched):
    _, student, *_, key = searched
    tiny = tfc.finalize(student)
    for name in ("conv0", "conv1"):
        layer = tiny.get_layer(name)
        for values in (layer.kernel_scale, layer.bias):
            low = keras.ops.convert_to_numpy(values).view("uint32") & 0xFFFF
            assert low.any() == (key == "tflite_bytes")


def test_norms_alone_and_frozen_ones_predict_like_the_student(
    mnist, compile_for_digits, tmp_path
):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, strides=4, use_bias=False)(x)
    x = layers.BatchNormalization(trainable=False, name="frozen")(x)
    x = layers.MaxPooling2D(name="between")(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False, name="alone")(x))
    model = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
    norm = model.get_layer("frozen")
    rng = np.random.default_rng(0)
    norm.set_weights([rng.uniform(0.5, 2, x.shape) for x in norm.get_weights()])
    before = norm.get_weights()
    student = tfc.compress(model, tfc.SizeConstrained(size="2 kB"))
    compile_for_digits(student, keras.optimizers.SGD(0.02, momentum=0.9))
    fit(student, mnist, 2)
    for a, b in zip(before, student.get_layer("frozen").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    tiny, images = tfc.finalize(student), mnist[1][0][:100]
    expected = student.predict(images, verbose=0)
    received = tiny.predict(images, verbose=0)
    np.testing.assert_allclose(received, expected, atol=1e-5 * np.abs(expected).max())
    for values in tiny.get_layer("alone").get_weights()[:2]:
        low = values.view("uint32") & 0xFFFF
        assert (low == 0).mean() > 0.7  # offsets of many deviations keep their bits
    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=images)
    assert report["size"]["tflite_xz_bytes"] <= 2000


def test_finished_model_has_the_bits_and_zeros_of_the_student(searched):
    _, student, *_, key = searched
    codebooks = student.size_space.codebooks
    costs = {cost.name: cost for cost in layer_costs(tfc.finalize(student))}
    assert codebooks.is_frozen()
    for name, (codes, bits) in codebooks.codes().items():
        mask = codebooks.masks()[name]
        assert codes.any() and mask.sum() >= 10
        assert not codes[~mask].any()
        assert len(np.unique(codes[codes != 0])) <= 2**bits
        if codebooks.kind == "uniform":
            assert costs[name].weight_bits == bits
        assert mask.all() == (key == "tflite_bytes")


def test_validation_sees_quantized_weights_near_the_budget(searched):
    *_, recorder, history, _ = searched
    assert recorder.quantized == [True, True]
    assert recorder.searching == [True, False]
    assert recorder.size[0] < RELAXATION and recorder.size[1] < 1.05
    assert min(history["val_accuracy"]) > 0.3


def test_float_model_stays_as_it_was(searched, strided_weights):
    model, *_ = searched
    for received, expected in zip(model.get_weights(), strided_weights, strict=True):
        np.testing.assert_array_equal(received, expected)
    for layer in model.layers:
        assert getattr(getattr(layer, "kernel", None), "constraint", None) is None


@pytest.mark.parametrize("searched", ["xz, kmeans"], indirect=True)
def test_loaded_student_keeps_zeros_bits_and_size_in_a_second_fit(
    searched, mnist, tmp_path
):
    model, student, *_, key = searched
    student.save(tmp_path / "student.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as an optimizer that is not loaded
        loaded = keras.models.load_model(tmp_path / "student.keras")
    images = mnist[1][0][:100]
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), student.predict(images, verbose=0)
    )
    codebooks = loaded.size_space.codebooks
    before, bits = codebooks.masks(), codebooks.bits
    fit(loaded, mnist, 1, samples=120)
    assert codebooks.bits == bits
    for name, mask in codebooks.masks().items():
        assert not (mask & ~before[name]).any()
    kept = [sum(x.sum() for x in y.values()) for y in (codebooks.masks(), before)]
    assert 0.95 * kept[1] <= kept[0]  # a few less may be needed for the size
    tiny = tfc.finalize(loaded)
    size = packed_size(tiny, key == "tflite_xz_bytes")
    assert size <= loaded.scheme.total(model)


def separable_net():
    """A depthwise convolution, biases, batch normalization, and few weights."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(6, 3, strides=2, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False, name="depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(10, name="head")(layers.Flatten()(x))
    return keras.Model(inputs, x)


@pytest.mark.parametrize("codebook", ["uniform", "kmeans"])
def test_new_student_has_eight_bits_until_its_first_search(codebook, mnist, tmp_path):
    model, images = strided_net(), mnist[1][0][:50]
    scheme = tfc.SizeConstrained(value_bits="1/100", codebook=codebook)
    student = tfc.compress(model, scheme)
    weights = 72 + 9 * 8 * 32 + 320
    assert scheme.total(model) == weights * 32 / 100 == scheme.total(student)
    expected = model.predict(images, verbose=0)
    received = student.predict(images, verbose=0)
    np.testing.assert_allclose(received, expected, atol=0.03 * np.abs(expected).max())
    with pytest.warns(UserWarning, match="zeros and bits has not ended"):
        assert value_bits(tfc.finalize(student)) <= 8 * weights
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert loaded.scheme.get_config() == scheme.get_config()
    assert loaded.size_space.codebooks.is_preliminary()
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), received)


@pytest.mark.parametrize("compression", ["xz", "none"])
def test_budget_that_clearly_suffices_needs_no_file(compression, monkeypatch):
    def convert(*_):
        raise AssertionError("a file was made")

    monkeypatch.setattr(litert, "packed_size", convert)
    inputs = keras.Input((28, 28, 1))
    x = layers.Dense(100)(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(10)(x))
    for share, is_made in (("0.15", False), ("1/500", True), ("1/2", True)):
        scheme = tfc.SizeConstrained(share, compression=compression)
        if is_made:
            with pytest.raises(AssertionError, match="made"):
                tfc.plan(model, scheme)
        else:
            tfc.plan(model, scheme)
            tfc.compress(model, scheme)


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise RuntimeError("interrupted")


def test_student_of_an_interrupted_search_trains_on(mnist, compile_for_digits):
    model = separable_net()
    scheme = tfc.SizeConstrained(value_bits="1/30")
    student = tfc.compress(model, scheme)
    compile_for_digits(student, keras.optimizers.SGD(0.02))
    with pytest.raises(RuntimeError, match="^interrupted$"):
        fit(student, mnist, 2, callbacks=[Interrupt()])
    with pytest.warns(UserWarning, match="'depthwise'.*bits has not ended"):
        tiny = tfc.finalize(student)
    assert np.isfinite(tiny.predict(mnist[1][0][:10], verbose=0)).all()
    fit(student, mnist, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny = tfc.finalize(student)
    total = scheme.total(model)
    # Of the weights that are not held at zero, fine-tuning takes some to zero.
    assert 0.6 * total < value_bits(tiny) <= total
    images = mnist[1][0][:50]
    expected = student.predict(images, verbose=0)
    received = tiny.predict(images, verbose=0)
    np.testing.assert_allclose(received, expected, atol=1e-4 * np.abs(expected).max())


def test_search_without_a_learning_rate_keeps_the_values_of_weights(
    mnist, compile_for_digits
):
    """It takes the whole training and freezes at its end."""
    model = separable_net()
    scheme = tfc.SizeConstrained(value_bits="1/30", search_fraction=1.0)
    student = tfc.compress(model, scheme)
    before = student.size_space.codebooks.kernels()
    compile_for_digits(student, keras.optimizers.SGD(0.0))
    fit(student, mnist, 1)
    assert student.size_space.is_frozen()
    assert value_bits(tfc.finalize(student)) <= scheme.total(model)
    for name, kernel in student.size_space.codebooks.kernels().items():
        kept = kernel != 0
        np.testing.assert_array_equal(kernel[kept], before[name][kept])


@pytest.mark.parametrize("arguments", [
    {"value_bits": 1}, {"value_bits": 1, "codebook": "kmeans"},
    {"size": 1}, {"size": 1, "codebook": "kmeans"},
    {"size": 1, "compression": "none"},
], ids=str)  # fmt: skip
def test_least_budget_that_an_error_names_can_be_met(arguments):
    model = strided_net()
    with pytest.raises(ValueError, match="can be met. Received: .*=1, 1") as error:
        tfc.compress(model, tfc.SizeConstrained(**arguments))
    least = re.search(r"at least ([\d,]+)", str(error.value))[1].replace(",", "")
    name = "size" if "size" in arguments else "value_bits"
    with pytest.raises(ValueError, match=f"at least {int(least):,}"):
        tfc.compress(model, tfc.SizeConstrained(**arguments | {name: int(least) - 1}))
    student = tfc.compress(model, tfc.SizeConstrained(**arguments | {name: int(least)}))
    for codes, _ in student.size_space.codebooks.codes().values():
        assert codes.any()


def test_plan_names_the_codebooks():
    rows = tfc.plan(strided_net(), tfc.SizeConstrained(size="1/5")).rows
    treatments = {row.name: row.treatment for row in rows}
    for name in ("conv0", "conv1", "head"):
        assert treatments[name] == "weights from a codebook of at most 8 bits"


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": None},
        {"value_bits": "1/20"},
        {"size": 0},
        {"size": "100 GB"},
        {"size": None, "value_bits": "many"},
        {"size": None, "value_bits": "100 kB"},
        {"codebook": "entropy"},
        {"compression": "zip"},
        {"codebook": "kmeans", "compression": "none"},
        {"rho": -1.0},
        {"rho": float("inf")},
        {"search_fraction": 0.0},
        {"search_fraction": 1.5},
        {"weight_decay": -1.0},
        {"overrides": {"conv1": 3}},
    ],
)
def test_scheme_refuses_bad_arguments(arguments):
    with pytest.raises((ValueError, TypeError), match="Received"):
        tfc.SizeConstrained(**{"size": "1/20", **arguments})
