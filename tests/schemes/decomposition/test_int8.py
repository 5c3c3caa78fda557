"""Students on learned ranges: kernels and factors that train rounded to 8 bits."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph.graph import Graph
from tfcompress.layers import FactorizedKernel, PackedKernel, QuantizedKernel
from tfcompress.schemes.decomposition import search

SHAPE = (8, 8, 3)
CUT = ("conv", "pointwise")


def net():
    x = inputs = keras.Input(SHAPE)
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 1, activation="relu", name="pointwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(12, activation="relu", name="kept")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def images():
    x = np.random.default_rng(0).normal(size=(256, *SHAPE)).astype("float32")
    labels = np.arange(256) % 4
    x[..., 0] += 0.5 * labels[:, None, None]
    return x, labels


def with_cut_ranks(monkeypatch):
    """Removes half of the ranks of some layers, whatever they cost."""
    select = search.select

    def selected(*args):
        found = select(*args)
        ranks = dict(found.keep_ranks)
        for name in CUT:
            ranks[name] = np.arange(len(ranks[name])) < len(ranks[name]) // 2
        return dataclasses.replace(found, keep_ranks=ranks)

    monkeypatch.setattr(search, "select", selected)


def fit(student, epochs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(5e-3), loss, jit_compile=False)
    student.fit(*images(), batch_size=64, epochs=epochs, verbose=0)


ARGUMENTS = {
    "after": {},
    "between": {"start": "identity", "batch_norm": "between"},
}


@pytest.fixture(
    scope="module",
    params=["after", pytest.param("between", marks=pytest.mark.slow)],
)
def student(request):
    keras.utils.set_random_seed(0)
    scheme = tfc.Decomposition(
        "0.8",
        activation_bits=8,
        overrides={"kept": tfc.KeepFloat()},
        **ARGUMENTS[request.param],
    )
    made = tfc.compress(net(), scheme)
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_cut_ranks(monkeypatch)
        fit(made, 2)
    return made


@pytest.fixture(scope="module")
def tiny(student):
    return tfc.finalize(student)


def test_student_computes_with_the_codes_of_the_finalized_model(student, tiny):
    x, _ = images()
    named = Graph(tiny).layers()
    for name, layer in Graph(student).layers().items():
        if isinstance(layer, FactorizedKernel):
            is_cut = len(layer.encoded_kernels()) == 2
            assert is_cut == (name in CUT) == (f"{name}_basis" in named)
    kinds = {"depthwise": layers.DepthwiseConv2D, "kept": layers.Dense}
    for name, kind in kinds.items():
        layer = student.get_layer(name)
        assert isinstance(layer, QuantizedKernel) and isinstance(layer, kind)
    packed = [x for x in named.values() if isinstance(x, PackedKernel)]
    assert {x.kernel_bits for x in packed} == {8}
    assert all(x.integer for x in packed)
    step = float(np.array(tiny.layers[-1].scale))
    trained, found = (np.array(model(x)) for model in (student, tiny))
    assert np.abs(trained - found).max() < 3.5 * step  # ties of roundings
    assert (trained.argmax(1) == found.argmax(1)).mean() >= 0.99


def test_int8_file_is_what_was_trained(tiny, tmp_path):
    pytest.importorskip("litert_quantizer")
    x, _ = images()
    report = tfc.export(
        tiny, tmp_path / "model.tflite", x, optimize="latency", activations="int8"
    )
    assert report["ranges"]["calibrated"] == 0
    assert report["agreement"]["max_abs_diff"] == 0


def test_biases_end_in_units_of_int8_operators(student, tiny):
    assert tiny.get_layer("conv").use_bias
    for name in ("conv", "depthwise", "pointwise", "kept"):
        layer = tiny.get_layer(name)
        unit = np.array(layer.steps)[0] * np.array(layer.kernel_scale).reshape(-1)
        units = np.array(layer.bias) / unit
        np.testing.assert_allclose(units, np.round(units), atol=0.01)


def test_costs_count_kernels_and_activations_of_8_bits(student):
    costs = [x for x in tfc.cost.layer_costs(student) if x.weights]
    assert {(x.weight_bits, x.activation_bits) for x in costs} == {(8, 8)}


def test_saved_student_is_the_same(student, tmp_path):
    x, _ = images()
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(x), student(x))


@pytest.mark.slow
def test_saved_student_goes_on(student, tiny, tmp_path):
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    before = loaded.get_layer("conv").hidden_quantizer.scale_value()
    fit(loaded, 1)
    assert loaded.get_layer("conv").hidden_quantizer.scale_value() != before
    again = tfc.finalize(loaded)
    assert [x.name for x in again.layers] == [x.name for x in tiny.layers]


def test_float_activations_leave_kernels_float():
    student = tfc.compress(net(), tfc.Decomposition("0.8"))
    named = Graph(student).layers()
    assert type(named["depthwise"]) is layers.DepthwiseConv2D
    assert not any(getattr(layer, "int8", False) for layer in named.values())
    assert not any(isinstance(x, QuantizedKernel) for x in named.values())


def test_frozen_layers_are_rounded_and_stay_frozen():
    model = net()
    model.get_layer("head").trainable = False
    student = tfc.compress(model, tfc.Decomposition("0.9", activation_bits=8))
    layer = student.get_layer("head_unrounded")
    assert isinstance(layer, QuantizedKernel) and not layer.trainable
    kernel = np.array(layer.latent_kernel)
    np.testing.assert_array_equal(kernel, model.get_layer("head").kernel)


def test_plan_notes_kernels_that_are_rounded():
    def notes(**bits):
        rows = tfc.plan(net(), tfc.Decomposition("0.8", **bits)).rows
        return {row.name: row.note for row in rows if row.config is None}

    assert notes(activation_bits=8)["depthwise"] == "kernel rounded to 8 bits"
    assert not any(notes().values())
