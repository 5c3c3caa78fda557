"""Layers whose outputs do not depend on the values of their input.

A graph has tensors that layers make. A weight or a constant that a `call` computes with
becomes one, and so does a tensor whose sizes are those of others.
"""

from typing import Any

import keras
from keras import ops

from tfcompress.layers.tensors.masking import UnmaskedLayer
from tfcompress.types import ArrayLike, Tensor

# Sizes in place of open ones. An axis whose size differs with them is open.
_SIZES = (83, 89)


@keras.saving.register_keras_serializable(package="tfcompress")
class OwnWeight(UnmaskedLayer):
    """Layer that returns its weight.

    Args:
        shape: tuple of int. Shape of the weight.
        weight_dtype: str. Its dtype.
        regularizer, constraint: see `keras.layers.Layer.add_weight`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        weight_dtype: str,
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shape, self.weight_dtype = tuple(shape), weight_dtype
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)
        self.weight: Any = None

    @classmethod
    def of(cls, variable: Any, **kwargs: Any) -> "OwnWeight":
        """Returns a layer that has the variable of another one.

        Args:
            variable: `keras.Variable`. It is not copied.
            **kwargs: arguments of `keras.layers.Layer`.
        """
        layer = cls(
            shape=tuple(variable.shape),
            weight_dtype=keras.backend.standardize_dtype(variable.dtype),
            regularizer=variable.regularizer,
            constraint=variable.constraint,
            **kwargs,
        )
        layer.weight = variable
        layer.built = True
        return layer

    def build(self, input_shape: Any) -> None:
        self.weight = self.add_weight(
            shape=self.shape,
            dtype=self.weight_dtype,
            initializer="zeros",
            regularizer=self.regularizer,
            constraint=self.constraint,
            name="weight",
        )

    def call(self, inputs: Tensor) -> Tensor:
        """Returns the weight, in the compute dtype if it is a float."""
        return ops.copy(ops.convert_to_tensor(self.weight))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "shape": self.shape,
            "weight_dtype": self.weight_dtype,
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }


@keras.saving.register_keras_serializable(package="tfcompress")
class Constant(UnmaskedLayer):
    """Layer that returns the same numbers in each call.

    Args:
        value: array, or nested lists of numbers.
        value_dtype: str. Dtype of the output. None takes that of the array.
    """

    def __init__(
        self, value: ArrayLike, value_dtype: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if value_dtype is None:
            value_dtype = keras.backend.standardize_dtype(value.dtype)
        self.value_dtype = value_dtype
        self.value = ops.convert_to_numpy(ops.convert_to_tensor(value, value_dtype))

    def call(self, inputs: Tensor) -> Tensor:
        """Returns the value as a tensor."""
        return ops.convert_to_tensor(self.value, self.value_dtype)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(self.value.shape, self.value_dtype)

    def get_config(self) -> dict[str, Any]:
        value = self.value.tolist()
        dtype = self.value_dtype
        return {**super().get_config(), "value": value, "value_dtype": dtype}


@keras.saving.register_keras_serializable(package="tfcompress")
class WithSizes(UnmaskedLayer):
    """Layer that calls a function of `keras.ops` with sizes of its inputs.

    Args:
        function: str. Name in `keras.ops`, such as "broadcast_to".
        arguments: list, `[args, kwargs]`. `{"tensor": i}` stands for input i, and
            `{"size_of": i, "axis": k, "times": n}` for n times the size of its axis k.

    Input: list of tensors.
    """

    def __init__(self, function: str, arguments: list, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.function, self.arguments = function, arguments

    def call(self, inputs: list[Tensor]) -> Tensor:
        """Returns what the function returns."""

        def filled(value):
            if isinstance(value, (list, tuple)):
                return [filled(x) for x in value]
            if not isinstance(value, dict):
                return value
            if "tensor" in value:
                return inputs[value["tensor"]]
            if "size_of" in value:
                sizes = ops.shape(inputs[value["size_of"]])
                return sizes[value["axis"]] * value["times"]
            return {key: filled(x) for key, x in value.items()}

        args, kwargs = self.arguments
        return getattr(ops, self.function)(*filled(args), **filled(kwargs))

    def compute_output_spec(self, inputs: list[keras.KerasTensor]) -> keras.KerasTensor:
        outputs = []
        for size in _SIZES:
            shapes = [[n or size for n in x.shape] for x in inputs]
            specs = zip(shapes, inputs, strict=True)
            outputs.append(self.call([keras.KerasTensor(n, x.dtype) for n, x in specs]))
        one, other = outputs
        sizes = zip(one.shape, other.shape, strict=True)
        dtype = keras.backend.standardize_dtype(one.dtype)
        return keras.KerasTensor([n if n == m else None for n, m in sizes], dtype)

    def get_config(self) -> dict[str, Any]:
        config = {"function": self.function, "arguments": self.arguments}
        return {**super().get_config(), **config}
