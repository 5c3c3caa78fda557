"""Sparsity ramp, frozen zeros and learning rate of the finish, all in `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfcompress as tfc
from tfcompress.core.training import data as data_module
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.quantizers import functional as F
from tfcompress.schemes.ternary.schedule import (
    FINISH,
    FREEZE,
    RAMP_END,
    REFRESH_STEPS,
    ternary_layers,
)

STEPS, EPOCHS, BATCH = 10, 4, 32


class RecordingSGD(keras.optimizers.SGD):
    """Records the learning rate of each step that runs eagerly."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rates = []

    def apply(self, *args, **kwargs):
        self.rates.append(float(self.learning_rate))
        return super().apply(*args, **kwargs)


class Watch(keras.callbacks.Callback):
    """Records sparsity, frozen state and learning rate before every step."""

    def on_train_begin(self, logs=None):
        self.sparsity, self.frozen, self.rate = [], [], []
        self.quantizer = ternary_layers(self.model)[0].kernel_quantizer

    def on_train_batch_begin(self, batch, logs=None):
        self.sparsity.append(float(self.quantizer.current_sparsity))
        self.frozen.append(bool(self.quantizer.frozen > 0))
        self.rate.append(float(self.model.optimizer.learning_rate))


def fit(student, mnist, epochs=EPOCHS, callbacks=None, **kwargs):
    images, labels = mnist[0]
    size = STEPS * BATCH
    return student.fit(
        images[:size], labels[:size], batch_size=BATCH, epochs=epochs, verbose=0,
        callbacks=callbacks, **kwargs,
    )  # fmt: skip


def zeros(student):
    return [
        np.mean(layer.kernel_quantizer.encode(layer.latent_kernel)[0] == 0)
        for layer in ternary_layers(student)
    ]


def test_fit_ramps_the_sparsity_freezes_zeros_and_anneals(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    natural = zeros(student)[0]
    optimizer = RecordingSGD(0.1)
    compile_for_digits(student, optimizer, run_eagerly=True)
    watch = Watch()
    fit(student, mnist, callbacks=[watch])

    share = np.arange(STEPS * EPOCHS) / (STEPS * EPOCHS)
    left = np.maximum(0, 1 - share / RAMP_END) ** 3
    np.testing.assert_allclose(watch.sparsity, 0.8 + (natural - 0.8) * left, atol=2e-3)
    assert watch.frozen == list(share >= FREEZE)
    np.testing.assert_allclose(watch.rate, 0.1)  # other callbacks see it unscaled
    rate = np.array(optimizer.rates)
    np.testing.assert_allclose(rate[share < FINISH], 0.1)
    assert (np.diff(rate[share >= FINISH]) < 0).all() and rate[-1] < 0.02
    np.testing.assert_allclose(student.optimizer.learning_rate, 0.1, rtol=1e-5)
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)


def test_learning_rate_schedule_of_the_optimizer_is_kept(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary())
    schedule = keras.optimizers.schedules.CosineDecay(0.1, STEPS * EPOCHS)
    compile_for_digits(student, keras.optimizers.SGD(schedule))
    watch = Watch()
    fit(student, mnist, callbacks=watch)
    expected = [schedule(step) for step in range(STEPS * EPOCHS)]
    np.testing.assert_allclose(watch.rate, expected, rtol=1e-5)


def test_second_fit_unfreezes_and_keeps_the_sparsity(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.7))
    compile_for_digits(student)
    fit(student, mnist, epochs=2)
    watch = Watch()
    fit(student, mnist, epochs=2, callbacks=[watch])
    np.testing.assert_allclose(watch.sparsity, 0.7, atol=1e-6)
    assert watch.frozen[0] is False and watch.frozen[-1] is True


