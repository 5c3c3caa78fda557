"""Students that other models and loops train: a table of wrappers x schemes.

Each training either ends with all that the scheme was asked for, or is refused before
its first update.
"""

import contextlib
import itertools
import warnings

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.conftest import ON_TENSORFLOW
from tests.small_net import small_net
from tfcompress.core.training.recalibration import Recalibration

IMAGES = np.random.default_rng(0).normal(size=(64, 28, 28, 1)).astype("float32")
LABELS = np.arange(64) % 10
EPOCHS, BATCH = 5, 16
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.9),
    "bits": lambda: tfc.BitSharing(bops="1/60"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/20"),
    "ranks": lambda: tfc.Decomposition(macs="1/2"),
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Wrapper(keras.Model):
    """Subclassed model around a student."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def call(self, inputs, training=None):
        return self.student(inputs, training=training)


def functional(student):
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Rescaling(1.0)(inputs)
    return keras.Model(inputs, student(x))


def inner_part(student):
    """A model of the student's layers, without the student itself."""
    return keras.Model(student.input, student.output)


def distiller(student):
    return keras.distillation.Distiller(
        teacher=small_net(),
        student=student,
        distillation_losses=keras.distillation.LogitsDistillation(temperature=2.0),
    )


WRAPPERS = {
    "functional": functional,
    "subclassed": Wrapper,
    "layers": inner_part,
    "distiller": distiller,
}


def outer_fit(make, callbacks):
    def train(student):
        outer = make(student)
        if make is distiller:
            outer.compile(keras.optimizers.Adam(5e-3), loss=LOSS)
        else:
            outer.compile(keras.optimizers.Adam(5e-3), LOSS)
        found = callbacks(student)
        outer.fit(
            IMAGES, LABELS, batch_size=BATCH, epochs=EPOCHS, callbacks=found, verbose=0
        )
        return outer

    return train


def batches():
    return [(IMAGES[i : i + BATCH], LABELS[i : i + BATCH]) for i in range(0, 64, BATCH)]


def loop(step_of, callbacks):
    """Function that trains a student in a loop with a step of its own."""

    def train(student):
        optimizer = keras.optimizers.Adam(5e-3)
        student.compile(optimizer, LOSS)
        steps = len(batches())
        run = keras.callbacks.CallbackList(
            callbacks(student), model=student, epochs=EPOCHS, steps=steps
        )
        step = step_of(student, optimizer)
        run.on_train_begin()
        for epoch in range(EPOCHS):
            run.on_epoch_begin(epoch)
            for i, batch in enumerate(batches()):
                run.on_train_batch_begin(i)
                step(*batch)
                run.on_train_batch_end(i)
            run.on_epoch_end(epoch, {})
        run.on_train_end()
        return student

    return train


def on_batch(student, optimizer):
    return student.train_on_batch


def taped(student, optimizer, compiled=False):
    import tensorflow as tf

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, student(x, training=True)) + sum(student.losses)
        gradients = tape.gradient(loss, student.trainable_variables)
        optimizer.apply(gradients, student.trainable_variables)

    return tf.function(step) if compiled else step


def taped_and_compiled(student, optimizer):
    optimizer.build(student.trainable_variables)
    return taped(student, optimizer, compiled=True)


def with_callbacks(student):
    return tfc.callbacks(student, IMAGES, BATCH)


def without(student):
    return []


def trainings(callbacks):
    made = {name: outer_fit(make, callbacks) for name, make in WRAPPERS.items()}
    made["train_on_batch"] = loop(on_batch, callbacks)
    if ON_TENSORFLOW:
        made["tape"] = loop(taped, callbacks)
        made["compiled tape"] = loop(taped_and_compiled, callbacks)
    return made


def assert_meets_what_was_asked(student):
    measured = student.scheme.measure(student)
    assert student.scheme.unmet(student) is None
    assert measured["phase"] == 1.0
    assert measured["budget_ratio"] <= 1.05  # of ternary layers a filter keeps a weight
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny = tfc.finalize(student)
    expected = student.predict(IMAGES, verbose=0)
    is_equal = np.isclose(tiny.predict(IMAGES, verbose=0), expected, atol=1e-3)
    # An activation in the middle between two levels may round to either of them.
    assert is_equal.all(axis=-1).mean() > 0.9


def combinations():
    """All trainings x all schemes; all but three of one scheme are slow."""
    for wrapper, scheme in itertools.product(trainings(with_callbacks), SCHEMES):
        is_fast = scheme == "ternary" and wrapper in ("functional", "layers", "tape")
        yield pytest.param(wrapper, scheme, marks=() if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("wrapper", "scheme"), list(combinations()))
@pytest.mark.filterwarnings("ignore:The losses of 'small_net'")
def test_callbacks_train_a_student_within_another_training(wrapper, scheme):
    student = tfc.compress(small_net(), SCHEMES[scheme]())
    before = [np.array(x) for x in student.trainable_variables]
    trainings(with_callbacks)[wrapper](student)
    after = [np.array(x) for x in student.trainable_variables]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert_meets_what_was_asked(student)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("wrapper", trainings(without))
