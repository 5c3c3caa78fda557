"""Teachers: the models that are refused, inference, and files without them."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tests.core.distillation.distilled import (
    CROSSENTROPY,
    TERNARY,
    crossentropies,
    losses_of,
    soft_losses,
)
from tests.small_net import small_net


def other_shape(**kwargs):
    inputs = keras.Input(kwargs.get("input", (28, 28, 1)))
    x = layers.Flatten()(inputs)
    return keras.Model(inputs, layers.Dense(kwargs.get("classes", 10))(x))


class OwnCall(keras.Model):
    def call(self, inputs):
        return 2 * super().call(inputs)


def own_call():
    plain = small_net()
    return OwnCall(plain.input, plain.output)


def not_finite():
    model = small_net()
    model.layers[1].kernel.assign(model.layers[1].kernel * np.nan)
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: other_shape(classes=9), r"outputs must.*10\).*Received.*9\)"),
        (lambda: other_shape(input=(32, 32, 1)), r"inputs must.*28, 28.*32, 32"),
        (lambda: tfc.compress(small_net(), TERNARY), "student.*finalize"),
        (own_call, "OwnCall has a `call` of its own"),
        (not_finite, "NaN.*healthy"),
    ],
    ids=["outputs", "inputs", "student", "call", "NaN"],
)
def test_teachers_that_do_not_fit_are_refused_before_anything_is_done(
    trained, monkeypatch, make, message
):
    distill = tfc.Distillation(teacher=make())
    monkeypatch.setattr(tfc.PrunedTernary, "config_for", None)
    with pytest.raises(ValueError, match=message):
        tfc.compress(trained, TERNARY, distill=distill)


class Counter(layers.Layer):
    """Identity that counts its calls by their `training`."""

    calls = []

    def call(self, x, training=None):
        self.calls.append(training)
        return x


def test_teacher_runs_in_inference_and_in_training_steps_only(trained, batch):
    counted = keras.Model(trained.input, Counter()(trained.output))
    distill = tfc.Distillation(teacher=counted)
    student = tfc.compress(trained, TERNARY, distill=distill)
    student.compile("sgd", CROSSENTROPY, run_eagerly=True)
    Counter.calls.clear()
    history = student.fit(
        *batch, batch_size=16, epochs=2, validation_data=batch, verbose=0
    ).history
    assert Counter.calls == 4 * [False]
    assert {"loss", "distillation_loss", "val_loss"} <= history.keys()
    assert "val_distillation_loss" not in history
    hard = student.evaluate(*batch, verbose=0, return_dict=True)
    assert hard.keys() == {"loss"}
    logits = student.predict(batch[0], verbose=0)
    expected = crossentropies(batch[1], logits).mean()
    np.testing.assert_allclose(hard["loss"], expected, rtol=1e-4)
    assert Counter.calls == 4 * [False]


def test_user_model_may_train_meanwhile_and_is_never_changed(trained, batch, mnist):
    trained.get_layer("bn1").trainable = False

    class TrainModel(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            trained.fit(*batch, verbose=0)

    def distilled(*callbacks):
        keras.utils.set_random_seed(0)
        student = tfc.compress(trained, TERNARY, distill=True)
        student.compile("sgd", CROSSENTROPY)
        student.fit(
            *batch,
            batch_size=16,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
        return student.get_weights()

    before = trained.get_weights()
    flags = [layer.trainable for layer in trained.layers]
    expected = distilled()
    for a, b in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.trainable for layer in trained.layers] == flags
    trained.compile("sgd", CROSSENTROPY)
    for a, b in zip(distilled(TrainModel()), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        (a != b).any() for a, b in zip(trained.get_weights(), before, strict=True)
    )


def names_in_file(path):
    names = []
    with (
        zipfile.ZipFile(path) as archive,
        archive.open("model.weights.h5") as file,
        h5py.File(file) as weights,
    ):
        weights.visit(names.append)
    return names


def test_teacher_is_no_part_of_the_student_nor_of_its_file(trained, batch, tmp_path):
    students = [tfc.compress(trained, TERNARY, distill=x) for x in (None, True)]
    for student, name in zip(students, ("plain", "distilled"), strict=True):
        student.compile("sgd", CROSSENTROPY)
        student.fit(*batch, verbose=0)
        student.save(tmp_path / f"{name}.keras")
    plain, distilled = students
    for parts in ("layers", "weights", "variables", "trainable_variables"):
        of_plain, of_distilled = (getattr(x, parts) for x in students)
        assert len(of_plain) == len(of_distilled)
    names = [names_in_file(tmp_path / f"{x}.keras") for x in ("plain", "distilled")]
    assert names[0] == names[1]


def test_loaded_student_needs_its_teacher_to_train_and_no_more(
    trained, batch, tmp_path
):
    student = tfc.compress(trained, TERNARY, tfc.Distillation(3.0, 0.6))
    student.compile("sgd", CROSSENTROPY)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert loaded.distillation == tfc.Distillation(3.0, 0.6)
    loaded.evaluate(*batch, verbose=0)
    tfc.finalize(loaded)
    for train in (loaded.fit, loaded.train_on_batch):
        with pytest.raises(ValueError, match=r"Call `student\.set_teacher\(model\)`"):
            train(*batch)
    loaded.set_teacher(trained)
    expected, received = (losses_of(x, *batch)[0] for x in (student, loaded))
    np.testing.assert_allclose(received, expected, rtol=1e-6)
    assert "distillation_loss" in loaded.fit(*batch, verbose=0).history


def test_loaded_student_may_train_without_a_teacher(trained, batch, tmp_path):
    tfc.compress(trained, TERNARY, distill=True).save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    loaded.distillation = None
    loaded.compile("sgd", CROSSENTROPY)
    history = loaded.fit(*batch, verbose=0).history
    assert "loss" in history and "distillation_loss" not in history


def test_set_teacher_replaces_the_teacher_of_a_compiled_student(trained, batch):
    student = tfc.compress(trained, TERNARY, distill=True)
    student.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    student.fit(*batch, verbose=0)
    untrained = small_net()
    student.set_teacher(untrained)
    history = student.fit(*batch, verbose=0).history
    with student.training_run.own_pass():
        outputs = student(batch[0], training=True)
    expected = soft_losses(untrained.predict(batch[0], verbose=0), outputs).mean()
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)
    student = tfc.compress(trained, TERNARY)
    with pytest.raises(ValueError, match="with a distillation is expected"):
        student.set_teacher(untrained)


@keras.saving.register_keras_serializable(package="tests")
class OwnLoss(keras.Model):
    """Model whose loss has a term of its own, next to Keras's or alone."""

    with_super = True

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        own = keras.ops.mean(y_pred**2)
        if not self.with_super:
            return own
        return own + super().compute_loss(x, y, y_pred, *args, **kwargs)


