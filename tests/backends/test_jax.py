"""JAX, on a machine without TensorFlow, trains what TensorFlow does.

`make test-jax` makes the environment for it and the losses to compare with.
"""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.backends import curves

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="run by `make test-jax`"
)


@pytest.fixture(scope="module")
def single():
    """Losses of one device."""
    return {name: curves.train(name) for name in curves.TRAININGS}


@pytest.fixture(scope="module")
def reference():
    """Losses of TensorFlow."""
    with open(os.environ["TENSORFLOW_CURVES"]) as file:
        return json.load(file)


def check_losses(received, expected):
    """Thresholds make weights jump: another order of sums tips one, and that grows."""
    np.testing.assert_allclose(received[0], expected[0], rtol=1e-3)
    np.testing.assert_allclose(received, expected, rtol=1e-2)


@pytest.mark.parametrize("name", curves.TRAININGS)
def test_the_same_losses_as_with_tensorflow(name, single, reference):
    check_losses(single[name], reference[name])


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """Losses of two devices, trained in a process of its own."""
    file = tmp_path_factory.mktemp("parallel") / "curves.json"
    subprocess.run(
        [sys.executable, "-m", "tests.backends.curves", str(file), "--data_parallel"],
        check=True,
    )
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", curves.TRAININGS)
def test_two_devices_train_what_one_does(name, single, parallel):
    assert parallel["devices"] == 2
    check_losses(parallel[name], single[name])


def test_tensorflow_was_not_needed(single):
    assert "tensorflow" not in sys.modules


def test_export_says_what_to_do():
    with pytest.raises(ModuleNotFoundError, match="Save the finalized model as"):
        _ = tfc.export


@pytest.mark.parametrize(
    ("scheme", "count"),
    [
        (tfc.PrunedTernary(activation_bits=8), 4),
        (tfc.Decomposition(penalty=0.01, activation_bits=8), 6),
    ],
    ids=["ternary", "ranks"],
)
def test_ranges_of_tensors_between_layers_are_trained(scheme, count):
    inputs = keras.Input((8, 8, 3))
    x = shortcut = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Add()([keras.layers.Conv2D(4, 3, padding="same")(x), shortcut])
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    student = tfc.compress(model, scheme)
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    labels = np.argmax(images.mean((1, 2)), axis=1)
    student.compile("adam", "sparse_categorical_crossentropy")
    ranges = [x for x in student.layers if hasattr(x, "quantizer")]
    student.fit(images, labels, batch_size=16, epochs=1, verbose=0)
    before = [x.quantizer.scale_value() for x in ranges]
    student.fit(images, labels, batch_size=16, epochs=2, verbose=0)
    after = [x.quantizer.scale_value() for x in ranges]
    assert len(ranges) == count
    assert all(a != b for a, b in zip(before, after, strict=True))
    tiny = tfc.finalize(student)
    np.testing.assert_allclose(tiny(images), student(images), atol=0.05)
    assert any(getattr(layer, "integer", False) for layer in tiny.layers)
    np.testing.assert_allclose(tiny(images[:1]), tiny(images)[:1], atol=1e-6)