def test_training_without_callbacks_is_refused_before_an_update(wrapper, scheme):
    student = tfc.compress(small_net(), SCHEMES[scheme]())
    before = student.get_weights()
    message = "'small_net', called with training=True.*tfcompress.callbacks\\(student"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        trainings(without)[wrapper](student)
    if ON_TENSORFLOW:  # on JAX, Keras loses the values in any `fit` that fails
        for old, new in zip(before, student.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.filterwarnings("ignore:The sparsity was reached at the end")
@pytest.mark.parametrize(
    "wrapper",
    [
        "functional",
        pytest.param("train_on_batch", marks=pytest.mark.slow),
        pytest.param("subclassed", marks=pytest.mark.slow),
    ],
)
def test_training_after_one_with_callbacks_is_refused_too(wrapper):
    student = tfc.compress(small_net(), tfc.PrunedTernary())
    outer = trainings(with_callbacks)[wrapper](student)
    before = student.get_weights()
    with pytest.raises(ValueError, match="called with training=True"):
        outer.train_on_batch(IMAGES[:16], LABELS[:16])
    # On JAX, Keras loses the values in any `fit` that fails.
    if outer is not student and ON_TENSORFLOW:
        with pytest.raises(ValueError, match="called with training=True"):
            outer.fit(IMAGES, LABELS, verbose=0)
    for old, new in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    outer.fit(
        IMAGES,
        LABELS,
        verbose=0,
        callbacks=[] if outer is student else with_callbacks(student),
    )


def test_inference_and_statistics_need_no_callbacks():
    student = tfc.compress(small_net(), tfc.PrunedTernary())
    outer = functional(student)
    outer.compile("adam", LOSS)
    expected = student.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(outer.predict(IMAGES, verbose=0), expected)
    outer.evaluate(IMAGES, LABELS, verbose=0)
    student(IMAGES)
    Recalibration(student, [IMAGES])()


def test_frozen_student_extracts_features_without_callbacks():
    student = tfc.compress(small_net(), tfc.PrunedTernary())
    student.trainable = False
    before = student.get_weights()
    outer = keras.Sequential([student, keras.layers.Dense(10)])
    outer.compile("adam", LOSS)
    outer.fit(IMAGES, LABELS, verbose=0)
    for old, new in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_clone_of_a_student_does_not_train_within_another_model():
    clone = keras.models.clone_model(tfc.compress(small_net(), tfc.PrunedTernary()))
    outer = functional(clone)
    outer.compile("adam", LOSS)
    with contextlib.suppress(AttributeError):
        clone.scheme = None
    with pytest.raises(ValueError, match="expected to have its scheme"):
        outer.fit(IMAGES, LABELS, verbose=0)


def test_student_whose_scheme_has_nothing_to_do_needs_no_callbacks():
    class Nothing(tfc.core.Scheme):
        def config_for(self, layer, place):
            return tfc.QuantizeConfig(tfc.quantizers.Uniform(8))

    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    student = tfc.compress(plain, Nothing())
    outer = Wrapper(student)
    outer.compile("adam", "mse")
    outer.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    student = tfc.compress(small_net(), Nothing())  # batch normalization
    outer = Wrapper(student)
    outer.compile("adam", LOSS)
    with pytest.raises(ValueError, match="called with training=True"):
        outer.fit(IMAGES, LABELS, verbose=0)


def test_losses_that_a_training_leaves_out_are_a_warning():
    student = tfc.compress(small_net(), tfc.PrunedTernary())
    with pytest.warns(UserWarning, match="losses of 'small_net' are in no loss"):
        outer_fit(distiller, with_callbacks)(student)
    student = tfc.compress(small_net(), tfc.PrunedTernary(sparsity=0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        outer_fit(functional, with_callbacks)(student)


def test_training_ends_with_a_warning_if_it_was_too_short():
    student = tfc.compress(small_net(), tfc.PrunedTernary(sparsity=0.9))
    outer = functional(student)
    outer.compile("adam", LOSS)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    found = [*with_callbacks(student), Stop()]
    with pytest.warns(UserWarning, match="does not meet the goal of its scheme"):
        outer.fit(IMAGES, LABELS, epochs=9, callbacks=found, verbose=0)


@pytest.mark.slow
def test_two_students_train_in_one_model():
    students = [tfc.compress(small_net(), SCHEMES[x]()) for x in ("ternary", "ranks")]
    inputs = keras.Input((28, 28, 1))
    students[1].name = "other"
    outer = keras.Model(inputs, keras.layers.Add()([x(inputs) for x in students]))
    outer.compile(keras.optimizers.Adam(5e-3), LOSS)
    found = sum(map(with_callbacks, students), [])
    outer.fit(
        IMAGES, LABELS, batch_size=BATCH, epochs=EPOCHS, callbacks=found, verbose=0
    )
    for student in students:
        assert_meets_what_was_asked(student)


def test_callbacks_refuse_other_models_and_data():
    student = tfc.compress(small_net(), tfc.PrunedTernary())
    with pytest.raises(TypeError, match="student is expected"):
        tfc.callbacks(small_net(), IMAGES)
    with pytest.raises(ValueError, match="read more than once.*generator"):
        tfc.callbacks(student, (batch for batch in batches()))
    with pytest.raises(ValueError, match="expected to have training inputs"):
        tfc.callbacks(student, None)


def begin(student, model, **params):
    found = keras.callbacks.CallbackList(with_callbacks(student), model=model, **params)
    found.on_train_begin()


def test_callbacks_refuse_trainings_that_they_cannot_serve():
    student = tfc.compress(small_net(), tfc.PrunedTernary())
    with pytest.raises(ValueError, match="expected to have its optimizer"):
        begin(student, student, epochs=2)
    student.compile("adam", LOSS)
    with pytest.raises(ValueError, match="need the number of epochs"):
        begin(student, student)
    other = small_net()
    other.compile("adam", LOSS)
    with pytest.raises(ValueError, match="contain the whole student"):
        begin(student, other, epochs=2)
    with pytest.raises(ValueError, match="runs the callbacks of its scheme itself"):
        student.fit(IMAGES, LABELS, callbacks=with_callbacks(student), verbose=0)
    taught = tfc.compress(small_net(), tfc.PrunedTernary(), distill=True)
    with pytest.raises(ValueError, match="student.distillation = None"):
        outer_fit(functional, with_callbacks)(taught)
