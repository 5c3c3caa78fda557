"""Training of students."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfcompress as tfc

SAMPLES = np.random.default_rng(0).normal(5, 2, (64, 3)).astype("float32")
TARGETS = np.zeros((64, 2), "float32")


@pytest.fixture
def student():
    """A student whose batch normalization has the statistics of its inputs."""
    inputs = keras.Input((3,))
    x = layers.BatchNormalization(name="norm")(inputs)
    student = tfc.compress(keras.Model(inputs, layers.Dense(2)(x)), tfc.PrunedTernary())
    student.compile("sgd", "mse")
    return student


class Statistics(keras.callbacks.Callback):
    """Records the moving statistics, and where in `fit` they were read."""

    def __init__(self):
        super().__init__()
        self.read = []

    def _read(self, place):
        norm = self.model.get_layer("norm")
        self.read.append((place, np.array(norm.moving_mean, copy=True)))
        self.read.append((place, np.array(norm.moving_variance, copy=True)))

    def on_test_begin(self, logs=None):
        self._read("validation")

    def on_epoch_end(self, epoch, logs=None):
        self._read("epoch")


def test_fit_recalibrates_batch_norm_before_validation_and_at_the_end_of_epochs(
    student,
):
    statistics = Statistics()
    student.fit(
        SAMPLES,
        TARGETS,
        batch_size=16,
        epochs=2,
        shuffle=False,
        validation_data=(SAMPLES[:8], TARGETS[:8]),
        callbacks=[statistics],
        verbose=0,
    )
    places = [place for place, _ in statistics.read]
    assert places == 2 * (2 * ["validation"] + 2 * ["epoch"])
    batches = SAMPLES.reshape(4, 16, 3)
    expected = batches.mean((0, 1)), batches.var(1).mean(0)
    norm = student.get_layer("norm")
    received = [values for _, values in statistics.read]
    received += [norm.moving_mean, norm.moving_variance]
    for i, values in enumerate(received):
        np.testing.assert_allclose(values, expected[i % 2], rtol=1e-4)


def test_fit_recalibrates_batch_norm_without_validation(student):
    student.fit(SAMPLES, TARGETS, batch_size=16, epochs=1, verbose=0)
    mean = student.get_layer("norm").moving_mean
    np.testing.assert_allclose(mean, SAMPLES.mean(0), rtol=1e-4)


def test_fit_refuses_a_clone_without_a_scheme(student):
    student.scheme = None
    with pytest.raises(ValueError, match="expected to have its scheme.*Compress"):
        student.fit(SAMPLES, TARGETS, verbose=0)


def test_student_saves_its_scheme(student, tmp_path):
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert isinstance(loaded.scheme, tfc.PrunedTernary)
    assert loaded.scheme.get_config() == student.scheme.get_config()
    loaded.fit(SAMPLES, TARGETS, verbose=0)


def test_fit_has_the_signature_of_keras_fit():
    expected = inspect.signature(keras.Model.fit).parameters.values()
    received = inspect.signature(tfc.core.student.Student.fit).parameters.values()
    assert [(x.name, x.kind, x.default) for x in received] == [
        (x.name, x.kind, x.default) for x in expected
    ]


def test_fit_takes_all_arguments_by_position(student):
    validation = SAMPLES[:32], TARGETS[:32]
    weights = np.ones(64)
    history = student.fit(
        SAMPLES, TARGETS, 16, 3, 0, None, 0.0, validation, False, None, weights,
        1, 2, 1, 16, 2,
    )  # fmt: skip
    assert history.epoch == [1, 2]
    assert len(history.history["val_loss"]) == 1


def traces_of(student, *args, **kwargs):
    """Number of traces of the training step in a `fit`."""
    traces, train_step = [], student.train_step

    def counted(data):
        traces.append(1)
        return train_step(data)

    student.train_step = counted
    student.compile("adam", "mse", metrics=["mae"], jit_compile=False)
    student.fit(*args, epochs=2, verbose=0, **kwargs)
    return len(traces)


def dense_student():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    return tfc.compress(model, tfc.PrunedTernary(first_last="ternary"))


@pytest.mark.parametrize("weights", [None, np.ones(64, "float32")])
def test_training_step_is_traced_once(weights):
    targets = SAMPLES[:, :2]
    found = traces_of(dense_student(), SAMPLES, targets, 16, sample_weight=weights)
    assert found == 1


@pytest.mark.parametrize(
    "structure",
    [
        lambda a, b: a,
        lambda a, b: [a],
        lambda a, b: (a,),
        lambda a, b: [a, b],
        lambda a, b: {"a": a, "b": b},
        lambda a, b: {"a": a},
    ],
    ids=["tensor", "list of one", "tuple of one", "list", "dict", "dict of one"],
)
def test_loss_is_of_the_whole_batch(structure):
    inputs = keras.Input((3,))
    heads = [keras.layers.Dense(2, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, structure(*heads))
    student = tfc.compress(model, tfc.PrunedTernary(first_last="ternary"))
    student.compile(keras.optimizers.SGD(0.0), "mse")
    targets = keras.tree.map_structure(lambda _: SAMPLES[:, :2], model(SAMPLES))
    found = student.fit(SAMPLES, targets, 64, verbose=0).history["loss"][0]
    student.compile(loss="mse")
    losses = student.evaluate(SAMPLES, targets, 64, verbose=0, return_dict=True)
    assert found == pytest.approx(losses["loss"])


def test_batches_with_none_in_them_train():
    batches = ((SAMPLES, SAMPLES[:, :2], None) for _ in range(100))
    assert traces_of(dense_student(), batches, steps_per_epoch=4) >= 1


@pytest.mark.parametrize(
    "scheme",
    [
        tfc.PrunedTernary(sparsity=0.5),
        tfc.Decomposition(macs="1/2"),
        tfc.SizeConstrained(value_bits="1/20"),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
def test_trained_student_is_exported_as_a_saved_model(scheme, tmp_path):
    inputs = keras.Input((8,))
    x = layers.Dense(16, activation="relu")(inputs)
    x = layers.Dense(16, activation="relu")(x)
    student = tfc.compress(keras.Model(inputs, layers.Dense(3)(x)), scheme)
    student.compile("adam", "mse")
    rng = np.random.default_rng(0)
    samples, targets = (rng.normal(size=(64, n)).astype("float32") for n in (8, 3))
    save = keras.callbacks.ModelCheckpoint(tmp_path / "student.keras")
    student.fit(samples, targets, epochs=3, verbose=0, callbacks=[save])
    student.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "exported")
    expected = student.predict(samples, verbose=0)
    np.testing.assert_allclose(loaded.serve(samples), expected, atol=1e-6)
    steps = int(student.optimizer.iterations)
    student.fit(samples, targets, epochs=2, verbose=0)  # its optimizer is whole
    assert int(student.optimizer.iterations) == steps + 4
