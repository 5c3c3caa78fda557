"""The sparsity ramp, the frozen zeros and the learning rate of the finish."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.schemes.ternary.schedule import FINISH, RAMP_END, ternary_layers

STEPS, EPOCHS, BATCH = 10, 4, 32


class Watch(keras.callbacks.Callback):
    """Notes sparsity, frozen state and learning rate before every step."""

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


def test_ramp_freeze_and_finish_happen_inside_fit(trained, mnist, compile_for_digits):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    natural = zeros(student)[0]
    compile_for_digits(student, keras.optimizers.SGD(0.1))
    watch = Watch()
    fit(student, mnist, callbacks=[watch])

    share = np.arange(STEPS * EPOCHS) / (STEPS * EPOCHS)
    left = np.maximum(0, 1 - share / RAMP_END) ** 3
    np.testing.assert_allclose(watch.sparsity, 0.8 + (natural - 0.8) * left, atol=2e-3)
    assert watch.frozen == list(share >= FINISH)
    rate = np.array(watch.rate)
    np.testing.assert_allclose(rate[share < FINISH], 0.1)
    assert (np.diff(rate[share >= FINISH]) < 0).all() and rate[-1] < 0.02
    np.testing.assert_allclose(student.optimizer.learning_rate, 0.1, rtol=1e-5)
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)


def test_a_schedule_of_the_users_is_left_alone(trained, mnist, compile_for_digits):
    student = tfc.compress(trained, tfc.PrunedTernary())
    schedule = keras.optimizers.schedules.CosineDecay(0.1, STEPS * EPOCHS)
    compile_for_digits(student, keras.optimizers.SGD(schedule))
    watch = Watch()
    fit(student, mnist, callbacks=watch)
    expected = [schedule(step) for step in range(STEPS * EPOCHS)]
    np.testing.assert_allclose(watch.rate, expected, rtol=1e-5)


def test_a_second_fit_thaws_and_keeps_the_sparsity(trained, mnist, compile_for_digits):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.7))
    compile_for_digits(student)
    fit(student, mnist, epochs=2)
    watch = Watch()
    fit(student, mnist, epochs=2, callbacks=[watch])
    np.testing.assert_allclose(watch.sparsity, 0.7, atol=1e-6)
    assert watch.frozen[0] is False and watch.frozen[-1] is True


def test_finalize_warns_when_the_ramp_was_cut_short(trained, mnist, compile_for_digits):
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


def test_generators_without_a_known_length_ramp_by_epochs(
    trained, mnist, compile_for_digits
):
    images, labels = mnist[0]

    def batches():
        for start in range(0, EPOCHS * 5 * BATCH, BATCH):
            yield images[start : start + BATCH], labels[start : start + BATCH]

    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    compile_for_digits(student)
    student.fit(batches(), epochs=EPOCHS, steps_per_epoch=5, verbose=0)
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)


def test_several_steps_per_execution_end_in_the_same_place(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.PrunedTernary(sparsity=0.8))
    compile_for_digits(student, steps_per_execution=5)
    history = fit(student, mnist)
    assert np.isfinite(history.history["loss"]).all()
    np.testing.assert_allclose(zeros(student), 0.8, atol=0.01)
