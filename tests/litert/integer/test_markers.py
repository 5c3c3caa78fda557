"""Marks of quantized activations in a float file, and their removal."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tests.litert.models import operators
from tests.litert.packed_models import quantize_activation
from tfcompress.litert import flatbuffer
from tfcompress.litert.convert import float_tflite
from tfcompress.litert.integer.markers import marked, take_out
from tfcompress.litert.runtime import Runner


def model():
    x = inputs = keras.Input((8, 8, 2))
    a = quantize_activation(8, True, 0.1)(kl.Conv2D(2, 3, padding="same")(x))
    b = quantize_activation(8, True, 0.2)(kl.Conv2D(2, 1)(x))
    pooled = kl.MaxPooling2D()(kl.Concatenate()([kl.Add()([a, b]), a]))
    other = quantize_activation(8, False, 0.4)(kl.GlobalAveragePooling2D()(pooled))
    return keras.Model(inputs, [other, pooled])


@pytest.fixture(scope="module")
def taken():
    """`(model, parsed file without marks, Marks)`."""
    plain = model()
    copy, levels = marked(plain)
    assert sorted(x.scale for x in levels) == pytest.approx([0.1, 0.2, 0.4])
    file = flatbuffer.read(float_tflite(copy))
    flatbuffer.make_names_unique(file)
    return plain, file, take_out(file, levels)


def test_file_without_marks_computes_what_the_float_model_does(taken):
    plain, file, _ = taken
    content = flatbuffer.write(file)
    assert "MINIMUM" not in operators(content)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype("float32")
    mean, image = sorted(Runner(content)([x]), key=np.ndim)
    first, second = [y for y in plain.layers if isinstance(y, kl.Conv2D)]
    a, b = np.array(first(x)), np.array(second(x))
    pooled = kl.MaxPooling2D()(np.concatenate([a + b, a], -1))
    np.testing.assert_allclose(image, pooled, atol=1e-5)
    np.testing.assert_allclose(mean, np.mean(pooled, (1, 2)), atol=1e-5)


def test_marks_tell_the_levels_of_tensors_and_of_their_readers(taken):
    _, file, marks = taken
    graph = file.subgraphs[0]
    made = {
        x.name: marks.made[x.name].scale for x in graph.tensors if x.name in marks.made
    }
    assert sorted(made.values()) == pytest.approx([0.1, 0.2, 0.4])
    (add,) = [
        operator
        for operator in graph.operators
        if flatbuffer.operator_name(file, operator) == "ADD"
    ]
    name = graph.tensors[add.outputs[0]].name
    read = [marks.read[name, place].scale for place in (0, 1)]
    assert read == pytest.approx([0.1, 0.2])
    # The concatenation of the sum has no levels.
    assert [x.scale for x in marks.returned.values()] == [pytest.approx(0.4)]
