"""Students of decomposition, and the models that `finalize` makes of them."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.small_net import small_net
from tfcompress import litert
from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.graph import Graph


def macs(model):
    return total_cost(layer_costs(model)).macs


@pytest.fixture(scope="module", params=["after", "between"])
def searched(request, trained_weights, fit_digits, compile_for_digits):
    """A float model and its student after the search and fine-tuning."""
    keras.utils.set_random_seed(0)
    model = small_net()
    model.set_weights(trained_weights)
    start = "svd" if request.param == "after" else "identity"
    scheme = tfc.Decomposition(macs="1/2", start=start, batch_norm=request.param)
    student = tfc.compress(model, scheme)
    compile_for_digits(student, keras.optimizers.SGD(0.02, momentum=0.9))
    fit_digits(student, epochs=3)
    return model, student


@pytest.fixture(scope="module")
def small(searched):
    """The finalized model."""
    return tfc.finalize(searched[1])


def masks(student):
    return [
        np.array(mask)
        for layer in student.rank_space.layers.values()
        for mask in (layer.rank_mask, layer.input_mask)
    ]


@pytest.mark.filterwarnings("ignore:Layer .* not cut")
@pytest.mark.parametrize(
    ("start", "batch_norm"),
    [("svd", "after"), ("identity", "after"), ("identity", "between")],
)
def test_a_new_student_predicts_as_the_model(trained, mnist, start, batch_norm):
    images = mnist[1][0][:20]
    scheme = tfc.Decomposition(macs="1/2", start=start, batch_norm=batch_norm)
    student = tfc.compress(trained, scheme)
    for model in (student, tfc.finalize(student)):
        np.testing.assert_allclose(model(images), trained(images), atol=1e-4)


def test_the_finalized_model_takes_the_budget_and_not_much_less(searched, small):
    budget = macs(searched[0]) / 2
    # One channel of the first layer is 7 % of the network's MACs.
    assert 0.92 * budget <= macs(small) <= budget


def test_the_finalized_model_predicts_as_the_student_with_keras_layers(
    searched, small, mnist
):
    images, labels = mnist[1]
    assert {type(x).__module__.split(".")[0] for x in small.layers} == {"keras"}
    expected = searched[1].predict(images, verbose=0)
    received = small.predict(images, verbose=0)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(received, expected, atol=tolerance)
    assert np.mean(received.argmax(axis=1) == labels) >= 0.7


def test_saved_students_and_finalized_models_predict_the_same(
    searched, small, mnist, tmp_path
):
    images = mnist[1][0][:100]
    for model in (searched[1], small):
        model.save(tmp_path / "model.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as an optimizer that is not loaded
            loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(images, verbose=0), model.predict(images, verbose=0)
        )


def test_the_finalized_model_is_exported_and_the_student_is_refused(
    searched, small, mnist, tmp_path
):
    report = tfc.export(small, tmp_path / "small.tflite", verify=mnist[1][0][:200])
    assert report["agreement"]["top1"] == 1.0
    with pytest.raises(ValueError, match="still in training.*tfcompress.finalize"):
        tfc.export(searched[1], tmp_path / "student.tflite")


def test_the_finalized_model_needs_less_memory(searched, small):
    before, after = (
        litert.peak_memory(litert.float_tflite(m)) for m in (searched[0], small)
    )
    assert after < before


def test_a_second_fit_keeps_the_selection(searched, small, fit_digits, tmp_path):
    searched[1].save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    before = masks(student)
    assert not all(mask.all() for mask in before)
    fit_digits(student, digits=100)
    for a, b in zip(before, masks(student), strict=True):
        np.testing.assert_array_equal(a, b)
    assert macs(tfc.finalize(student)) == macs(small)


def test_another_scheme_compresses_the_finalized_model(small):
    packed = tfc.finalize(tfc.compress(small, tfc.PrunedTernary()))
    names = set(Graph(packed).layers())
    assert {"conv0", "conv1", "conv2", "head"} <= names


def residual_net():
    """A stage of two blocks on one sum, and a depthwise convolution after it."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(12, 3, strides=2, padding="same", name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    for i in range(2):
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name=f"a{i}")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name=f"b{i}")(y)
        y = layers.BatchNormalization()(y)
        x = layers.ReLU()(layers.Add(name=f"sum{i}")([x, y]))
    x = layers.DepthwiseConv2D(3, strides=2, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="head")(x))


