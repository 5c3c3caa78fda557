"""Forms of layers of a user's class that has a kernel of its own."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
from keras import ops

from tfcompress.compat import keras_weights_private
from tfcompress.layers.cloning import clone_layer
from tfcompress.layers.kernel import ComputedKernel
from tfcompress.layers.packed import PackedKernel
from tfcompress.layers.quantized import QuantizedKernel
from tfcompress.layers.registry import LAST_AXIS, Forms, add_forms
from tfcompress.types import Tensor

LayerClass = TypeVar("LayerClass", bound=type[keras.layers.Layer])
# From the shapes of inputs and outputs to axes along which weights are repeated.
Positions = Callable[[tuple, tuple], Sequence[int | None]]


@dataclasses.dataclass(frozen=True)
class OwnForms:
    """Facts about a user's class that the table of forms has none of for Keras's.

    Attributes:
        kernel: str. Attribute of the kernel.
        axes: int. Axes that the kernel has at least.
        positions: function, or None. See `register`.
    """

    kernel: str
    axes: int
    positions: Positions | None

    def why_not(self, layer: keras.layers.Layer) -> str | None:
        """Returns why a layer of the class cannot be quantized, or None."""
        if isinstance(layer, (QuantizedKernel, PackedKernel)):
            return "is compressed already"
        kernel = getattr(layer, self.kernel, None)
        if not isinstance(kernel, keras.Variable):
            return f"has no variable `{self.kernel}`"
        if len(kernel.shape) < self.axes:
            return f"has a kernel `{self.kernel}` of shape {tuple(kernel.shape)}"
        if getattr(clone_layer(layer), self.kernel, None) is not None:
            return f"makes its kernel `{self.kernel}` in its constructor"
        shape = (layer.get_build_config() or {}).get("input_shape")
        if shape is None or any(isinstance(size, (list, tuple)) for size in shape):
            return "takes several inputs"
        return None


def register(
    layer_class: Any = None,
    *,
    kernel: str = "kernel",
    channel_axes: int | Sequence[int] = LAST_AXIS,
    positions: Positions | None = None,
) -> Any:
    """Makes schemes quantize a kernel of layers of a user's class.

    It is a function, or a decorator: `@tfcompress.layers.register(kernel="w")`. Call it
    before `tfcompress.compress`, and before a student or a finalized model is loaded.

    The class sets its kernel in `build`, by `self.w = self.add_weight(...)`, and reads
    `self.w` in `call`. In a student `self.w` is the quantized kernel. All other weights
    stay float. `get_config` returns the arguments of the constructor. `call` takes one
    tensor first.

    Args:
        layer_class: subclass of `keras.layers.Layer`, or None for a decorator.
        kernel: str. Attribute of the kernel.
        channel_axes: int, or ints. Axes of the kernel's output channels, negative. Each
            channel has a scale of its own.
        positions: function of two tuples, the shapes of an input and of its output, the
            batch first. It returns the sizes of the axes along which a call repeats
            each weight: height and width of a convolution's output, or () for a product
            with one vector. MACs are the kernel's size times these. None leaves the
            layer out of MACs and BOPs.

    Returns:
        `layer_class`, or a function that returns the class that it is given.

    Raises:
        TypeError: if `layer_class` is no class of layers.
        ValueError: if it is a class of Keras or of tfcompress, has no `build` of one
            shape, or if an axis is not negative.

    Example:

    >>> @tfcompress.layers.register(kernel="w")
    ... class Product(keras.layers.Layer): ...
    """
    if layer_class is None:
        return lambda cls: register(
            cls, kernel=kernel, channel_axes=channel_axes, positions=positions
        )
    axes = (channel_axes,) if isinstance(channel_axes, int) else tuple(channel_axes)
    _check(layer_class, axes)
    own = OwnForms(kernel, max(2, *(-axis for axis in axes)), positions)
    add_forms(
        Forms(
            layer_class,
            _form("Quant", _OwnQuantized, layer_class, kernel),
            _form("Packed", _OwnPacked, layer_class, kernel),
            channel_axes=axes,
            kernel=kernel,
            own=own,
        )
    )
    return layer_class


def _check(cls, axes):
    if not (isinstance(cls, type) and issubclass(cls, keras.layers.Layer)):
        raise TypeError(
            "`layer_class` is a subclass of keras.layers.Layer, the class itself. "
            f"Received: {cls!r}."
        )
    if cls.__module__.partition(".")[0] in ("keras", "tfcompress"):
        raise ValueError(
            "`layer_class` is a class of your own; those of Keras have their forms. "
            f"Received: {cls.__module__}.{cls.__name__}."
        )
    if cls.build is keras.layers.Layer.build or len(_parameters(cls.build)) != 2:
        raise ValueError(
            "`layer_class` has a `build(self, input_shape)` that sets the kernel. "
            f"Received: {cls.__name__}, whose `build` does not take one shape."
        )
    if not axes or not all(isinstance(axis, int) and axis < 0 for axis in axes):
        raise ValueError(
            "`channel_axes` are the axes of output channels, negative ints such as -1. "
            f"Received: channel_axes={axes}."
        )


def _parameters(function):
    return list(inspect.signature(function).parameters.values())


def _form(prefix, mixin, cls, kernel):
    """The class of a form: a mixin before the user's class.

    Args:
        prefix: str. Beginning of its name.
        mixin: `_OwnQuantized` or `_OwnPacked`.
        cls: the user's class.
        kernel: str. Attribute of its kernel.
    """

    def call(self, inputs, *args, **kwargs):
        return cls.call(self, self.quantized_input(inputs), *args, **kwargs)

    call.__signature__ = inspect.signature(cls.call)  # type: ignore[attr-defined]
    namespace = {
        "__module__": cls.__module__,
        "__doc__": f"`{cls.__name__}` in another form, see `register`.",
        "call": call,
        kernel: property(mixin.get_kernel, mixin.take_kernel),
    }
    form = type(f"{prefix}{cls.__name__}", (mixin, cls), namespace)
    name = f"{prefix}({keras.saving.get_registered_name(cls)})"
    return keras.saving.register_keras_serializable("tfcompress", name)(form)


class _StoredKernel(ComputedKernel):
    """Mixin of the forms of a user's class, which store their variable themselves."""

    @property
    def kernel_variable(self) -> Any:
        """Variable of the kernel or of its codes."""
        return keras_weights_private.kernel_variable(self)


