"""Distillation in `fit`: schemes, replicas, XLA, precision, options, interruptions."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tests.backends.curves import digits, small_net

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.6, discrepancy=0.1),
    "bits": lambda: tfc.BitSharing(bops="1/30"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/20"),
    "ranks": lambda: tfc.Decomposition(macs="1/2"),
    "uniform": lambda: tfc.Uniform(4, 4),
}


def sgd(**kwargs):
    return keras.optimizers.SGD(0.05, momentum=0.9, **kwargs)


def fit(student, data=None, epochs=2, **kwargs):
    images, labels = digits()
    x = {"x": images, "y": labels, "batch_size": 64} if data is None else {"x": data}
    return student.fit(**x, epochs=epochs, shuffle=False, verbose=0, **kwargs).history


@pytest.mark.parametrize(
    "name",
    [
        "ternary",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("bits", "size", "ranks", "uniform")
        ),
    ],
)
def test_schemes_distil_with_accumulated_gradients_and_two_steps_per_call(name):
    images, _ = digits()
    student = tfc.compress(small_net(), SCHEMES[name](), distill=True)
    student.compile(
        sgd(gradient_accumulation_steps=2),
        CROSSENTROPY,
        steps_per_execution=2,
        jit_compile=False,
    )
    history = fit(student, epochs=4)
    assert np.isfinite(history["loss"]).all()
    assert np.min(history["distillation_loss"]) > 0
    tiny = tfc.finalize(student)
    expected, received = (x.predict(images, verbose=0) for x in (student, tiny))
    np.testing.assert_allclose(received, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, reduction",
    [
        ("ternary", "sum_over_batch_size"),
        pytest.param("ternary", "sum", marks=pytest.mark.slow),
        pytest.param("bits", "sum_over_batch_size", marks=pytest.mark.slow),
    ],
)
def test_two_replicas_distil_as_one_device_does(name, reduction, two_replicas):
    data = tf.data.Dataset.from_tensor_slices(digits()).take(256).batch(64)
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
    rate = 0.05 if reduction == "sum_over_batch_size" else 0.05 / 64

    def trained(strategy=None):
        keras.utils.set_random_seed(0)
        teacher = small_net(batch_norm=False)  # outside of the strategy
        with strategy.scope() if strategy else contextlib.nullcontext():
            student = tfc.compress(teacher, SCHEMES[name](), distill=True)
            optimizer = keras.optimizers.SGD(rate, momentum=0.9)
            student.compile(optimizer, loss, jit_compile=False)
        return fit(student, data), student

    history, one = trained()
    history_of_two, two = trained(two_replicas)
    # Of sums, Keras records the mean of the replicas.
    if reduction == "sum_over_batch_size":
        np.testing.assert_allclose(history_of_two["loss"], history["loss"], rtol=1e-5)
        np.testing.assert_allclose(
            history_of_two["distillation_loss"], history["distillation_loss"], rtol=1e-4
        )
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, err_msg=a.path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform", "size"])
def test_distillation_with_xla_ends_where_it_ends_without(name):
    images, _ = digits()
    ends = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        student = tfc.compress(small_net(), SCHEMES[name](), distill=True)
        student.compile(
            keras.optimizers.SGD(0.01), CROSSENTROPY, jit_compile=jit_compile
        )
        history = fit(student)
        ends.append((history["distillation_loss"], student.predict(images, verbose=0)))
    np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=1e-3)
    # The last bit before a rounding may differ.
    np.testing.assert_allclose(
        ends[1][1], ends[0][1], atol=0.05 * np.abs(ends[0][1]).max()
    )


@pytest.mark.parametrize(
    "name, policy",
    [
        ("ternary", "mixed_bfloat16"),
        pytest.param("uniform", "mixed_float16", marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_distils_about_as_float32_does(name, policy):
    losses = []
    for dtype_policy in ("float32", policy):
        keras.utils.set_random_seed(0)
        student = tfc.compress(small_net(), SCHEMES[name](), distill=True)
        for layer in (student, *student.layers[:-1]):
            layer.dtype_policy = dtype_policy
        student.compile(keras.optimizers.SGD(0.01), CROSSENTROPY, jit_compile=False)
        losses.append(fit(student))
    is_scaled = isinstance(student.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    for key in ("loss", "distillation_loss"):
        np.testing.assert_allclose(losses[1][key], losses[0][key], rtol=0.05)


@pytest.mark.slow
def test_interrupted_distillation_ends_as_without_interruption(tmp_path):
    class Killed(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Killed

    def trained(*callbacks):
        keras.utils.set_random_seed(0)
        student = tfc.compress(small_net(), SCHEMES["ternary"](), distill=True)
        student.compile(sgd(), CROSSENTROPY, jit_compile=False)
        fit(student, epochs=4, callbacks=list(callbacks))
        return student.get_weights()

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    whole = trained()
    with pytest.raises(Killed):
        trained(backup(), Kill())
    for a, b in zip(trained(backup()), whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_distillation_brings_the_student_nearer_to_its_teacher(
    trained, mnist, compile_for_digits
):
    """On outputs of images that are in no batch, with labels that say nothing."""
    images, held_out = mnist[0][0][:1024], mnist[1][0]
    expected = trained.predict(held_out, verbose=0)
    wrong = np.random.default_rng(0).integers(0, 10, len(images))
    agreement = []
    for distill in (None, tfc.Distillation(4.0, 1.0)):
        keras.utils.set_random_seed(0)
        student = tfc.compress(trained, tfc.PrunedTernary(), distill)
        compile_for_digits(student, keras.optimizers.Adam(2e-3))
        student.fit(images, wrong, epochs=3, batch_size=64, verbose=0)
        received = student.predict(held_out, verbose=0)
        agreement.append(np.mean(received.argmax(-1) == expected.argmax(-1)))
    assert agreement[0] < 0.5 < 0.75 < agreement[1], agreement