def test_tied_channels_are_removed_together(mnist, fit_digits):
    model = residual_net()
    scheme = tfc.Decomposition(params="1/10", round_to=4, search_fraction=1.0)
    rows = {row.name: row.treatment for row in tfc.plan(model, scheme).rows}
    assert "channels may go with those of" in rows["stem"]
    assert "channels stay" in rows["head"]
    student = tfc.compress(model, scheme)
    student.compile(keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy")
    fit_digits(student, digits=300)
    small = tfc.finalize(student)
    params = total_cost(layer_costs(small)).params
    assert params <= total_cost(layer_costs(model)).params / 10
    widths = {
        name: layer.filters
        for name, layer in Graph(small).layers().items()
        if name in ("stem", "a0", "b0", "a1", "b1")
    }
    assert widths["stem"] == widths["b0"] == widths["b1"] < 12
    assert all(width in (4, 8, 12) for width in widths.values())
    images = mnist[1][0][:50]
    np.testing.assert_allclose(small(images), student(images), atol=1e-5)


def test_a_layer_left_alone_keeps_its_channels_and_those_that_it_reads(trained):
    scheme = tfc.Decomposition(macs="0.9", overrides={"conv1": tfc.KeepFloat()})
    rows = {row.name: row.treatment for row in tfc.plan(trained, scheme).rows}
    assert rows["conv0"].endswith("channels stay: 'conv1' is left alone")
    assert rows["conv1"] == "left alone: kept float on request"
    assert rows["conv2"].endswith("channels may go")


@pytest.mark.parametrize("budget", ["1/1000", "2", 10])
def test_a_budget_that_cannot_be_met_raises_with_the_bounds(trained, budget):
    scheme = tfc.Decomposition(macs=budget)
    for refuse in (tfc.plan, tfc.compress):
        with pytest.raises(ValueError, match=r"1/[\d.]+ to 1/1 .* can be met"):
            refuse(trained, scheme)


@pytest.mark.parametrize("unit", ["macs", "params"])
def test_bounds_that_the_error_names_can_be_met(trained, unit):
    with pytest.raises(ValueError) as error:
        tfc.plan(trained, tfc.Decomposition(**{unit: 1}))
    numbers = re.search(r"from (\S+) to (\S+), (1/\S+) to (1/1) of", str(error.value))
    lowest, highest, *shares = numbers.groups()
    for budget in (float(lowest), float(highest), *shares):
        tfc.plan(trained, tfc.Decomposition(**{unit: budget}))


def test_a_model_without_removable_channels_or_ranks_raises():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2, name="only")(inputs))
    with pytest.raises(ValueError, match="can be met"):
        tfc.plan(model, tfc.Decomposition(macs="1/2", margin=0.1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"macs": None},
        {"params": "1/2"},
        {"penalty": 1.0},
        {"macs": None, "penalty": -1.0},
        {"macs": 0},
        {"macs": "half"},
        {"start": "random"},
        {"margin": 0.0},
        {"margin": 1.5},
        {"margin": "fast"},
        {"round_to": 0},
        {"search_fraction": 0.0},
        {"overrides": {"conv1": tfc.QuantizeConfig(tfc.quantizers.Ternary())}},
    ],
)
def test_wrong_arguments_raise(arguments):
    with pytest.raises((ValueError, TypeError), match="Received"):
        tfc.Decomposition(**{"macs": "1/2", **arguments})
