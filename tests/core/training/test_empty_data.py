"""Trainings without samples, and files whose configuration is damaged."""

import copy

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

X, Y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")


def student(scheme=None, **options):
    x = inputs = keras.Input((4,))
    for i, units in enumerate((8, 8, 8, 2)):
        x = layers.Dense(units, name=f"dense{i}")(x)
    scheme = scheme or tfc.PrunedTernary()
    made = tfc.compress(keras.Model(inputs, x), scheme, **options)
    made.compile("sgd", "mse")
    return made


class NoBatches(keras.utils.PyDataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


def datasets():
    import tensorflow as tf

    empty = tf.data.Dataset.from_tensor_slices((X[:0], Y[:0]))
    return {
        "dataset": empty.batch(4),
        "unknown length": empty.filter(lambda *_: True).batch(4),
        "empty batch": tf.data.Dataset.from_tensors((X[:0], Y[:0])),
    }


EMPTY = {
    "arrays": lambda: (X[:0], Y[:0]),
    "generator": lambda: (iter(()),),
    "sequence": lambda: (NoBatches(),),
    "list": lambda: ([], []),
    "nothing": lambda: (None, None),
    "scalar": lambda: (np.float32(1), np.float32(1)),
    **{name: lambda name=name: (datasets()[name],) for name in (
        "dataset", "unknown length", "empty batch")},
}  # fmt: skip


@pytest.mark.parametrize("name", EMPTY)
def test_training_without_samples_is_refused(name):
    with pytest.raises(ValueError, match="At least one sample is expected in `x`"):
        student().fit(*EMPTY[name](), verbose=0)


@pytest.mark.parametrize("name", ["arrays", "dataset"])
def test_validation_without_samples_is_refused(name):
    data = EMPTY[name]()
    data = data[0] if len(data) == 1 else data
    with pytest.raises(ValueError, match="At least one sample.*`validation_data`"):
        student().fit(X, Y, validation_data=data, verbose=0)


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"The same number of samples.*\[8, 3\]"):
        student().fit([X, X[:3]], Y, verbose=0)


def paths(config, before=()):
    """The paths of all entries of nested dicts and lists."""
    items = config.items() if isinstance(config, dict) else ()
    if isinstance(config, list):
        items = enumerate(config)
    for key, value in items:
        yield (*before, key)
        yield from paths(value, (*before, key))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param((KeyError, None, "x"), id="missing or text"),
        pytest.param((3, {}, []), id="other types", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("scheme", [
    tfc.PrunedTernary(overrides={"dense1": tfc.KeepFloat("small")}),
    tfc.BitSharing(bops="1/30"),
    tfc.Decomposition(macs="1/2"),
    tfc.SizeConstrained(value_bits="1/2"),
    tfc.Uniform(),
], ids=lambda x: type(x).__name__)  # fmt: skip
def test_damaged_configuration_loads_or_is_refused_with_its_part(scheme, values):
    distilled = isinstance(scheme, tfc.PrunedTernary)
    config = student(scheme, distill=distilled).get_config()
    parts = ["scheme", "distillation"][: 1 + distilled]
    where = [(part, *path) for part in parts for path in [(), *paths(config[part])]]
    for path in where:
        for value in values:
            damaged = copy.deepcopy(config)
            inner = damaged
            for key in path[:-1]:
                inner = inner[key]
            if value is KeyError:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            try:
                tfc.core.student.Student.from_config(damaged)
            except ValueError as error:
                assert "Received: " in str(error), (path, value)
