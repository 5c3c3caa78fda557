import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.schemes.ternary.scheme import FINISH, RAMP_END, ternary_layers

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


def test_discrepancy_pulls_the_filters_towards_ternary(
    trained, mnist, compile_for_digits
):
    def mean_cosine(discrepancy):
        keras.utils.set_random_seed(0)
        scheme = tfc.PrunedTernary(discrepancy=discrepancy, weight_decay=0.0)
        student = tfc.compress(trained, scheme)
        compile_for_digits(student, keras.optimizers.SGD(0.05))
        fit(student, mnist)
        cosines = []
        for layer in ternary_layers(student):
            w = np.asarray(layer.latent_kernel).reshape(-1, layer.filters)
            q = np.asarray(layer.kernel).reshape(-1, layer.filters)
            lengths = np.linalg.norm(w, axis=0) * np.linalg.norm(q, axis=0)
            cosines.append(np.mean(np.sum(w * q, axis=0) / lengths))
        return np.mean(cosines)

    assert mean_cosine(5.0) > mean_cosine(0.0) + 0.01


def test_accuracy_on_digits_from_compress_to_finalize(
    trained, mnist, tmp_path, compile_for_digits
):
    compile_for_digits(trained)
    float_accuracy = trained.evaluate(*mnist[1], verbose=0)[1]
    student = tfc.compress(trained, tfc.PrunedTernary(first_last="ternary"))
    compile_for_digits(student, keras.optimizers.Adam(3e-3))
    history = student.fit(
        *mnist[0], batch_size=64, epochs=4, validation_data=mnist[1], verbose=0
    ).history
    # Statistics are true at any epoch: no lag behind the training accuracy.
    gaps = np.subtract(history["accuracy"], history["val_accuracy"])
    assert (gaps < 0.05).all()
    assert history["val_accuracy"][-1] > float_accuracy - 0.02

    expected = student.predict(mnist[1][0], verbose=0)
    student.save(tmp_path / "student.keras")
    restored = keras.models.load_model(tmp_path / "student.keras")
    assert restored.scheme.get_config() == student.scheme.get_config()
    np.testing.assert_array_equal(restored.predict(mnist[1][0], verbose=0), expected)

    tiny = tfc.finalize(restored)
    found = tiny.predict(mnist[1][0], verbose=0)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert not any(
        isinstance(layer, keras.layers.BatchNormalization) for layer in tiny.layers
    )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"sparsity": 0.0}, r"in \(0, 1\).*sparsity=0.0"),
        ({"sparsity": 1.0}, r"in \(0, 1\).*sparsity=1.0"),
        ({"sparsity": -0.1}, r"in \(0, 1\)"),
        ({"sparsity": float("nan")}, r"in \(0, 1\)"),
        ({"first_last": "int8"}, "'8bit', 'ternary' or 'float'.*'int8'"),
        ({"weight_decay": -1.0}, "`weight_decay`.*-1.0"),
        ({"discrepancy": float("inf")}, "`discrepancy`"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tfc.PrunedTernary(**kwargs)


def test_config_round_trip():
    scheme = tfc.PrunedTernary(
        0.8,
        first_last="float",
        weight_decay=1e-3,
        discrepancy=0.1,
        overrides={
            "a": tfc.KeepFloat("why"),
            "b": tfc.QuantizeConfig(tfc.quantizers.Uniform(4)),
        },
    )
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(scheme)
    )
    assert restored.get_config() == scheme.get_config()
    assert restored.overrides["a"] == tfc.KeepFloat("why")
