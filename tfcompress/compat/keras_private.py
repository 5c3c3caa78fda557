"""Private and undocumented APIs of Keras that the library depends on.

Each function names one, and says why no public one serves. `tests/compat` has a test
for each.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras.src import backend
from keras.src.backend import distribution_lib
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext
from keras.src.saving import saving_lib
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.utils import io_utils


def causal_padding(layer: keras.layers.Conv1D) -> list:
    """Returns the argument of `ops.pad` for the input of a causal convolution.

    The public `Conv1D.call` pads for itself, and computes with one kernel only.
    """
    return layer._compute_causal_padding()


def run_through_graph(
    model: keras.Model, inputs: Any, operation_fn: Callable[[Any], Callable]
) -> Any:
    """Calls a Functional model's operations in order, each through `operation_fn`.

    `Function.call` runs the graph in the same way. The public `clone_model` needs a
    loss that it can clone, keeps the shapes of the inputs, and records new calls in old
    layers.
    """
    return model._run_through_graph(inputs, operation_fn=operation_fn)


def maker_of(tensor: keras.KerasTensor) -> keras.Operation:
    """The layer or operation that makes a symbolic tensor.

    An `InputLayer` without a name and its tensor have different names, and a
    Sequential model does not list its one.
    """
    return tensor._keras_history.operation


def mask_of(tensor: Any) -> Any:
    """The mask that Keras attached to a tensor, or None.

    A layer with an argument `mask` gets it as well. Functional models then pass the
    argument on to the plain layer in its place, which may have no such argument.
    """
    from keras.src.backend.common.masking import get_keras_mask

    return get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Attaches a mask to a tensor, which layers after it read.

    Public layers compute masks from values, or pass on those of their inputs.
    """
    from keras.src.backend.common.masking import set_keras_mask

    set_keras_mask(tensor, mask)


@contextlib.contextmanager
def tracing(layer: keras.layers.Layer, training: bool) -> Iterator[None]:
    """Runs calls of a layer's sublayers as calls within one of the layer.

    The public `Layer.__call__` records no calls of sublayers. Those that are recorded
    here are forgotten afterwards, since the layer is the user's.

    Args:
        layer: layer whose `call` runs on symbolic tensors.
        training: bool. Value of `training` that sublayers get by default.
    """
    before = global_state.get_global_attribute("current_call_ctx")
    context = CallContext(entry_layer=layer)
    context.set_value("training", training)
    global_state.set_global_attribute("current_call_ctx", context)
    parts = flatten_layers(layer)
    nodes = [(list(x._inbound_nodes), list(x._outbound_nodes)) for x in parts]
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", before)
        for part, (inbound, outbound) in zip(parts, nodes, strict=True):
            part._inbound_nodes, part._outbound_nodes = inbound, outbound


def stateless_scope() -> keras.StatelessScope | None:
    """Returns the innermost `keras.StatelessScope`, or None outside of all.

    The public class has no function that returns the one in use.
    """
    return global_state.get_global_attribute("stateless_scope")


def step_count(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the variable that counts an optimizer's steps.

    The public `iterations` counts updates, which are fewer if gradients accumulate.
    """
    return optimizer._iterations


def learning_rate_schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the schedule or the variable of an optimizer's learning rate.

    The public `learning_rate` is the value of the present step.
    """
    return getattr(optimizer, "_learning_rate", None)


def untrack_variable(optimizer: keras.optimizers.Optimizer, variable: Any) -> None:
    """Removes a variable that `add_variable` gave an optimizer.

    A new optimizer cannot load the variables of one that keeps it. Keras has no public
    counterpart of `add_variable`.
    """
    _untrack(optimizer, variable)


def _untrack(optimizer, variable):
    """Removes a variable from the list of an optimizer, a list of Python's.

    TensorFlow wraps the list, and writes no SavedModel of one that has lost elements.
    """
    predicate, variables = optimizer._tracker.config["variables"]
    if type(variables) is not list:
        variables = list(variables)
        object.__setattr__(optimizer, "_variables", variables)
        optimizer._tracker.config["variables"] = predicate, variables
    optimizer._untrack_variable(variable)


@contextlib.contextmanager
def without_variables(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]
) -> Iterator[None]:
    """Hides variables that `add_variable` gave an optimizer last, in a `with`.

    Files store all variables of an optimizer by their positions.
    """
    for variable in variables:
        _untrack(optimizer, variable)
    try:
        yield
    finally:
        for variable in variables:
            optimizer._track_variable(variable)