def test_finalize_warns_after_an_incomplete_ramp(trained, mnist, compile_for_digits):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.9))
    compile_for_digits(student)
    fit(student, mnist, callbacks=[Stop()])
    with pytest.warns(
        UserWarning, match="'conv1': its sparsity is .* has not reached 0.9"
    ):
        tfc.finalize(student)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_ramp_counts_batches_also_if_their_number_is_unknown(
    known, trained, mnist, compile_for_digits
):
    steps = 5
    images, labels = (x[: steps * BATCH] for x in mnist[0])
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    if not known:
        data = data.filter(lambda *_: True)
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    natural = zeros(student)[0]
    compile_for_digits(student)
    watch = Watch()
    student.fit(data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=[watch])
    times = EPOCHS * steps
    left = np.maximum(0, 1 - np.arange(times) / times / RAMP_END) ** 3
    expected = np.unique(0.8 + (natural - 0.8) * left)
    np.testing.assert_allclose(np.unique(watch.sparsity), expected, atol=2e-3)
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_single_epoch_of_unknown_length_ends_with_the_sparsity_and_a_warning(
    trained, mnist, compile_for_digits, monkeypatch
):
    monkeypatch.setattr(data_module, "READ_FACTOR", 1)  # its end is not read
    monkeypatch.setattr(data_module, "MAX_BYTES", 1)
    images, labels = (x[: 3 * BATCH] for x in mnist[0])
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH)
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    compile_for_digits(student)
    with pytest.warns(UserWarning, match="nothing was trained after.*steps_per_epoch"):
        student.fit(data.filter(lambda *_: True), shuffle=False, verbose=0)
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)
    assert all(layer.kernel_quantizer.frozen > 0 for layer in ternary_layers(student))
    mean = np.array(student.get_layer("bn1").moving_mean)
    Recalibration(student, [images[:BATCH]])()
    np.testing.assert_allclose(student.get_layer("bn1").moving_mean, mean, rtol=1e-5)


def test_sparsity_is_reached_with_several_steps_per_execution(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    compile_for_digits(student, steps_per_execution=5)
    history = fit(student, mnist)
    assert np.isfinite(history.history["loss"]).all()
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)


@pytest.mark.parametrize("steps", [3, 5])
def test_thresholds_follow_the_weights_where_several_steps_are_one_call(
    trained, mnist, compile_for_digits, monkeypatch, steps
):
    monkeypatch.setattr("tests.schemes.ternary.test_schedule.STEPS", 40)
    student = tfc.compress(trained, tfc.PrunedTernary(0.8))
    compile_for_digits(student, "sgd", steps_per_execution=steps)
    begun = []
    quantizer = ternary_layers(student)[0].kernel_quantizer
    refresh = quantizer.refresh
    monkeypatch.setattr(quantizer, "refresh", lambda x: begun.append(1) or refresh(x))
    fit(student, mnist, epochs=1)
    first_of_calls = range(0, 40, steps)
    due = [x for x in first_of_calls if x % (-(-REFRESH_STEPS // steps) * steps) == 0]
    assert len(begun) == len(due) + 2  # at the end of the ramp, and at the end


class Thresholds(keras.callbacks.Callback):
    """Records the held threshold, and the quantile of the weights, at each step."""

    def on_train_begin(self, logs=None):
        self.layer = ternary_layers(self.model)[0]
        self.held, self.present = [], []

    def on_train_batch_begin(self, batch, logs=None):
        quantizer, kernel = self.layer.kernel_quantizer, self.layer.latent_kernel
        self.held.append(float(np.ravel(quantizer.threshold)[0]))
        threshold = F.sparsity_threshold(
            tf.convert_to_tensor(kernel), tf.constant(quantizer.current_sparsity)
        )
        norm = np.linalg.norm(np.reshape(kernel, (-1, kernel.shape[-1]))[:, 0])
        self.present.append(float(np.ravel(threshold)[0]) / norm)


def test_thresholds_follow_the_weights_every_few_steps(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary(0.8))
    compile_for_digits(student, keras.optimizers.SGD(0.1))
    watch = Thresholds()
    fit(student, mnist, epochs=2, callbacks=[watch])
    steps = np.arange(2 * STEPS)
    refreshed = (steps % STEPS) % REFRESH_STEPS == 0
    unfrozen = steps < FREEZE * len(steps)
    held, present = np.array(watch.held), np.array(watch.present)
    np.testing.assert_allclose(
        held[refreshed & unfrozen], present[refreshed & unfrozen], rtol=1e-5
    )
    assert (held[~refreshed & unfrozen] != present[~refreshed & unfrozen]).all()


@pytest.mark.parametrize("sparsity", [None, 0.8])
def test_training_step_sorts_no_kernel(trained, sparsity):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity, first_last="ternary"))
    student.training_run.trainer = student
    step = tf.function(lambda x: student(x, training=True))
    graph = step.get_concrete_function(tf.zeros((2, 28, 28, 1))).graph
    assert not {"TopKV2", "Sort"} & {op.type for op in graph.get_operations()}


def test_short_training_without_a_sparsity_warns_of_nothing(
    trained, mnist, compile_for_digits, recwarn
):
    student = tfc.compress(trained, tfc.PrunedTernary())
    compile_for_digits(student)
    fit(student, mnist, epochs=1)
    assert all(layer.kernel_quantizer.frozen > 0 for layer in ternary_layers(student))
    assert not [str(x.message) for x in recwarn if x.category is UserWarning]
