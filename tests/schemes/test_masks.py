"""Masks of sequences, which every layer of a student passes on as the model does."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph.graph import Graph
from tfcompress.layers.kernel import kernel_of

STEPS = 7
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(0.3),
    "uniform": lambda: tfc.Uniform(8, 4),
    "bit_sharing": lambda: tfc.BitSharing(bops="1/16"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "decomposition": lambda: tfc.Decomposition(params="0.95"),
}


def embedding():
    return layers.Embedding(20, 8, mask_zero=True, name="embedding")


def dense(name, **config):
    return layers.Dense(8, activation="relu", name=name, **config)


def norm(name):
    return layers.BatchNormalization(name=name)


def inner(*stack, sequential, start=(None, 8), dtype="float32"):
    model = stacked(stack, sequential, start, dtype)
    model.name = "inner"
    return model


def stacked(stack, sequential, start=(None,), dtype="int32"):
    inputs = keras.Input(start, dtype=dtype)
    if sequential:
        return keras.Sequential([inputs, *stack])
    outputs = inputs
    for layer in stack:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def end(reduce):
    return [reduce, layers.Dense(3, name="head")]


def means(sequential):
    first = [embedding(), dense("a"), norm("norm"), dense("b")]
    return [*first, *end(layers.GlobalAveragePooling1D())]


def recurrent(sequential):
    return [embedding(), dense("a"), dense("b"), *end(layers.LSTM(5))]


def after_convolution(sequential):
    conv = layers.Conv1D(8, 3, padding="same", activation="relu", name="a")
    return [embedding(), conv, dense("b"), *end(layers.GlobalAveragePooling1D())]


def nested_start(sequential):
    ids = {"start": (None,), "dtype": "int32"}
    first = inner(embedding(), dense("a"), sequential=sequential, **ids)
    return [first, dense("b"), *end(layers.LSTM(5))]


def nested_middle(sequential):
    middle = inner(dense("a"), norm("norm"), dense("b"), sequential=sequential)
    return [embedding(), middle, *end(layers.GlobalAveragePooling1D())]


def every_step(sequential):
    return [embedding(), dense("a"), dense("b"), layers.Dense(3, name="head")]


STACKS = [
    means, recurrent, after_convolution, nested_start, nested_middle, every_step,
]  # fmt: skip


def padded_ids(samples=32):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (samples, STEPS))
    ids[np.arange(STEPS) >= rng.integers(2, STEPS, samples)[:, None]] = 0
    return ids.astype("int32")


def outputs_of(model, ids):
    return keras.ops.convert_to_numpy(model(ids, training=False))


def is_masked(model, ids):
    return getattr(model(ids), "_keras_mask", None) is not None


def ignores_padding(model, ids):
    """Whether outputs of the real steps do not depend on the vector of padding."""
    (first,) = [
        layer
        for layer in Graph(model).layers().values()
        if isinstance(layer, layers.Embedding)
    ]
    packed = isinstance(first, tfc.layers.PackedKernel)
    table = first.kernel_scale if packed else kernel_of(first)
    before, values = outputs_of(model, ids), keras.ops.convert_to_numpy(table)
    table.assign(np.concatenate([values[:1] + 5, values[1:]]))
    after = outputs_of(model, ids)
    table.assign(values)
    if after.ndim == 3:
        before, after = before[ids > 0], after[ids > 0]
    return np.allclose(after, before, atol=1e-5)


def trained(model, scheme, ids):
    student = tfc.compress(model, scheme)
    student.compile("adam", "mse")
    student.fit(ids, np.zeros(outputs_of(model, ids).shape), epochs=1, verbose=0)
    return student


# Convolutions and nested models of Keras itself warn.
@pytest.mark.filterwarnings("ignore:.*destroy the mask")
@pytest.mark.parametrize(
    "scheme, stack, sequential",
    [
        *(("uniform", stack, False) for stack in STACKS),
        ("uniform", nested_middle, True),
        ("uniform", recurrent, True),
        *((scheme, nested_middle, False) for scheme in SCHEMES if scheme != "uniform"),
        ("decomposition", every_step, False),
    ],
)
def test_student_and_its_final_form_keep_masks(scheme, stack, sequential):
    ids = padded_ids()
    # Bit operations are counted for a known number of steps.
    start = (STEPS,) if scheme == "bit_sharing" else (None,)
    model = stacked(stack(sequential), sequential, start)
    student = trained(model, SCHEMES[scheme](), ids)
    tiny = tfc.finalize(student)
    expected = outputs_of(student, ids)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs_of(tiny, ids), expected, atol=1e-5 * scale)
    for compressed in (student, tiny):
        assert is_masked(compressed, ids) == is_masked(model, ids)
        # A convolution reads padding in Keras as well.
        assert ignores_padding(compressed, ids) == ignores_padding(model, ids)


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.__name__)
def test_exact_student_starts_with_the_masked_outputs_of_the_model(stack):
    ids = padded_ids()
    model = stacked(stack(False), False)
    student = tfc.compress(model, tfc.Decomposition(params="0.95"))
    np.testing.assert_allclose(
        outputs_of(student, ids), outputs_of(model, ids), atol=1e-5
    )


def test_layers_of_a_student_do_not_destroy_masks():
    ids = padded_ids()
    model = stacked(means(False), False, (STEPS,))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*destroy the mask.*")
        student = trained(model, tfc.BitSharing(bops="1/16"), ids)
        tfc.finalize(student)(ids)


def test_statistics_within_a_factorized_layer_ignore_padding():
    ids = padded_ids()
    model = stacked([embedding(), layers.Dense(8, name="a"), norm("norm"),
                     *end(layers.GlobalAveragePooling1D())], False)  # fmt: skip
    means_found = []
    for inputs in (ids, np.pad(ids, [(0, 0), (0, 20)])):
        between = {"start": "identity", "batch_norm": "between"}
        scheme = tfc.Decomposition(params="0.95", **between)
        student = tfc.compress(model, scheme)
        with student.training_run.own_pass():
            student(inputs, training=True)
        statistics = student.get_layer("a").normalization
        means_found.append(keras.ops.convert_to_numpy(statistics.moving_mean))
    np.testing.assert_allclose(*means_found, atol=1e-6)
    assert np.abs(means_found[0]).max() > 1e-6
