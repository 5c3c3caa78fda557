"""Split separable convolutions, compared with the separable ones."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.parts import replacement
from tfcompress.graph.parts.replacement import replace_by_parts

ARGUMENTS = [
    {},
    {"strides": 2, "padding": "same", "depth_multiplier": 3, "use_bias": False},
    {"dilation_rate": 2, "activation": "tanh"},
]


def random_net(separable, shape):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.BatchNormalization(name="norm")(separable(inputs))
    outputs = layers.Dense(3, name="head")(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.ndim == 1:  # neither zeros nor ones
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize(
    ("kind", "shape", "parts"),
    [
        (layers.SeparableConv1D, (12, 4), ("DepthwiseConv1D", "Conv1D")),
        (layers.SeparableConv2D, (12, 12, 4), ("DepthwiseConv2D", "Conv2D")),
    ],
)
def test_split_model_predicts_as_the_separable_one(kind, shape, parts, arguments):
    model = random_net(kind(5, 3, name="a", **arguments), shape)
    before = model.get_weights()
    split = replace_by_parts(model).model
    names = [(x.name, type(x).__name__) for x in split.layers]
    assert list(zip(("a_depthwise", "a"), parts, strict=True)) == names[1:3]
    assert split.count_params() == model.count_params()
    x = np.random.default_rng(2).normal(size=(4, *shape)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(split.predict(x, verbose=0), expected, atol=1e-5)
    split.set_weights([np.zeros_like(w) for w in split.get_weights()])
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


def test_split_gives_each_part_its_arguments():
    decay, limit = keras.regularizers.L2(0.1), keras.constraints.MaxNorm(1.0)
    separable = layers.SeparableConv2D(
        5,
        3,
        name="a",
        trainable=False,
        depthwise_regularizer=decay,
        pointwise_constraint=limit,
        bias_initializer="ones",
        activity_regularizer=decay,
    )
    split = replace_by_parts(random_net(separable, (8, 8, 2))).model
    depthwise, pointwise = split.get_layer("a_depthwise"), split.get_layer("a")
    assert depthwise.depthwise_regularizer.l2 == pytest.approx(0.1)
    assert depthwise.activity_regularizer is None
    assert pointwise.kernel_regularizer is None
    assert pointwise.kernel_constraint.max_value == 1.0
    assert pointwise.activity_regularizer.l2 == pytest.approx(0.1)
    assert isinstance(pointwise.bias_initializer, keras.initializers.Ones)
    assert not depthwise.trainable and not pointwise.trainable


def test_model_with_nothing_to_open_is_returned_itself():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert replace_by_parts(model).model is model


def test_split_handles_shared_and_nested_layers():
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.SeparableConv2D(4, 3)])
    shared = layers.SeparableConv2D(4, 3, padding="same")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, inner(shared(shared(inputs))))
    split = replace_by_parts(model).model
    assert replace_by_parts(split).model is split
    assert split.count_params() == model.count_params()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(split(x), model(x), atol=1e-5)


def test_pruned_ternary_packs_and_exports_both_parts(tmp_path):
    model = random_net(layers.SeparableConv2D(16, 3, name="a"), (10, 10, 4))
    uniform = tfc.QuantizeConfig(tfc.quantizers.Uniform(8))
    student = tfc.compress(model, tfc.PrunedTernary(overrides={"a": uniform}))
    tiny = tfc.finalize(student)
    kinds = [type(tiny.get_layer(name)).__name__ for name in ("a_depthwise", "a")]
    assert kinds == ["PackedDepthwiseConv2D", "PackedConv2D"]
    x = np.random.default_rng(0).normal(size=(8, 10, 10, 4)).astype("float32")
    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=x)
    assert [tensor["type"] for tensor in report["tensors"]].count("INT8") >= 2


def test_override_of_a_separable_layer_holds_for_both_parts():
    model = random_net(layers.SeparableConv2D(16, 3, name="a"), (10, 10, 4))

    def treatments(overrides):
        planned = tfc.plan(model, tfc.PrunedTernary(overrides=overrides))
        return {row.name: row.treatment for row in planned.rows}

    kept = treatments({"a": tfc.KeepFloat("as it is")})
    assert kept["a"] == kept["a_depthwise"] == "left alone: as it is"
    own = treatments(
        {
            "a_depthwise": tfc.KeepFloat("small"),
            "a": tfc.QuantizeConfig(tfc.quantizers.Uniform(4)),
        }
    )
    assert own["a_depthwise"] == "left alone: small"
    assert own["a"] == "4-bit weights"


def test_decomposition_shrinks_the_pointwise_part():
    model = random_net(layers.SeparableConv2D(32, 3, name="a"), (10, 10, 16))
    factorize = tfc.Factorize("identity")
    scheme = tfc.Decomposition(macs="1/2", overrides={"a": factorize})
    student = tfc.compress(model, scheme)
    assert type(student.get_layer("a_depthwise")) is layers.DepthwiseConv2D
    student.compile(keras.optimizers.SGD(1e-3), "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 10, 10, 16)).astype("float32")
    student.fit(x, rng.normal(size=(32, 3)), epochs=4, verbose=0)
    small = tfc.finalize(student)
    assert {type(layer).__module__.split(".")[0] for layer in small.layers} == {"keras"}
    macs, whole = (total_cost(layer_costs(m)).macs for m in (small, model))
    assert macs <= whole / 2
    np.testing.assert_allclose(
        small.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-4
    )


def test_layers_of_keras_are_not_copied_to_find_what_may_open(monkeypatch):
    def fail(layer):
        raise AssertionError(f"{layer.name} was copied")

    monkeypatch.setattr(replacement, "clone_layer", fail)
    model = random_net(layers.Conv2D(3, 3), (12, 12, 4))
    assert replace_by_parts(model).model is model
