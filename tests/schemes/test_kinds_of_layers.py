"""Every kind of layer in the table of forms, in every scheme, to a proven file."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.schemes.int8_files import export_int8
from tfcompress.layers.registry import forms_of

# `(layer, shape of its input)`. Each follows a convolution or a dense layer.
KINDS = {
    "Conv1DTranspose": (lambda: layers.Conv1DTranspose(6, 3, strides=2), (6, 4)),
    "Conv2DTranspose": (lambda: layers.Conv2DTranspose(6, 3, strides=2), (6, 6, 4)),
    "Conv2DTranspose, same": (
        lambda: layers.Conv2DTranspose(6, 4, strides=2, padding="same", use_bias=False),
        (6, 6, 4),
    ),
    "Conv3D": (lambda: layers.Conv3D(6, 3, padding="same"), (4, 6, 6, 4)),
    "DepthwiseConv1D": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 4)),
}
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(0.5),
    "uniform": lambda: tfc.Uniform(4),
    "bits": lambda: tfc.BitSharing("1/40", group_size=2),
    "size": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "ranks": lambda: tfc.Decomposition("6/7"),
}


def network(kind):
    """A network with a layer of the kind, before and after others that are treated."""
    make, shape = KINDS[kind]
    layer = make()
    inputs = keras.Input(shape)
    x = layers.Dense(shape[-1], activation="relu", name="before")(inputs)
    x = layer(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(16, activation="relu", name="after")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))), layer.name


def trained(kind, scheme):
    keras.utils.set_random_seed(0)
    model, name = network(kind)
    student = tfc.compress(model, SCHEMES[scheme]())
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, *model.input_shape[1:])).astype("float32")
    student.fit(x, rng.integers(2, size=32), batch_size=8, epochs=2, verbose=0)
    return student, name, x


def cases():
    """Every kind in every scheme; those in one scheme, and one in most, are quick."""
    for scheme in SCHEMES:
        for kind in KINDS:
            is_quick = scheme == "ternary" or kind == "Conv2DTranspose"
            is_quick &= scheme != "bits"  # it takes longest
            yield pytest.param(scheme, kind, marks=() if is_quick else pytest.mark.slow)


@pytest.mark.parametrize("scheme, kind", cases())
def test_each_scheme_ends_in_a_proven_file(kind, scheme, tmp_path):
    student, name, x = trained(kind, scheme)
    if scheme != "ranks":
        assert forms_of(student.get_layer(name)).quantized
    tiny = tfc.finalize(student)
    np.testing.assert_allclose(
        tiny.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-3
    )
    for optimize in ("size", "latency"):
        path = tmp_path / f"{optimize}.tflite"
        report = tfc.export(tiny, path, optimize=optimize, verify=x)
        # Operators that read integers round their inputs to 8 bits.
        assert report["agreement"]["top1"] >= (1 if optimize == "size" else 0.9)


@pytest.mark.parametrize("kind", ["Conv2DTranspose, same", "Conv1DTranspose"])
def test_integer_files_have_the_codes_of_transposed_kernels(kind, tmp_path):
    student, name, x = trained(kind, "uniform")
    tiny = tfc.finalize(student)
    report = export_int8(tiny, tmp_path, x)
    assert ("INT8", name) in [(row["type"], row["layer"]) for row in report["tensors"]]
    assert report["agreement"]["top1"] > 0.9


def test_integer_files_refuse_three_dimensional_kernels(tmp_path):
    student, name, x = trained("Conv3D", "uniform")
    with pytest.raises(ValueError, match=f"'{name}', whose CONV_3D has none"):
        export_int8(tfc.finalize(student), tmp_path, x)
    assert not list(tmp_path.iterdir())


def test_a_small_u_net_is_nearly_all_compressed():
    inputs = keras.Input((16, 16, 1))
    down = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(down)
    x = layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(x)
    x = layers.Concatenate()([down, x])
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    model = keras.Model(inputs, layers.Conv2D(1, 1)(x))
    plan = tfc.plan(model, tfc.PrunedTernary())
    treated = sum(row.layer.count_params() for row in plan.treated())
    assert treated == model.count_params()
