"""Every kind of layer in the table of forms, in every scheme, to a proven file."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
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
    "bits": lambda: tfc.BitSharing("1/30", group_size=2),
    "size": lambda: tfc.SizeConstrained(size="0.9"),
    "ranks": lambda: tfc.Decomposition(0.9),
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
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
        print(report)
        assert path.stat().st_size
