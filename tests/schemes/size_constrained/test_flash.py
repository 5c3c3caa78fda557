"""Budget in the flash of the file for microcontrollers."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.schemes.size_constrained.budget import estimated_size


def wide_net():
    """Two convolutions with batch normalization, and a dense layer."""
    x = inputs = keras.Input((28, 28, 1))
    for i, filters in enumerate((8, 64)):
        x = layers.Conv2D(filters, 5, strides=2, use_bias=False, name=f"conv{i}")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x))


@pytest.fixture(scope="module")
def trained_wide(mnist, compile_for_digits):
    keras.utils.set_random_seed(0)
    model = wide_net()
    compile_for_digits(model, keras.optimizers.Adam(1e-2))
    model.fit(*mnist[0], epochs=3, batch_size=64, verbose=0)
    return model


@pytest.mark.parametrize(
    "codebook", ["uniform", pytest.param("kmeans", marks=pytest.mark.slow)]
)
def test_flash_is_kept_by_the_file_for_microcontrollers(
    codebook, trained_wide, mnist, compile_for_digits, tmp_path
):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    scheme = tfc.SizeConstrained(size="10 kB", target="micro", codebook=codebook)
    student = tfc.compress(trained_wide, scheme)
    compile_for_digits(student, keras.optimizers.SGD(0.02, momentum=0.9))
    images, labels = mnist[0][0][:480], mnist[0][1][:480]
    history = student.fit(images, labels, batch_size=80, epochs=4, verbose=0).history
    assert history["flash_bytes"][-1] <= 10_000 and history["phase"][-1] == 1
    tiny = tfc.finalize(student)
    report = tfc.export(
        tiny, tmp_path / "tiny.tflite", images[:100], representative_data=images,
        target="micro",
    )  # fmt: skip
    flash = report["micro"]["flash_bytes"]
    assert 9_000 < flash <= 10_000
    assert report["micro"]["int8_flash_bytes"] > 15_000
    assert 0.7 < estimated_size(tiny, "flash_bytes") / flash < 1.4


def test_flash_that_cannot_be_met_is_refused_with_the_least(trained_wide):
    with pytest.raises(ValueError, match="flash bytes can be met. Received") as error:
        tfc.compress(trained_wide, tfc.SizeConstrained(size=1, target="micro"))
    least = int(re.search(r"at least ([\d,]+)", str(error.value))[1].replace(",", ""))
    assert 1_000 < least < 10_000
    tfc.compress(trained_wide, tfc.SizeConstrained(size=least, target="micro"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*of the weights are left alone")
def test_embedding_is_left_alone_and_its_rows_count_a_byte_a_weight(tmp_path):
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    words = keras.Input((8,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(300, 16, name="table")(words))
    outputs = layers.Dense(4)(layers.Dense(100, activation="relu")(x))
    model = keras.Model(words, outputs)
    scheme = tfc.SizeConstrained(size="12 kB", target="micro")
    rows = {row.name: row for row in tfc.plan(model, scheme).rows}
    assert rows["table"].config is None and "INT8 in flash" in rows["table"].reason
    student = tfc.compress(model, scheme)
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 300, (64, 8)), rng.integers(0, 4, 64)
    student.fit(x, y, batch_size=16, epochs=4, verbose=0)
    tiny = tfc.finalize(student)
    report = tfc.export(
        tiny, tmp_path / "tiny.tflite", x, representative_data=x, target="micro"
    )
    flash = report["micro"]["flash_bytes"]
    assert 10_000 < flash <= 12_000 < report["micro"]["int8_flash_bytes"]
    assert report["tensors"][0]["bytes"] == 300 * 16
    assert 0.7 < estimated_size(tiny, "flash_bytes") / flash < 1.4


def test_target_is_kept_in_the_configuration():
    scheme = tfc.SizeConstrained(size="10 kB", target="micro")
    config = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(scheme)
    )
    assert (config.target, config.unit()) == ("micro", "flash_bytes")
    assert tfc.SizeConstrained(size="10 kB").unit() == "xz_bytes"


@pytest.mark.parametrize("arguments", [
    {"target": "phone"}, {"target": "micro", "compression": "xz"},
    {"target": "micro", "size": None, "value_bits": "1/20"},
])  # fmt: skip
def test_targets_that_contradict_other_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="target.*Received"):
        tfc.SizeConstrained(**{"size": "10 kB", **arguments})