def averages(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[Any, Any]]:
    """Returns the `(variable, moving average)` pairs of an optimizer.

    The list is empty unless it was made with `use_ema=True` and built. Keras has no
    public name for the averages.
    """
    averages = getattr(optimizer, "_model_variables_moving_average", [])
    pairs = zip(optimizer._trainable_variables, averages, strict=bool(averages))
    return [(variable, average) for variable, average in pairs if average is not None]


def rebuild_train_function(model: keras.Model) -> None:
    """Compiles the training step again, with its present constants and variables.

    The argument `force` is undocumented.
    """
    model.make_train_function(force=True)


def expect_no_gradients(variables: Iterable[keras.Variable]) -> None:
    """Silences the optimizer's warning that exactly these variables have no gradient.

    Optimizers warn when a step is traced. Keras has no other way to say that trainable
    variables rest.
    """
    paths = "|".join(re.escape(variable.path) for variable in variables)
    if paths:
        listed = rf"\[('({paths})'(, )?)+\]"
        warnings.filterwarnings(
            "ignore", f"Gradients do not exist for variables {listed}"
        )


def trace_once(model: keras.Model) -> None:
    """Makes the first call of a training step on TensorFlow trace it only once.

    The first trace would create the variables of the optimizer, of metrics and of
    losses, and TensorFlow traces such functions again. Here they are created
    before. Keras does the same in a distribution strategy, by a trace of the whole
    model for the shapes of its outputs, which a Functional model knows.

    Args:
        model: compiled Functional model that has its `train_function`. Its step gives
            the outputs of the graph to losses and metrics.
    """
    step = model.train_function

    def call(iterator):
        specs = getattr(iterator, "element_spec", None)
        if specs is not None and model.distribute_strategy.num_replicas_in_sync == 1:
            _create_training_variables(model, specs)
        return step(iterator)

    if not model.run_eagerly:
        model.train_function = call


def _create_training_variables(model, specs):
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    parts = {
        model.compute_metrics: model._compile_metrics,
        model._compute_loss: model._compile_loss,
    }
    unbuilt = [x for x, part in parts.items() if part is not None and not part.built]
    if not unbuilt:
        return
    if not all(
        hasattr(x, "shape") and hasattr(x, "dtype") for x in keras.tree.flatten(specs)
    ):
        return  # batches with None in them: the first trace creates the variables
    tensors = keras.tree.map_structure(
        lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), specs
    )
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(tensors)
    y_pred = keras.tree.map_structure(  # a model of one batch size may train on others
        lambda x: keras.KerasTensor((None, *x.shape[1:]), x.dtype), model.output
    )
    if isinstance(y_pred, (list, tuple)) and len(y_pred) == 1:
        y_pred = y_pred[0]  # as a call returns it
    for compute in unbuilt:
        backend.compute_output_spec(compute, x, y, y_pred, sample_weight=sample_weight)


def loss_weights(model: keras.Model) -> Any:
    """Returns the argument `loss_weights` that a model is compiled with.

    The public `get_compile_config` serializes the loss too, which may be impossible.
    """
    return model._compile_config.config["loss_weights"]


