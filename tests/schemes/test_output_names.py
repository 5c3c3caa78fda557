"""Names of inputs and outputs, and structures of outputs, from model to final form."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.litert import predict

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(0.3),
    "uniform": lambda: tfc.Uniform(8, 4),
    "bit_sharing": lambda: tfc.BitSharing(bops="1/16"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "decomposition": lambda: tfc.Decomposition(params="0.95"),
}


def dense(units, name, x, **config):
    return layers.Dense(units, name=name, **config)(x)


def normalized(units, name, x):
    """A dense layer and the BatchNormalization with the name of the output."""
    return layers.BatchNormalization(name=name)(dense(units, f"{name}_dense", x))


def stem():
    inputs = keras.Input((6,), name="features")
    return inputs, dense(8, "stem", inputs, activation="relu")


def one():
    inputs, x = stem()
    return keras.Model(inputs, normalized(4, "score", x))


def several():
    inputs, x = stem()
    last = ops.relu(dense(3, "third", x))
    return keras.Model(inputs, [normalized(4, "first", x), dense(2, "second", x), last])


def named():
    inputs, x = stem()
    outputs = {"z": normalized(4, "norm", x), "a": dense(2, "second", x), "m": x}
    return keras.Model({"features": inputs}, outputs)


def nested():
    start = keras.Input((8,))
    inner = keras.Model(start, normalized(8, "inside", start), name="inner")
    inputs, x = stem()
    return keras.Model(inputs, [inner(x), dense(3, "head", x)])


def twice():
    inputs, x = stem()
    x = normalized(4, "norm", x)
    return keras.Model(inputs, [x, x])


def sequential():
    return keras.Sequential(
        [
            keras.Input((6,), name="features"),
            layers.Dense(8, activation="relu", name="stem"),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(name="score"),
        ]
    )


MODELS = [one, several, named, nested, twice, sequential]


def features():
    return np.random.default_rng(0).normal(size=(32, 6)).astype("float32")


def inputs_of(model):
    is_dict = isinstance(getattr(model, "input", None), dict)
    return {"features": features()} if is_dict else features()


def trained(model, scheme):
    student = tfc.compress(model, scheme)
    outputs = student(inputs_of(model))
    zeros = keras.tree.map_structure(lambda y: np.zeros(y.shape), outputs)
    student.compile("adam", keras.tree.map_structure(lambda _: "mse", zeros))
    student.fit(inputs_of(model), zeros, verbose=0)
    return student


def output_names(model):
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    return model.output_names


@pytest.mark.parametrize(
    "scheme, make",
    [
        *(("uniform", make) for make in MODELS),
        *(("decomposition", make) for make in (several, named, nested)),
        *((scheme, several) for scheme in ("ternary", "bit_sharing", "size")),
    ],
)
def test_names_and_structures_of_outputs_stay(scheme, make, tmp_path):
    model = make()
    student = trained(model, SCHEMES[scheme]())
    forms = {"student": student, "final": tfc.finalize(student)}
    if scheme in ("ternary", "size"):
        forms["plain"] = tfc.dequantize(student)
    forms["final"].save(tmp_path / "final.keras")
    forms["loaded"] = keras.models.load_model(tmp_path / "final.keras")
    inputs = inputs_of(model)
    expected = student(inputs, training=False)
    for name, form in forms.items():
        assert output_names(form) == output_names(model), name
        assert [x.name for x in form.inputs] == ["features"], name
        found = form(inputs, training=False)
        keras.tree.assert_same_structure(found, expected)
        if isinstance(expected, dict):
            assert list(found) == list(model(inputs)), name
        for x, y in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("scheme", ["ternary", "decomposition"])
def test_losses_by_output_name_fit_the_model_and_its_final_form(scheme):
    scheme = SCHEMES[scheme]()
    scheme.weight_decay = 0.0  # a part of the student's loss alone
    student = trained(several(), scheme)
    relu = student.output_names[2]
    losses = {"first": "mse", "second": "mae", relu: "mse"}
    targets = {"first": (32, 4), "second": (32, 2), relu: (32, 3)}
    targets = {name: np.zeros(shape) for name, shape in targets.items()}
    tiny = tfc.finalize(student)
    found = []
    for model in (student, tiny):
        model.compile(loss=losses)
        found.append(model.evaluate(features(), targets, verbose=0, return_dict=True))
    assert found[0]["first_loss"] > 0
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_file_has_the_outputs_of_a_model_whose_last_layer_was_folded(tmp_path):
    student = trained(named(), SCHEMES["ternary"]())
    tiny = tfc.finalize(student)
    tfc.export(tiny, tmp_path / "tiny.tflite")
    found = predict(tmp_path / "tiny.tflite", features())
    expected = tiny.predict({"features": features()}, verbose=0)
    assert set(found) == set(expected) == {"z", "a", "m"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5)


def test_input_layers_keep_their_names():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, dense(3, "head", inputs))
    student = tfc.compress(model, tfc.PrunedTernary())
    for new in (student, tfc.finalize(student)):
        assert [layer.name for layer in new.layers] == [x.name for x in model.layers]
        assert new.inputs[0].name == model.inputs[0].name
