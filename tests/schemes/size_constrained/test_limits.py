"""Smallest and largest sizes of a budget, before and after a training."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.litert import packed_size
from tfcompress.schemes.size_constrained.limits import Limits


def network(*stack, shape=(10, 10, 3), dtype="float32"):
    x = inputs = keras.Input(shape, dtype=dtype)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def head():
    return [layers.GlobalAveragePooling2D(), layers.Dense(4, name="head")]


def embedding():
    pooled = [layers.GlobalAveragePooling1D(), layers.Dense(4)]
    return network(layers.Embedding(400, 16), *pooled, shape=(20,), dtype="int32")


def layer_normalization():
    norms = [layers.LayerNormalization(), layers.Activation("gelu")]
    return network(layers.Conv2D(16, 3), *norms, layers.LayerNormalization(), *head())


def prelu():
    return network(layers.Conv2D(16, 3), layers.PReLU(), *head())


def batch_norm_of_its_own():
    norm = layers.BatchNormalization
    between = [layers.ReLU(), norm(), layers.MaxPooling2D(), norm()]
    return network(norm(), layers.Conv2D(32, 3), *between, *head())


def shared():
    layer = layers.Conv2D(3, 3, padding="same")
    return network(layer, layers.ReLU(), layer, layers.ReLU(), layer, *head())


def nested():
    inner = network(layers.Conv2D(16, 3), layers.BatchNormalization(), layers.ReLU())
    return network(inner, *head())


def two_dense():
    return network(layers.Dense(24), layers.Dense(16), layers.Dense(4), shape=(40,))


# Model, and arguments of the scheme.
CASES = {
    "embedding": (embedding, {}),
    "layer normalization": (layer_normalization, {}),
    "prelu": (prelu, {}),
    "batch normalization": (batch_norm_of_its_own, {}),
    "batch normalization, none": (batch_norm_of_its_own, {"compression": "none"}),
    "shared, none": (shared, {"compression": "none"}),
    "nested, kmeans": (nested, {"codebook": "kmeans"}),
    "kept float": (nested, {"overrides": {"head": tfc.KeepFloat()}}),
    "two dense": (two_dense, {}),
    "two dense, micro": (two_dense, {"target": "micro"}),
    "shared, micro": (shared, {"target": "micro"}),
}
FAST = {"two dense"}


def compiled(model, learning_rate=1e-2):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss)
    return model


def data(model, samples=64):
    rng = np.random.default_rng(0)
    shape = (samples, *model.inputs[0].shape[1:])
    integers = "int" in model.inputs[0].dtype
    x = rng.integers(0, 400, shape) if integers else rng.normal(size=shape)
    return x.astype("int32" if integers else "float32"), rng.integers(0, 4, samples)


def named_least(model, **arguments):
    """The smallest size that the error for a size of one byte names."""
    with pytest.raises(ValueError, match="can be met. Received: size=1") as error:
        tfc.compress(model, tfc.SizeConstrained(size=1, **arguments))
    return int(re.search(r"at least ([\d,]+)", str(error.value))[1].replace(",", ""))


@pytest.mark.parametrize("case", [
    x if x in FAST else pytest.param(x, marks=pytest.mark.slow) for x in CASES
])  # fmt: skip
def test_named_least_size_is_met_by_a_training(case):
    keras.utils.set_random_seed(0)
    make, arguments = CASES[case]
    model = compiled(make())
    model.fit(*data(model), epochs=2, verbose=0)  # no float weight is constant
    least = named_least(model, **arguments)
    student = tfc.compress(model, tfc.SizeConstrained(size=least, **arguments))
    compiled(student).fit(*data(model), epochs=3, verbose=0)
    tiny = tfc.finalize(student)
    if arguments.get("target") == "micro":
        from tfcompress.micro.exporter import flash_size

        assert flash_size(tiny) <= least
    else:
        assert 0.9 * least < packed_size(tiny, "compression" not in arguments) <= least


def test_floats_that_are_constant_yet_count_as_trained_ones():
    """New biases, statistics and slopes are zeros or ones, which xz stores in no
    bytes."""
    keras.utils.set_random_seed(0)
    model = compiled(prelu())
    before = named_least(model)
    assert before > 4 * 8 * 8 * 16 * 0.9  # most of the bytes of PReLU
    model.fit(*data(model), epochs=1, verbose=0)
    assert named_least(model) == pytest.approx(before, rel=0.01)


def test_floats_that_no_training_changes_count_as_they_are():
    model = embedding()
    model.layers[1].trainable = False
    model.layers[1].set_weights([np.zeros((400, 16))])
    assert named_least(model) < 2000


def named_largest(caught):
    """The largest size that a warning names, at the line of the test."""
    [warning] = [x for x in caught if "at most about" in str(x.message)]
    assert warning.filename == __file__
    return int(re.search(r"about ([\d,]+)", str(warning.message))[1].replace(",", ""))


@pytest.mark.parametrize("arguments, unit", [
    ({"size": "50 kB"}, "xz bytes"),
    ({"size": "50 kB", "codebook": "kmeans"}, "xz bytes"),
    ({"size": 50_000, "compression": "none"}, "bytes"),
    ({"size": 50_000, "target": "micro"}, "flash bytes"),
    ({"value_bits": "1/3"}, "value bits"),
], ids=str)  # fmt: skip
def test_budget_above_the_most_bits_is_told(arguments, unit):
    keras.utils.set_random_seed(0)
    model, scheme = two_dense(), tfc.SizeConstrained(**arguments)
    with pytest.warns(UserWarning, match=rf"at most about [\d,]+ {unit}") as caught:
        tfc.plan(model, scheme)
    largest = named_largest(caught)
    name = "value_bits" if "value_bits" in arguments else "size"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfc.plan(model, tfc.SizeConstrained(**arguments | {name: largest}))
    with pytest.warns(UserWarning, match="at most about") as caught:
        tfc.compress(model, scheme)
    assert named_largest(caught) == largest


@pytest.mark.slow
def test_file_takes_about_the_largest_size_that_a_warning_names():
    keras.utils.set_random_seed(0)
    model = two_dense()
    with pytest.warns(UserWarning, match="at most about") as caught:
        student = tfc.compress(model, tfc.SizeConstrained(size="50 kB"))
    largest = named_largest(caught)
    compiled(student, 1e-3).fit(*data(model), epochs=2, verbose=0)
    assert set(student.size_space.codebooks.bits.values()) == {8}
    size = packed_size(tfc.finalize(student), True)
    assert size == pytest.approx(largest, rel=0.1)


def wide():
    """A network with more weights than a rough estimate looks at."""
    layers = [keras.Input((600,)), keras.layers.Dense(600), keras.layers.Dense(4)]
    return keras.Sequential(layers)


def test_rough_estimates_are_on_the_safe_side():
    for make in (layer_normalization, prelu, embedding, nested, wide):
        model = make()
        scheme = tfc.SizeConstrained(size=1)
        rows = tfc.plan(model, tfc.PrunedTernary()).treated()
        limits = Limits(scheme, model, [row.layer for row in rows])
        limits._budget.total = limits.smallest()
        assert not limits.is_clearly_possible()
        limits._budget.total = limits.largest()
        assert not limits.is_certainly_used()


def test_twentieth_of_a_small_network_needs_no_file(monkeypatch):
    """Making one takes longer than all else in `plan` and `compress`."""
    model = keras.applications.MobileNet(
        weights=None, alpha=0.25, input_shape=(32, 32, 3), classes=2
    )
    files = []
    monkeypatch.setattr(tfc.SizeConstrained, "size_of", lambda *_: files.append(1))
    tfc.plan(model, tfc.SizeConstrained(size="1/20"))
    assert not files


def test_size_without_a_layer_to_meet_it_by_is_refused():
    uniform = tfc.QuantizeConfig(tfc.quantizers.Uniform(bits=4))
    scheme = tfc.SizeConstrained(size="1 kB", overrides={".*": uniform})
    with pytest.raises(ValueError, match="without an override.*size='1 kB'"):
        tfc.compress(two_dense(), scheme)


@pytest.fixture(scope="module")
def over_budget():
    """`(student, history)` of a training whose size became impossible meanwhile."""
    keras.utils.set_random_seed(0)
    model = two_dense()
    student = compiled(tfc.compress(model, tfc.SizeConstrained(size="2 kB")))
    student.scheme.size = 300
    with pytest.warns(UserWarning, match="xz bytes, .* times the budget of 300"):
        history = student.fit(*data(model), epochs=4, verbose=0)
    return student, history


def test_training_that_misses_its_size_keeps_its_history_and_weights(over_budget):
    student, history = over_budget
    assert len(history.history["loss"]) == 4
    assert history.history["phase"][-1] == 1
    assert np.isfinite(student.predict(data(student)[0], verbose=0)).all()


@pytest.mark.slow
def test_student_above_its_size_is_not_finalized(over_budget, tmp_path):
    student, _ = over_budget
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    for model in (student, loaded):
        with pytest.raises(ValueError, match="within size=300.*larger size"):
            tfc.finalize(model)
    again = tfc.compress(tfc.dequantize(loaded), tfc.SizeConstrained(size="2 kB"))
    compiled(again).fit(*data(again), epochs=2, verbose=0)
    assert packed_size(tfc.finalize(again), True) <= 2000


def test_student_that_meets_its_size_later_is_finalized(over_budget):
    student, _ = over_budget
    student.scheme.size = "2 kB"
    student.fit(*data(student), epochs=1, verbose=0)
    assert packed_size(tfc.finalize(student), True) <= 2000


@pytest.mark.slow
def test_error_of_the_last_file_is_a_warning(monkeypatch):
    keras.utils.set_random_seed(0)
    model = two_dense()
    student = compiled(tfc.compress(model, tfc.SizeConstrained(size="2 kB")))
    measured = student.scheme.size_of

    def size_of(student):
        if len(student.history.epoch) == 2:
            raise OSError("the disk is full.")
        return measured(student)

    monkeypatch.setattr(student.scheme, "size_of", size_of)
    with pytest.warns(UserWarning, match="adjustment to the size.*the disk is full"):
        history = student.fit(*data(model), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2
