"""Tensors that int8 files store, and those that are parts of one operator."""

import keras
import pytest
from keras import layers as kl

from tfcompress.graph.graph import Graph
from tfcompress.graph.levels.stored_tensors import StoredTensors, passes_levels

SHAPE = (8, 8, 4)


def conv(x, **options):
    return kl.Conv2D(4, 3, padding="same", **options)(x)


def stored(build):
    x = keras.Input(SHAPE, name="x")
    return StoredTensors(Graph(keras.Model(x, build(x)))).all


# Names of the operations that make the stored tensors, without the model's input.
CASES = {
    "normalization and ReLU": (
        lambda x: kl.ReLU(name="a")(kl.BatchNormalization()(conv(x))),
        ["a"],
    ),
    "ReLU6": (lambda x: kl.ReLU(6, name="a")(conv(x)), ["a"]),
    "leaky ReLU": (lambda x: kl.LeakyReLU(name="a")(conv(x, name="b")), ["b", "a"]),
    "ReLU of another bound": (
        lambda x: kl.ReLU(3, name="a")(conv(x, name="b")),
        ["b", "a"],
    ),
    "ReLU after a sum": (
        lambda x: kl.Activation("relu", name="a")(kl.Add()([x, conv(x, name="b")])),
        ["b", "a"],
    ),
    "sums read twice": (
        lambda x: kl.Add(name="c")([kl.ReLU(name="a")(y := conv(x, name="b")), y]),
        ["b", "a", "c"],
    ),
    "pooling of the largest": (
        lambda x: kl.Flatten()(kl.MaxPooling2D()(conv(x, name="a"))),
        ["a"],
    ),
    "pooling of means": (
        lambda x: kl.AveragePooling2D(2, name="b")(conv(x, name="a")),
        ["a", "b"],
    ),
    "normalization of other axes": (
        lambda x: kl.BatchNormalization(axis=1, name="b")(conv(x, name="a")),
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_stored_tensors_leave_out_what_one_operator_computes(case):
    build, names = CASES[case]
    assert [x.call.operation.name for x in stored(build) if x.call] == names


@pytest.mark.parametrize(
    "join", [kl.Concatenate(), kl.Maximum(), kl.AveragePooling2D(2), kl.Add()]
)
def test_stored_tensors_of_operators_with_one_scale_share_it(join):
    is_pooling = isinstance(join, kl.AveragePooling2D)
    found = stored(lambda x: join(conv(x) if is_pooling else [conv(x), conv(x)]))[1:]
    scales = {x.scale for x in found}
    assert len(scales) == (len(found) if isinstance(join, kl.Add) else 1)
    joins = isinstance(join, (kl.Concatenate, kl.Maximum))
    assert [x.is_rounded for x in found][-1] != joins


@pytest.mark.parametrize(
    "name, step", [("sigmoid", 1 / 256), ("softmax", 1 / 256), ("tanh", 1 / 128)]
)
def test_stored_tensors_know_the_steps_that_operators_prescribe(name, step):
    builds = (
        lambda x: conv(x, activation=name),
        lambda x: kl.Activation(name)(conv(x)),
        lambda x: getattr(keras.ops, name)(conv(x)),
    )
    assert [stored(build)[-1].fixed_step for build in builds] == [step] * 3
    assert stored(lambda x: kl.LSTM(4)(kl.Reshape((64, 4))(x)))[-1].fixed_step is None


def test_passes_levels_of_the_nearest_pixels_alone():
    assert passes_levels(kl.UpSampling2D())
    assert not passes_levels(kl.UpSampling2D(interpolation="bilinear"))
    assert not passes_levels(kl.Add())
