"""Private APIs of Keras still exist and mean the same."""

import warnings

import keras
import numpy as np
import pandas
import pytest
import scipy.sparse
from keras import layers, ops

from tfcompress.compat import keras_private
from tfcompress.compat.keras_private import KERNEL_NAME

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

LAYERS = [
    (layers.Dense, {"units": 3}, (2, 4)),
    (layers.Conv1D, {"filters": 3, "kernel_size": 2}, (2, 5, 4)),
    (layers.Conv2D, {"filters": 3, "kernel_size": 2}, (2, 5, 5, 4)),
    (layers.DepthwiseConv2D, {"kernel_size": 2}, (2, 5, 5, 4)),
]
each_layer = pytest.mark.parametrize(
    "cls, config, shape", LAYERS, ids=[row[0].__name__ for row in LAYERS]
)


@each_layer
def test_layers_create_their_kernel_by_its_name_and_store_it_privately(
    cls, config, shape
):
    added = {}

    class Recording(cls):
        def add_weight(self, *args, name=None, **kwargs):
            added[name] = super().add_weight(*args, name=name, **kwargs)
            return added[name]

    layer = Recording(**config)
    layer.build(shape)
    assert added.keys() == {KERNEL_NAME, "bias"}
    if cls is not layers.DepthwiseConv2D:  # it stores its kernel by the setter below
        assert keras_private.kernel_variable(layer) is added[KERNEL_NAME]


@each_layer
def test_layers_call_with_the_kernel_that_a_subclass_computes(cls, config, shape):
    class Doubled(cls):
        @property
        def kernel(self):
            return 2.0 * keras_private.kernel_variable(self)

        @kernel.setter
        def kernel(self, variable):
            keras_private.set_kernel_variable(self, variable)

    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    doubled, plain = Doubled(**config), cls(**config)
    doubled.build(shape)
    plain.build(shape)
    plain.kernel.assign(keras_private.kernel_variable(doubled))
    np.testing.assert_allclose(doubled(x), 2.0 * plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dilation_rate", [1, 2])
def test_causal_padding_before_a_valid_convolution_equals_a_causal_one(dilation_rate):
    x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    layer = layers.Conv1D(4, 3, padding="causal", dilation_rate=dilation_rate)
    layer.build(x.shape)
    padded = ops.pad(x, keras_private.causal_padding(layer))
    outputs = ops.conv(padded, layer.kernel, dilation_rate=dilation_rate)
    assert outputs.shape == (2, 9, 4)
    np.testing.assert_allclose(outputs, layer(x), rtol=1e-5, atol=1e-6)


def test_graph_is_run_once_per_operation_and_in_order():
    inputs = keras.Input((4,))
    branches = [layers.Dense(3, name=name)(inputs) for name in ("left", "right")]
    x = layers.Add(name="add")(branches)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    names = []

    def record(operation):
        names.append(operation.name)
        return operation

    x = np.ones((1, 4), "float32")
    outputs = keras_private.run_through_graph(model, x, record)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-6)
    assert sorted(names[:2]) == ["left", "right"]
    assert names[2:] == ["add", "head"]


def test_step_count_counts_steps_that_only_accumulate_gradients():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    variable = keras.Variable(np.ones(2, "float32"))
    for _ in range(3):
        optimizer.apply([np.zeros(2, "float32")], [variable])
    assert int(keras_private.step_count(optimizer)) == 3
    assert int(optimizer.iterations) == 1


def test_learning_rate_schedule_is_the_schedule_or_a_variable():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = keras.optimizers.SGD(schedule)
    assert keras_private.learning_rate_schedule(optimizer) is schedule
    rate = keras_private.learning_rate_schedule(keras.optimizers.SGD(0.1))
    assert not callable(rate)
    assert float(rate) == pytest.approx(0.1)


def test_untracked_variable_is_not_among_the_variables_of_an_optimizer():
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([keras.Variable(np.ones(2, "float32"))])
    before = [variable.path for variable in optimizer.variables]
    added = optimizer.add_variable((3,), name="extra")
    assert len(optimizer.variables) == len(before) + 1
    keras_private.untrack_variable(optimizer, added)
    assert [variable.path for variable in optimizer.variables] == before


class Scaled(layers.Layer):
    """Multiplies by a number that is a constant of the compiled step."""

    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_rebuilt_train_function_has_the_new_value_of_a_constant():
    inputs = keras.Input((1,))
    scaled = Scaled()
    model = keras.Model(inputs, layers.Dense(1)(scaled(inputs)))
    model.compile(keras.optimizers.SGD(0.0), "mae")
    model.layers[-1].set_weights([np.ones((1, 1)), np.zeros(1)])
    x, y = np.ones((4, 1), "float32"), np.zeros((4, 1), "float32")

    def train_loss():
        return model.fit(x, y, verbose=0).history["loss"][0]

    assert train_loss() == pytest.approx(1.0)
    scaled.factor = 3.0
    assert train_loss() == pytest.approx(1.0)  # compiled with the old value
    keras_private.rebuild_train_function(model)
    assert train_loss() == pytest.approx(3.0)