def sync_variables(model: keras.Model) -> None:
    """Brings the variables of a model in training up to date, on JAX.

    The trainer on JAX keeps their values elsewhere while `fit` runs. Callbacks that
    read `self.model` have the same effect, which is not documented either.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def lambda_arguments(layer: keras.layers.Lambda) -> dict[str, Any]:
    """Arguments of the constructor that make a `Lambda` like a live one.

    A configuration has the function's code in place of the function. It cannot be
    loaded without `safe_mode=False`, and has lost the names that the code refers to.
    `_output_shape` has no public counterpart.
    """
    return {
        "function": layer.function,
        "output_shape": layer._output_shape,
        "mask": layer.mask,
        "arguments": layer.arguments,
        "name": layer.name,
        "trainable": layer.trainable,
        "dtype": layer.dtype_policy,
    }


def copy_operation(operation: keras.Operation) -> keras.Operation:
    """A copy of an operation without state, with the same attributes and no calls.

    `copy.copy` would save and load it. An operation that takes a function, as
    `ops.vectorized_map` does, has no configuration that can be loaded.
    """
    new = object.__new__(type(operation))
    vars(new).update(vars(operation), _inbound_nodes=[], _outbound_nodes=[])
    return new


def is_training(kwargs: dict[str, Any]) -> bool:
    """Returns whether a call of a layer is one in training.

    Layers without an argument `training` cannot tell it by a public API.

    Args:
        kwargs: keyword arguments of the call.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    training = kwargs.get("training")
    if training is None and context is not None:
        training = context.get_value("training")
    return training is True


def call_when_losses_are_read(
    layer: keras.layers.Layer, function: Callable[[], None]
) -> None:
    """Calls a function whenever a model reads the losses of a layer.

    The public `losses` of a model does not read those of its layers.
    """
    own_losses = layer._get_own_losses

    def watched():
        function()
        return own_losses()

    layer._get_own_losses = watched


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the layer and all layers within it.

    The public `layers` is an attribute of models only.
    """
    return layer._flatten_layers()


def weights_file(model: keras.Model) -> bytes:
    """Returns the content of a `.weights.h5` file, with the optimizer's state.

    `Model.save_weights` has HDF5 write to the disk. Where that is full, HDF5 ends the
    process with a segmentation fault.
    """
    content = io.BytesIO()
    store = saving_lib.H5IOStore(content, mode="w")
    saving_lib._save_state(
        model,
        weights_store=store,
        assets_store=None,
        inner_path="",
        visited_saveables=set(),
    )
    store.close()
    return content.getvalue()


def is_tensor(array: Any) -> bool:
    """Returns whether an array is a tensor of any backend, of SciPy or of pandas.

    The public `ops.is_tensor` knows the tensors of one backend.
    """
    return hasattr(array, "iloc") or any(
        test(array)
        for test in (
            data_adapter_utils.is_tensorflow_tensor,
            data_adapter_utils.is_jax_array,
            data_adapter_utils.is_torch_tensor,
            data_adapter_utils.is_scipy_sparse,
        )
    )


def rows_of_tensor(array: Any, rows: Any) -> Any:
    """Returns rows of a tensor as `fit` slices it, as a NumPy array.

    The public `ops.take` fails for sparse and ragged tensors and for pandas.

    Args:
        array: tensor for which `is_tensor` is true. If it is ragged, so is the result.
        rows: int array, or slice.
    """
    sliceable = array_slicing.convert_to_sliceable(array)
    chosen = sliceable[rows]
    if data_adapter_utils.is_tensorflow_ragged(chosen):
        return chosen
    return np.asarray(sliceable.convert_to_numpy(chosen))


def process_index() -> int:
    """Returns the index of this process among those of a training on JAX.

    `keras.distribution` sets the index, but has no function that returns it.
    """
    return distribution_lib.process_id()


def print_message(message: str) -> None:
    """Writes a line to where Keras writes its progress bars.

    `keras.utils.Progbar` is public and writes bars alone, without a title. `print`
    fails where stdout lacks a character of the message.
    """
    io_utils.print_msg(message)