def test_class_of_the_user_adds_its_own_loss_to_the_distilled_one(trained, batch):
    model = OwnLoss(trained.input, trained.output)
    student = tfc.compress(model, TERNARY, distill=True)
    assert isinstance(student, OwnLoss)
    student.compile("sgd", CROSSENTROPY)
    total, outputs, _ = losses_of(student, *batch)
    soft = soft_losses(trained.predict(batch[0], verbose=0), outputs).mean()
    hard = crossentropies(batch[1], outputs).mean()
    own = np.mean(np.array(outputs) ** 2)
    np.testing.assert_allclose(total, 0.1 * hard + 0.9 * soft + own, rtol=1e-4)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_class_of_the_user_that_leaves_out_the_teacher_is_refused(
    trained, batch, steps_per_execution
):
    class Alone(OwnLoss):
        with_super = False

    model = Alone(trained.input, trained.output)
    student = tfc.compress(model, TERNARY, distill=True)
    student.compile("sgd", CROSSENTROPY, steps_per_execution=steps_per_execution)
    with pytest.raises(ValueError, match=r"loss of `super\(\)\.compute_loss`"):
        student.fit(*batch, batch_size=16, verbose=0)


class OwnStep(keras.Model):
    """Model that trains by a loop over its metrics, as in Keras's guides."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


def test_class_of_the_user_that_updates_all_metrics_logs_what_keras_logs(
    trained, batch
):
    def history(model):
        student = tfc.compress(model, TERNARY, distill=True)
        student.compile("sgd", CROSSENTROPY, metrics=["accuracy"])
        return student.fit(
            *batch, batch_size=16, epochs=2, shuffle=False, verbose=0
        ).history

    expected = history(trained)
    received = history(OwnStep(trained.input, trained.output))
    assert expected.keys() == received.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(received[name], values, rtol=1e-4, err_msg=name)