class ReadKernel(keras.callbacks.Callback):
    """Reads a kernel between two steps."""

    def __init__(self, trained):
        super().__init__()
        self.trained = trained  # the property `model` of callbacks syncs by itself

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            keras_private.sync_variables(self.trained)
            self.kernel = np.array(self.trained.layers[-1].kernel, copy=True)


def test_synced_variables_have_the_values_of_the_last_step():
    dense = layers.Dense(1, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    read = ReadKernel(model)
    x, y = np.ones((8, 2), "float32"), np.full((8, 1), 5.0, "float32")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[read])
    # One step from 1 along the gradient of (1 + 1 - 5)^2.
    np.testing.assert_allclose(read.kernel, 1.0 - 0.1 * 2 * (2 - 5), rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of the trainer on JAX")
def test_trainer_of_jax_syncs_its_state():
    assert callable(keras.Model.jax_state_sync)


def test_flattened_layers_are_the_layer_and_all_layers_within_it():
    class Outer(layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(2)
            self.others = [layers.ReLU(), keras.Sequential([layers.Dense(3)])]

    outer = Outer()
    flat = keras_private.flatten_layers(outer)
    first, (relu, nested) = outer.first, outer.others
    assert {id(x) for x in (outer, first, relu, nested, *nested.layers)} <= {
        id(layer) for layer in flat
    }
    assert len(flat) == len({id(layer) for layer in flat})


@pytest.mark.parametrize("weights", [None, 0.5, [0.5, 3.0], {"a": 0.5, "b": 3.0}])
def test_loss_weights_are_those_that_the_model_is_compiled_with(weights):
    inputs = keras.Input((2,))
    outputs = [layers.Dense(1, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", loss_weights=weights)
    assert keras_private.loss_weights(model) == weights


def tensors():
    x = np.arange(12.0, dtype="float32").reshape(6, 2)
    kinds = {"DataFrame": pandas.DataFrame(x), "scipy": scipy.sparse.coo_matrix(x)}
    if keras.backend.backend() == "tensorflow":
        kinds["dense"] = tf.constant(x)
        kinds["sparse"] = tf.sparse.from_dense(x)
        kinds["ragged"] = tf.RaggedTensor.from_row_lengths(x.flatten(), [2] * 6)
    return x, kinds


@pytest.mark.parametrize("rows", [np.array([1, 4, 5]), slice(2, 5)])
def test_rows_of_tensors_are_those_of_arrays(rows):
    x, kinds = tensors()
    for name, tensor in kinds.items():
        assert keras_private.is_tensor(tensor), name
        received = keras_private.rows_of_tensor(tensor, rows)
        if name == "ragged":
            received = received.to_tensor()
        np.testing.assert_array_equal(received, x[rows], err_msg=name)
    assert not keras_private.is_tensor(x)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="an API of JAX's backend")
def test_process_index_of_a_single_process_is_zero():
    assert keras_private.process_index() == 0


def test_maker_of_an_input_is_its_layer():
    inputs = keras.Input((4,))
    dense = layers.Dense(2)
    model = keras.Model(inputs, dense(inputs))
    assert keras_private.maker_of(inputs) is model.layers[0]
    assert keras_private.maker_of(model.outputs[0]) is dense


def test_mask_of_a_tensor_is_that_of_its_layer():
    ids = np.array([[1, 2, 0]])
    mask = keras_private.mask_of(layers.Embedding(5, 4, mask_zero=True)(ids))
    np.testing.assert_array_equal(mask, ids != 0)
    assert keras_private.mask_of(layers.Embedding(5, 4)(ids)) is None


def test_lambda_arguments_make_a_lambda_with_the_same_function():
    layer = layers.Lambda(
        lambda x, by: x[:, :2] * by, output_shape=(2,), arguments={"by": 3.0}, name="by"
    )
    new = layers.Lambda(**keras_private.lambda_arguments(layer))
    assert new.get_config() == layer.get_config()
    assert new.function is layer.function
    assert new.compute_output_shape((None, 4)) == (None, 2)


def test_copied_operation_has_its_own_calls():
    inputs = keras.Input((4,))
    outputs = ops.vectorized_map(lambda row: 2.0 * row, inputs)
    operation = keras_private.maker_of(outputs)
    copy = keras_private.copy_operation(operation)
    new = keras.Model(inputs, copy(inputs))
    np.testing.assert_array_equal(new(np.ones((2, 4), "float32")), np.full((2, 4), 2.0))
    assert copy.name == operation.name
    assert keras_private.maker_of(new.outputs[0]) is copy
    assert keras_private.maker_of(outputs) is operation


def test_variables_are_hidden_from_an_optimizer_and_keep_their_places():
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([keras.Variable([1.0, 2.0])])
    before = len(optimizer.variables)
    added = [optimizer.add_variable((2,), name=name) for name in ("first", "second")]
    with keras_private.without_variables(optimizer, added):
        assert len(optimizer.variables) == before
    assert [id(x) for x in optimizer.variables[before:]] == [id(x) for x in added]


def test_averages_are_those_that_an_optimizer_moves():
    weight = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    assert keras_private.averages(optimizer) == []
    for _ in range(2):
        optimizer.apply([ops.ones((2,))], [weight])
    [(variable, average)] = keras_private.averages(optimizer)
    assert variable is weight
    np.testing.assert_allclose(average, [-0.5, 0.5])  # of [0, 1] and [-1, 0]
    assert keras_private.averages(keras.optimizers.SGD()) == []


class Inner(layers.Layer):
    """Layer without an argument `training`."""

    def __call__(self, *args, **kwargs):
        self.seen = keras_private.is_training(kwargs)
        return super().__call__(*args, **kwargs)

    def call(self, inputs):
        return inputs


def test_layers_know_whether_they_are_called_in_training():
    inner = Inner()
    inputs = keras.Input((2,))
    part = keras.Model(inputs, layers.Dropout(0.5)(inner(inputs)))
    assert inner.seen is False
    outer = keras.Sequential([keras.Input((2,)), part])
    x = np.ones((4, 2), "float32")
    for training in (True, None, False):
        outer(x, training=training)
        assert inner.seen is (training is True)
    outer.compile("sgd", "mse")
    outer.predict(x, verbose=0)
    assert inner.seen is False
    outer.fit(x, x, verbose=0)
    assert inner.seen is True
    inner(x)
    assert inner.seen is False


@pytest.mark.parametrize("reads", [True, False])
def test_reading_the_losses_of_a_model_reads_those_of_its_layers(reads):
    inputs = keras.Input((2,))
    dense = layers.Dense(2, kernel_regularizer="l2")
    part = keras.Model(inputs, dense(inputs))
    calls = []
    keras_private.call_when_losses_are_read(dense, lambda: calls.append(1))

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.part = part

        def call(self, inputs):
            return self.part(inputs)

        def compute_loss(self, x=None, y=None, y_pred=None, *args, **kwargs):
            if reads:
                return super().compute_loss(x, y, y_pred, *args, **kwargs)
            return ops.mean(ops.square(y - y_pred))

    outer = Outer()
    outer.compile("sgd", "mse")
    x = np.ones((4, 2), "float32")
    outer.fit(x, x, verbose=0)
    if keras.backend.backend() == "tensorflow":  # on JAX, Keras always reads them
        assert bool(calls) is reads
    assert len(outer.losses) == 1 and calls


@pytest.mark.parametrize("interactive", [True, False])
def test_messages_go_where_progress_bars_of_keras_go(interactive, capsys):
    if not interactive:
        keras.config.disable_interactive_logging()
    try:
        keras_private.print_message("Reading")
        keras.utils.Progbar(2).update(1)
    finally:
        keras.config.enable_interactive_logging()
    text = capsys.readouterr().out
    assert text.startswith("Reading\n") is ("1/2" in text) is interactive


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="no warning on other backends"
)
@pytest.mark.parametrize("expected, warns", [("ab", False), ("a", True)])
def test_optimizers_warn_of_missing_gradients_unless_they_are_expected(expected, warns):
    variables = [keras.Variable(1.0, name=name) for name in "abc"]
    gradients = [None, None, ops.ones(())]
    with warnings.catch_warnings(record=True) as caught:
        keras_private.expect_no_gradients(variables[: len(expected)])
        keras.optimizers.SGD().apply(gradients, variables)
    assert len(caught) == warns


def test_content_of_a_weights_file_is_that_of_save_weights(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    path = tmp_path / "model.weights.h5"
    path.write_bytes(keras_private.weights_file(model))
    expected = [np.array(x) for x in (*model.weights, *model.optimizer.variables)]
    for variable in (*model.weights, *model.optimizer.variables):
        variable.assign(np.zeros_like(variable))
    model.load_weights(path)
    received = (*model.weights, *model.optimizer.variables)
    for value, wanted in zip(received, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)