class _OwnQuantized(_StoredKernel, QuantizedKernel):
    """`QuantizedKernel` of a class that may name its kernel as it likes."""

    folds_batch_norm = False
    training_arguments = ()

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        return super(QuantizedKernel, self).add_weight(*args, **kwargs)

    def get_kernel(self) -> Any:
        """Returns the quantized kernel; its variable as long as `build` runs."""
        return self.compute_kernel() if self.built else self.kernel_variable

    def take_kernel(self, variable: Any) -> None:
        """Stores the variable of the kernel."""
        # Codes follow from the float32 weights, see `QuantizedKernel.add_weight`.
        keras_weights_private.do_not_autocast(variable)
        keras_weights_private.set_kernel_variable(self, variable)

    def quantized_input(self, inputs: Tensor) -> Tensor:
        """Returns the inputs that the layer computes with."""
        if self.input_quantizer is None:
            return inputs
        return ops.cast(self.input_quantizer(inputs), self.compute_dtype)


class _OwnPacked(_StoredKernel, PackedKernel):
    """`PackedKernel` of a class that may name its kernel as it likes."""

    training_arguments = ()

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        return super(PackedKernel, self).add_weight(*args, **kwargs)

    def get_kernel(self) -> Tensor:
        """Returns the decoded kernel."""
        return self.compute_kernel()

    def take_kernel(self, variable: Any) -> None:
        """Adds codes and scales in place of the variable of the kernel."""
        keras_weights_private.untrack_weight(self, variable)
        packed = self.add_packed(tuple(variable.shape))
        keras_weights_private.set_kernel_variable(self, packed)

    def quantized_input(self, inputs: Tensor) -> Tensor:
        """Returns the inputs, which a layer of its own quantizes."""
        return inputs
