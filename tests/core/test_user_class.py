"""Students of models whose class is the user's own."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.small_net import small_net
from tfcompress.core.student import Student

IMAGES = np.random.default_rng(0).normal(size=(16, 28, 28, 1)).astype("float32")
LABELS = np.arange(16) % 10
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.8),
    "bits": lambda: tfc.BitSharing(bops="1/60"),
    "ranks": lambda: tfc.Decomposition(macs="1/2"),
    "size": lambda: tfc.SizeConstrained(value_bits="1/20"),
    "uniform": lambda: tfc.Uniform(),
}


@keras.saving.register_keras_serializable(package="tests")
class Classifier(keras.Model):
    """Model that counts calls of its methods, with a loss and a metric of its own."""

    def __init__(self, inputs, outputs, smoothing=0.0, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
        self.smoothing = smoothing
        self.entropy = keras.metrics.Mean("entropy")
        self.calls = []

    def train_step(self, *args):
        self.calls.append("train_step")
        return super().train_step(*args)

    def test_step(self, *args):
        self.calls.append("test_step")
        return super().test_step(*args)

    def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
        self.calls.append("compute_loss")
        targets = ops.one_hot(y, 10) * (1.0 - self.smoothing) + self.smoothing / 10
        logs = ops.log_softmax(y_pred)
        loss = -ops.mean(ops.sum(targets * logs, -1))
        self.entropy.update_state(loss)
        return loss + sum(self.losses)

    @property
    def metrics(self):
        return [*super().metrics, self.entropy]

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing}


def classifier(cls=Classifier, **kwargs):
    plain = small_net()
    return cls(plain.input, plain.output, name="digits", **kwargs)


def fit(student, epochs=5):
    student.compile(keras.optimizers.Adam(1e-3))
    return student.fit(
        IMAGES,
        LABELS,
        batch_size=4,
        epochs=epochs,
        validation_data=(IMAGES, LABELS),
        verbose=0,
    ).history


@pytest.mark.parametrize(
    "scheme",
    [pytest.param(x, marks=[pytest.mark.slow] * (x != "ternary")) for x in SCHEMES],
)
@pytest.mark.filterwarnings("ignore:The student lacks")
def test_student_trains_with_the_methods_of_the_class(scheme, tmp_path):
    model = classifier(smoothing=0.2)
    student = tfc.compress(model, SCHEMES[scheme]())
    assert isinstance(student, Classifier) and isinstance(student, Student)
    assert student.smoothing == 0.2 and student.name == "digits"
    history = fit(student)
    assert {"train_step", "test_step", "compute_loss"} <= set(student.calls)
    assert len(history["entropy"]) == len(history["val_entropy"]) == 5
    assert model.calls == []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # every step of the scheme has run
        tiny = tfc.finalize(student)
    expected = student.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(tiny.predict(IMAGES, verbose=0), expected, atol=1e-4)

    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert type(loaded) is type(student)
    assert loaded.smoothing == 0.2
    np.testing.assert_array_equal(loaded.predict(IMAGES, verbose=0), expected)
    loaded.calls = []
    fit(loaded, epochs=1)
    assert "train_step" in loaded.calls


def test_loss_of_the_student_is_that_of_the_class():
    model = classifier(smoothing=0.2)
    student = tfc.compress(model, tfc.PrunedTernary(weight_decay=0.0))
    student.compile()
    found = student.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)["loss"]
    logits = student.predict(IMAGES, verbose=0)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.eye(10)[LABELS] * 0.8 + 0.02
    np.testing.assert_allclose(found, -(targets * logs).sum(-1).mean(), rtol=1e-5)


class OwnFit(keras.Model):
    def fit(self, *args, note, **kwargs):
        self.note = note
        return super().fit(*args, **kwargs)


def test_fit_of_the_class_runs_the_callbacks_of_the_scheme():
    student = tfc.compress(classifier(OwnFit), tfc.PrunedTernary(sparsity=0.8))
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    student.fit(IMAGES, LABELS, batch_size=4, epochs=5, verbose=0, note="mine")
    assert student.note == "mine"
    zeros = np.mean(
        student.get_layer("conv1").kernel_quantizer.encode(
            student.get_layer("conv1").latent_kernel
        )[0]
        == 0
    )
    assert 0.75 < zeros < 0.85


def test_class_that_is_not_registered_loads_with_custom_objects(tmp_path):
    student = tfc.compress(classifier(OwnFit), tfc.PrunedTernary())
    path = tmp_path / "student.keras"
    student.save(path)
    with pytest.raises(ValueError, match="registered.*custom_objects=.*OwnFit"):
        keras.models.load_model(path)
    loaded = keras.models.load_model(path, custom_objects={"OwnFit": OwnFit})
    assert isinstance(loaded, OwnFit)
    with keras.saving.custom_object_scope({"OwnFit": OwnFit}):
        assert isinstance(keras.models.load_model(path), OwnFit)


@pytest.mark.slow
def test_student_of_a_class_loads_where_no_student_was_made(tmp_path):
    student = tfc.compress(classifier(smoothing=0.1), tfc.PrunedTernary())
    student.save(tmp_path / "student.keras")
    np.save(tmp_path / "expected.npy", student.predict(IMAGES, verbose=0))
    program = (
        "import sys, keras, numpy as np; from tests.core import test_user_class as t; "
        f"loaded = keras.models.load_model(r'{tmp_path}/student.keras'); "
        "assert isinstance(loaded, t.Classifier) and loaded.smoothing == 0.1; "
        f"expected = np.load(r'{tmp_path}/expected.npy'); "
        "found = loaded.predict(t.IMAGES, verbose=0); "
        "np.testing.assert_allclose(found, expected, atol=1e-5); t.fit(loaded, 1); "
        "assert 'train_step' in loaded.calls"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class ForgetsArgument(Classifier):
    def __init__(self, inputs, outputs, temperature=1.0, **kwargs):
        super().__init__(inputs, outputs, **kwargs)


class BuildsGraph(keras.Model):
    def __init__(self, classes, name=None):
        inputs = keras.Input((4,))
        outputs = layers.Dense(classes)(layers.Dense(8)(inputs))
        super().__init__(inputs, outputs, name=name)
        self.classes = classes

    def get_config(self):
        return {"classes": self.classes}


class BuildsGraphAndTrains(BuildsGraph):
    def train_step(self, *args):
        return super().train_step(*args)


class Stack(keras.Sequential):
    def train_step(self, *args):
        return super().train_step(*args)


class PlainStack(keras.Sequential):
    pass


class OwnCall(keras.Model):
    def call(self, inputs):
        return 2 * super().call(inputs)


def nested_own_call():
    inputs = keras.Input((28, 28, 1))
    return keras.Model(inputs, layers.Dense(3)(classifier(OwnCall)(inputs)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: classifier(ForgetsArgument), "temperature.*get_config.*keras.Model"),
        (lambda: BuildsGraphAndTrains(3), "train_step.*constructor.*keras.Model"),
        (lambda: Stack(small_net().layers), "Functional.*Stack.*train_step"),
        (lambda: classifier(OwnCall), "OwnCall has a `call` of its own"),
        (nested_own_call, "'digits', whose class OwnCall has a `call`"),
    ],
    ids=["argument", "own graph", "sequential", "call", "nested call"],
)
def test_classes_that_a_student_cannot_keep_are_refused(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        tfc.plan(model, tfc.PrunedTernary())
    with pytest.raises(ValueError, match=message):
        tfc.compress(model, tfc.PrunedTernary())


@pytest.mark.parametrize(
    "make", [lambda: BuildsGraph(3), lambda: PlainStack(small_net().layers)]
)
def test_classes_that_only_make_a_graph_give_a_plain_student(make):
    student = tfc.compress(make(), tfc.PrunedTernary())
    assert type(student) is Student


def test_plain_class_of_a_refused_model_is_compressed():
    model = BuildsGraphAndTrains(3)
    plain = keras.Model(model.inputs, model.outputs)
    assert type(tfc.compress(plain, tfc.PrunedTernary())) is Student


class WithParts(keras.Model):
    """Model with variables that its graph does not have."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.temperature = self.add_weight(shape=(), name="temperature")
        self.projector = layers.Dense(2)
        self.projector.build((None, 10))
        self.first = self.layers[1]


def test_attributes_and_variables_outside_of_the_graph_are_kept(tmp_path):
    model = classifier(WithParts)
    model.temperature.assign(3.0)
    model.weight, model.last = 0.25, model.get_layer("head")
    model.tracker = keras.metrics.Mean()
    with pytest.warns(UserWarning, match="lacks the attributes tracker of 'digits'"):
        student = tfc.compress(model, tfc.PrunedTernary())
    assert float(student.temperature) == 3.0 and student.weight == 0.25
    assert student.first is student.get_layer("conv0")
    assert student.last is student.get_layer("head")
    kernels = model.projector.kernel, student.projector.kernel
    assert kernels[0] is not kernels[1]
    np.testing.assert_array_equal(*kernels)
    student.temperature.assign(4.0)
    student.save(tmp_path / "student.keras")
    objects = {"WithParts": WithParts}
    loaded = keras.models.load_model(tmp_path / "student.keras", objects)
    assert float(loaded.temperature) == 4.0
    np.testing.assert_array_equal(kernels[1], loaded.projector.kernel)
