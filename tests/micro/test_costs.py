"""Kernels that are looked up, or stay INT8, so that a file takes little more time."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.litert.packed_models import make_packed
from tests.micro.test_rewrite import made
from tfcompress.litert import flatbuffer
from tfcompress.micro.costs import looked_up_in_time
from tfcompress.micro.encodings.encoded import LOOKUP
from tfcompress.micro.kernels import stored_kernels

pytestmark = pytest.mark.filterwarnings("ignore:TensorFlow Lite Micro and Keras have")


@pytest.fixture(scope="module")
def model():
    """Weights that are read 256 times, four times (in 5 bits) and once."""
    inputs = keras.Input((16, 16, 8))
    x = kl.Conv2D(32, 3, padding="same", activation="relu", name="often")(inputs)
    x = kl.Conv2D(64, 3, strides=8, activation="relu", name="rarely")(x)
    x = kl.Dense(80, activation="relu", name="once")(kl.Flatten()(x))
    return make_packed(keras.Model(inputs, kl.Dense(2, name="head")(x)), (2, 5, 2, 8))


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).normal(size=(8, 16, 16, 8)).astype("float32")


@pytest.mark.parametrize(
    "options, encodings",
    [
        ({}, ["Huffman", "Huffman", "Huffman"]),
        ({"optimize": "size"}, ["Huffman", "Huffman", "Huffman"]),
        ({"optimize": "latency", "allowance": 1.0}, ["INT8", "INT8", "INT8"]),
        ({"optimize": "latency"}, ["look-up", "INT8", "look-up"]),
        ({"optimize": "latency", "allowance": 9}, ["look-up", "look-up", "look-up"]),
    ],
)
def test_latency_has_look_up_tables_within_the_allowance(
    runtime, model, samples, options, encodings, tmp_path
):
    report = tfc.export(
        model, tmp_path / "model.tflite", samples, representative_data=samples,
        target="micro", **options,
    )  # fmt: skip
    *rows, head = report["tensors"]
    assert [row["encoding"] for row in rows] == encodings
    for row in rows:
        expected = "longer than allowed" if row["encoding"] == "INT8" else "fewest byte"
        assert expected in row["reason"]
        is_limited = "latency" in options.values() and row["encoding"] == "look-up"
        assert ("in little time" in row["reason"]) == is_limited
    assert head["reason"] == "no encoding saves bytes"


@pytest.mark.slow
def test_kernel_in_parts_and_one_that_does_not_fit_have_reasons(
    runtime, model, samples, tmp_path
):
    def rows(**options):
        report = tfc.export(
            model, tmp_path / "model.tflite", samples, representative_data=samples,
            target="micro", **options,
        )  # fmt: skip
        least = report["micro"]["int8_arena_bytes"]
        return least, {row["tensor"]: row["reason"] for row in report["tensors"]}

    least, _ = rows()
    _, reasons = rows(arena=least)
    assert "does not fit in the arena" in reasons["often"]
    _, reasons = rows(arena=least + 3000)
    assert "in parts that fit in the arena" in "".join(reasons.values())


@pytest.mark.parametrize("allowance", [1.0, 1.01, 1.1, 2.0, 20.0])
def test_larger_allowance_lets_more_kernels_be_looked_up(allowance):
    stack = [kl.Conv2D(n, 3, name=f"conv{n}") for n in (16, 24, 48)]
    _, _, plain = made((14, 14, 8), [*stack, kl.Flatten(), kl.Dense(30)], (4, 2, 6, 3))
    less = looked_up_in_time(plain, allowance)
    more = looked_up_in_time(plain, 2 * allowance)
    assert {x for x, kinds in less.items() if kinds} <= set(more)
    assert [*less] == [
        kernel.operators[0] for kernel in stored_kernels(flatbuffer.read(plain))
    ]
    assert sum(map(len, less.values())) <= sum(map(len, more.values()))
    assert set(less.values()) <= {(), (LOOKUP,)}
    assert any(less.values()) == (allowance > 1)
