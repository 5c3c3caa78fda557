"""Samples of the training data, from every kind of data that `fit` takes."""

import h5py
import keras
import numpy as np
import pandas
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers

import tfcompress as tfc
from tests.cases import few_quick
from tfcompress.core.training import data as data_module
from tfcompress.core.training.data import fixed_batch_size, take_inputs
from tfcompress.schemes.bit_sharing.search_space import SearchSpace
from tfcompress.schemes.ternary.schedule import ternary_layers

# 40 batches of 4 rows, sorted: each row has its number.
X = np.repeat(np.arange(160.0, dtype="float32"), 2).reshape(160, 2)
Y = np.zeros((160, 1), "float32")


class Batches(keras.utils.PyDataset):
    def __init__(self, num_batches=40):
        super().__init__()
        self._num_batches = num_batches

    @property
    def num_batches(self):
        return self._num_batches

    def __getitem__(self, index):
        rows = np.arange(4 * index, 4 * index + 4) % 160
        return X[rows], Y[rows]


class Lazy:
    """Array that cannot be read whole, as h5py's on a large file."""

    shape, dtype = X.shape, X.dtype

    def __init__(self, is_fancy=True):
        self.is_fancy = is_fancy

    def __array__(self, dtype=None, copy=None):
        raise MemoryError

    def __getitem__(self, rows):
        if np.ndim(rows) and not self.is_fancy:
            raise TypeError("int expected")
        assert np.all(np.diff(np.atleast_1d(rows)) > 0)  # h5py's condition
        return X[rows]


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def generator():
    x, y = np.empty((4, 2), "float32"), np.zeros((4, 1), "float32")
    for start in range(0, 160, 4):
        x[:] = X[start : start + 4]  # the same memory for every batch
        yield x, y


def from_generator():
    return tf.data.Dataset.from_generator(
        lambda: dataset().as_numpy_iterator(),
        output_signature=(tf.TensorSpec((4, 2)), tf.TensorSpec((4, 1))),
    )


def h5_dataset(x=X):
    file = h5py.File("x.h5", "w", driver="core", backing_store=False)
    return file.create_dataset("x", data=x)


ARRAYS = {
    "numpy": lambda: X,
    "structure": lambda: {"a": X, "b": [X]},
    "tf.Tensor": lambda: tf.constant(X),
    "DataFrame": lambda: pandas.DataFrame(X),
    "columns": lambda: dict(pandas.DataFrame(X, columns=["a", "b"])),
    "scipy": lambda: scipy.sparse.coo_matrix(X),
    "tf.SparseTensor": lambda: tf.sparse.from_dense(X),
    "tf.RaggedTensor": lambda: tf.RaggedTensor.from_row_lengths(
        X.flatten(), np.full(160, 2)
    ),
    "h5py": h5_dataset,
    "lazy": Lazy,
    "lazy by rows": lambda: Lazy(is_fancy=False),
}
BATCHES = {
    "tf.data": dataset,
    "tf.data inputs only": lambda: dataset().map(lambda x, y: (x,)),
    "tf.data weights": lambda: dataset().map(lambda x, y: (x, y, y)),
    "tf.data dict": lambda: dataset().map(lambda x, y: ({"a": x, "b": x}, y)),
    "tf.data unknown": lambda: dataset().filter(lambda x, y: True),
    "from_generator": from_generator,
    "PyDataset": Batches,
    "infinite PyDataset": lambda: Batches(None),
    "generator": generator,
    "list of lists": lambda: ([x, y] for x, y in dataset().as_numpy_iterator()),
}


def numbers(batches):
    """The numbers of the rows, and a check that the batches are model inputs."""
    firsts = [keras.tree.flatten(batch)[0] for batch in batches]
    rows = [x.to_tensor() if hasattr(x, "to_tensor") else x for x in firsts]
    return [np.asarray(x).reshape(len(x), -1)[:, 0].astype(int).tolist() for x in rows]


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS)
def test_samples_of_arrays_are_evenly_spaced_rows(make):
    data = make()
    batches, rest, _ = take_inputs(data, batch_size=4, samples=20, shuffle=False)
    assert rest is data
    chosen = np.linspace(0, 159, 20).astype(int)
    assert numbers(batches) == chosen.reshape(5, 4).tolist()


def test_samples_of_arrays_are_mixed_if_fit_shuffles():
    batches = take_inputs(X, batch_size=4, samples=20).batches
    chosen = np.linspace(0, 159, 20).astype(int)
    assert numbers(batches) == chosen.reshape(4, 5).T.tolist()


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_samples_of_batches_are_spread_over_all_of_them(make):
    data = make()
    batches, rest, _ = take_inputs(data, samples=24, steps_per_epoch=40)
    firsts = [rows[0] for rows in numbers(batches)]
    assert len(firsts) == 6
    assert all(rows == list(range(rows[0], rows[0] + 4)) for rows in numbers(batches))
    assert firsts[0] == 0 and firsts[-1] >= 120
    assert np.diff(firsts).min() >= 16 and np.diff(firsts).max() <= 32
    if hasattr(data, "__next__"):
        np.testing.assert_array_equal(np.concatenate([b[0] for b in rest]), X)
    else:
        assert rest is data


def test_samples_of_a_distributed_dataset_are_those_of_all_replicas(two_replicas):
    with two_replicas.scope():
        model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    data = two_replicas.experimental_distribute_dataset(dataset())
    batches = take_inputs(data, samples=20, model=model).batches
    assert [len(rows) for rows in numbers(batches)] == [2] * 10
    flat = sum(numbers(batches), [])
    assert flat[:4] == [0, 1, 2, 3] and flat[-1] >= 120


def test_held_out_rows_are_not_read():
    batches = take_inputs(X, 4, validation_split=0.5, samples=20).batches
    assert max(sum(numbers(batches), [])) == 79


def test_steps_of_an_epoch_are_counted_if_all_batches_were_read(monkeypatch):
    assert take_inputs(from_generator(), samples=20).steps == 40
    assert take_inputs(generator(), samples=20).steps == 40
    monkeypatch.setattr(data_module, "READ_FACTOR", 4)
    assert take_inputs(from_generator(), samples=20).steps is None


def test_batches_that_are_read_are_bounded(monkeypatch):
    monkeypatch.setattr(data_module, "READ_FACTOR", 4)
    read = []

    def counted():
        for batch in generator():
            read.append(batch)
            yield batch

    take_inputs(counted(), samples=20)
    assert len(read) == 4 * 5
    read.clear()
    take_inputs(counted(), samples=20, steps_per_epoch=7)
    assert len(read) == 7
    read.clear()
    # A generator's batches, of 48 bytes, have to be kept.
    monkeypatch.setattr(data_module, "MAX_BYTES", 10 * 48)
    take_inputs(counted(), samples=20)
    assert len(read) == 10


@pytest.mark.parametrize("make", [lambda: X, h5_dataset, dataset, Batches, generator])
def test_memory_of_the_samples_is_bounded(make, monkeypatch):
    monkeypatch.setattr(data_module, "MAX_BYTES", 3 * 4 * 8)  # 3 batches
    assert [len(x) for x in take_inputs(make(), 4, samples=20).batches] == [4, 4, 4]
    monkeypatch.setattr(data_module, "MAX_BYTES", 1)
    assert [len(x) for x in take_inputs(make(), 4, samples=20).batches] == [4]


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("make", [lambda: X[:150], dataset, Batches, generator])
def test_batches_have_the_size_of_the_data_and_of_a_model_that_is_fixed_to_it(
    make, size
):
    # Keras trains a model that is fixed to another size, such as that of a first call.
    model = keras.Sequential([layers.Dense(1)])
    model(X[:size])
    assert fixed_batch_size(model) == size
    batches = take_inputs(make(), 4, samples=20, model=model).batches
    assert len(batches) >= 5 and {len(x) for x in batches} == {4}


def test_batches_of_other_sizes_than_the_fixed_one_are_left_out():
    model = keras.Sequential([keras.Input(batch_shape=(4, 2)), layers.Dense(1)])
    batches = take_inputs(iter([X[:4], X[:3]]), model=model).batches
    assert [len(x) for x in batches] == [4]


def test_batch_size_follows_from_steps_per_epoch():
    batches = take_inputs(X, samples=80, steps_per_epoch=8).batches
    assert [len(x) for x in batches] == [20] * 4


@pytest.mark.parametrize("data", [None, 3, "text", [1, 2], iter([]), X[:0], {}])
def test_data_that_fit_refuses_have_no_samples(data):
    assert take_inputs(data).batches == []


# `fit` itself.

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.75),
    "bits": lambda: tfc.BitSharing(
        penalty=0.01, weight_bits=(2, 8), activation_bits=(8,), group_size=None
    ),
}
CLASSES = 3


def make_student(scheme, batch_size=None):
    inputs = keras.Input((6,), batch_size=batch_size)
    x = layers.Dense(8, name="first")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dense(8, name="middle")(x)
    if batch_size:
        x = keras.ops.reshape(x, (batch_size, 8))
    student = tfc.compress(
        keras.Model(inputs, layers.Dense(CLASSES)(x)), SCHEMES[scheme]()
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("sgd", loss, jit_compile=False)
    return student


def samples(count=48):
    labels = (np.arange(count) % CLASSES).astype("int32")
    x = np.random.default_rng(0).normal(size=(count, 6)) + labels[:, None]
    return x.astype("float32"), labels


def sample_dataset():
    return tf.data.Dataset.from_tensor_slices(samples()).batch(16)


def sample_batches():
    yield from sample_dataset().as_numpy_iterator()


class InfiniteSamples(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        x, y = samples()
        rows = np.arange(16 * index, 16 * index + 16) % len(x)
        return x[rows], y[rows]


def arrays(convert=np.asarray, **kwargs):
    x, y = samples()
    return {"x": convert(x), "y": y, **kwargs}


WEIGHTS = dict.fromkeys(range(CLASSES), 2.0)
FITS = {
    "arrays": arrays,
    "tensors": lambda: arrays(tf.constant),
    "DataFrame": lambda: arrays(pandas.DataFrame),
    "sparse": lambda: arrays(scipy.sparse.csr_matrix),
    "h5py": lambda: arrays(lambda x: h5_dataset(x)),
    "sample weights": lambda: arrays(sample_weight=np.ones(48)),
    "class weights": lambda: {"x": sample_dataset(), "class_weight": WEIGHTS},
    "validation split": lambda: arrays(validation_split=0.25),
    "validation": lambda: arrays(validation_data=samples()),
    "unknown length": lambda: {"x": sample_dataset().filter(lambda x, y: True)},
    "generator": lambda: {"x": sample_batches()},
    "infinite PyDataset": lambda: {"x": InfiniteSamples(), "steps_per_epoch": 3},
}
QUICK_FITS = ("sample weights", "validation split", "unknown length", "generator")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", few_quick(FITS, lambda kind: kind in QUICK_FITS))
def test_fit_reaches_the_sparsity_with_every_kind_of_data(kind):
    student = make_student("ternary")
    student.fit(**FITS[kind](), verbose=0)
    (quantizer,) = (layer.kernel_quantizer for layer in ternary_layers(student))
    assert float(quantizer.current_sparsity) == 0.75 and float(quantizer.frozen) == 1
    check_statistics(student)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["arrays", "generator"])
def test_fit_freezes_the_bits_with_every_kind_of_data(kind):
    student = make_student("bits")
    student.fit(**FITS[kind](), verbose=0)
    assert SearchSpace(student).is_frozen()
    check_statistics(student)


@pytest.mark.filterwarnings("ignore")
def test_fit_takes_a_distributed_dataset(two_replicas):
    with two_replicas.scope():
        student = make_student("ternary")
    data = two_replicas.experimental_distribute_dataset(sample_dataset())
    student.fit(data, verbose=0, shuffle=False)
    check_statistics(student)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "scheme",
    [pytest.param(x, marks=[pytest.mark.slow] * (x == "bits")) for x in SCHEMES],
)
def test_fit_takes_a_model_of_fixed_batch_size(scheme):
    student = make_student(scheme, batch_size=8)
    x, y = samples(40)
    student.fit(x, y, 8, verbose=0)
    check_statistics(student)


@pytest.mark.filterwarnings("ignore")
def test_fit_takes_a_sequential_that_was_built_by_a_call_on_one_sample():
    x, y = samples(40)
    kinds = layers.Dense(8), layers.BatchNormalization(), layers.Dense(CLASSES)
    model = keras.Sequential(kinds)
    model(x[:1])
    student = tfc.compress(model, SCHEMES["bits"]())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("adam", loss, metrics=["accuracy"])
    student.fit(x, y, 8, verbose=0)
    (norm,) = [x for x in student.layers if type(x) is layers.BatchNormalization]
    assert np.min(norm.moving_variance) > 1e-3  # that of single samples is 0


@pytest.mark.parametrize("x", [None, [1, 2], "text", iter([])])
def test_fit_refuses_what_holds_no_samples(x):
    with pytest.raises(ValueError, match="At least one sample is expected in `x`"):
        make_student("ternary").fit(x, verbose=0)


def check_statistics(student):
    """The batch normalization has the statistics of its inputs."""
    norm = student.get_layer("batch_normalization")
    before = keras.Model(student.inputs, norm.input)
    received = before.predict(samples()[0], batch_size=8, verbose=0)
    np.testing.assert_allclose(norm.moving_mean, received.mean(0), atol=0.3)
    ratio = np.array(norm.moving_variance) / received.var(0)
    assert (ratio > 0.3).all() and (ratio < 1.5).all()
