"""Recurrent layers with one kernel, whose inputs another layer has projected.

`keras.layers.LSTM`, `GRU` and `SimpleRNN` multiply inputs by one kernel and states by
another. Here a `Dense` layer does the first for all steps at once, and these layers do
the second step by step.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from tfcompress.types import Tensor

# From a state (batch, units) to its products with the kernel, (batch, units) per gate.
_Products: TypeAlias = Callable[[Tensor], list[Tensor]]


class _Cell:
    """Cell for `keras.layers.RNN`, whose step the layer sets before each loop.

    Attributes:
        step: function from (inputs, states) to (output, states).
        state_size: list of int. Sizes of the states.
        compute_dtype: str. Dtype of the states.
    """

    step: Callable[[Tensor, list[Tensor]], tuple[Tensor, list[Tensor]]]
    compute_dtype: str

    def __init__(self, state_size: list[int]) -> None:
        self.state_size = state_size

    def __call__(
        self, inputs: Tensor, states: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        return self.step(inputs, states)

    call = __call__

    def get_config(self) -> dict[str, Any]:
        return {"state_size": self.state_size}


class RecurrentSteps(keras.layers.RNN):
    """Base class of recurrent layers on projected inputs, with one kernel.

    The kernel has the shape (units, gates * units), and the input (batch, steps,
    gates * units). A step adds `matmul(state, kernel)` to the input of the step.
    Subclasses define `gates` and `step`.

    Args:
        units: int. Number of units.
        activation: activation function of the output.
        recurrent_dropout: float, 0 to 1. Share of the state that is dropped in
            training, for each gate alike in all steps.
        seed: int. Seed of the dropout, or None.
        kernel_initializer, kernel_regularizer, kernel_constraint: of the kernel, as in
            `keras.layers.Dense`.
        **kwargs: arguments of `keras.layers.RNN` but the cell.

    Raises:
        ValueError: if the last axis of the input is not of size gates * units.
    """

    gates: int
    states_of_a_unit = 1
    # Sizes of a kernel that is a convolution's.
    kernel_size: tuple[int, ...] = ()

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        kernel_initializer: Any = "orthogonal",
        kernel_regularizer: Any = None,
        kernel_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(_Cell([units] * self.states_of_a_unit), **kwargs)
        self.cell.compute_dtype = self.compute_dtype
        self.units = units
        self.activation = keras.activations.get(activation)
        self.recurrent_dropout = recurrent_dropout
        self.seed = seed
        if recurrent_dropout:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    @property
    def separate_columns(self) -> tuple[slice, ...]:
        """Columns of the kernel that a step multiplies by, each part for itself."""
        return (slice(None),)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        columns = self.gates * self.units
        if input_shape[-1] != columns:
            raise ValueError(
                f"The last axis of the input of '{self.name}' is expected to have "
                f"{self.gates} * units = {columns} channels, of the layer before it. "
                f"Received: shape {tuple(input_shape)}."
            )
        self.kernel = self.add_weight(
            shape=(*self.kernel_size, self.units, columns),
            name="kernel",
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        super().build(input_shape)

    def inner_loop(
        self,
        sequences: Tensor,
        initial_state: Any,
        mask: Tensor | None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Runs all steps, as `keras.layers.RNN` does, with one kernel for all."""
        # A kernel that is computed is computed once, not in every step.
        kernel = ops.cast(ops.convert_to_tensor(self.kernel), self.compute_dtype)
        kernels = [kernel[..., columns] for columns in self.separate_columns]
        products = [self._products(k, initial_state[0], training) for k in kernels]
        self.cell.step = lambda inputs, states: self.step(
            ops.split(inputs, self.gates, axis=-1), states, products
        )
        try:
            return super().inner_loop(sequences, initial_state, mask, training)
        finally:
            del self.cell.step

    def step(
        self,
        inputs: Sequence[Tensor],
        states: list[Tensor],
        products: Sequence[_Products],
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes one step.

        Args:
            inputs: input of each gate, (batch, units).
            states: states before the step, (batch, units).
            products: for each of the `separate_columns`, a function from a state to
                its products with these columns of the kernel, one per gate.

        Returns:
            `(output, states after the step)`.
        """
        raise NotImplementedError

    def times(self, state: Tensor, kernel: Tensor) -> Tensor:
        """Returns the products of a state with columns of the kernel."""
        return ops.matmul(state, kernel)

    def _products(self, kernel, state, training):
        gates = kernel.shape[-1] // self.units
        if not (training and 0.0 < self.recurrent_dropout < 1.0):
            return lambda state: ops.split(self.times(state, kernel), gates, axis=-1)
        masks = [
            keras.random.dropout(
                ops.ones_like(state), self.recurrent_dropout, seed=self.seed_generator
            )
            for _ in range(gates)
        ]
        parts = ops.split(kernel, gates, axis=-1)
        return lambda state: [
            self.times(state * mask, part)
            for mask, part in zip(masks, parts, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["cell"]
        return {
            **config,
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "recurrent_dropout": self.recurrent_dropout,
            "seed": self.seed,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RecurrentSteps":
        return cls(**config)


class _Gated(RecurrentSteps):
    """Base class of layers with gates.

    Args:
        recurrent_activation: activation function of the gates.
        **kwargs: see `RecurrentSteps`.
    """

    def __init__(
        self, units: int, recurrent_activation: Any = "sigmoid", **kwargs: Any
    ) -> None:
        super().__init__(units, **kwargs)
        self.recurrent_activation = keras.activations.get(recurrent_activation)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "recurrent_activation": keras.activations.serialize(
                self.recurrent_activation
            ),
        }


@keras.saving.register_keras_serializable(package="tfcompress")
class SimpleRNNSteps(RecurrentSteps):
    """Steps of a `keras.layers.SimpleRNN`: h_t = activation(x_t + h_(t-1) K)."""

    gates = 1

    def step(
        self,
        inputs: Sequence[Tensor],
        states: list[Tensor],
        products: Sequence[_Products],
    ) -> tuple[Tensor, list[Tensor]]:
        output = self.activation(inputs[0] + products[0](states[0])[0])
        return output, [output]


@keras.saving.register_keras_serializable(package="tfcompress")
class LSTMSteps(_Gated):
    """Steps of a `keras.layers.LSTM`.

    (i, f, g, o) = x_t + h_(t-1) K, the gates in the order of Keras;
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g), and h_t = sigmoid(o) tanh(c_t), with
    the activations that are given.
    """

    gates = 4
    states_of_a_unit = 2

    def step(
        self,
        inputs: Sequence[Tensor],
        states: list[Tensor],
        products: Sequence[_Products],
    ) -> tuple[Tensor, list[Tensor]]:
        state, carry = states
        i, f, g, o = (x + y for x, y in zip(inputs, products[0](state), strict=True))
        gate = self.recurrent_activation
        carry = gate(f) * carry + gate(i) * self.activation(g)
        output = gate(o) * self.activation(carry)
        return output, [output, carry]


@keras.saving.register_keras_serializable(package="tfcompress")
class GRUSteps(_Gated):
    """Steps of a `keras.layers.GRU`.

    z = sigmoid(x_z + h K_z), r = sigmoid(x_r + h K_r), and g = tanh(x_g + r (h K_g)),
    or tanh(x_g + (r h) K_g) if not `reset_after`; h_t = z h + (1 - z) g with
    h = h_(t-1) and the activations that are given.

    Args:
        reset_after: bool. Whether the gate r acts after the product with the kernel.
        use_bias: bool. Whether a `bias`, (3 * units,), is added to the products of the
            state, as Keras does with `reset_after`.
        bias_regularizer, bias_constraint: of the bias.
        **kwargs: see `LSTMSteps`.
    """

    gates = 3

    def __init__(
        self,
        units: int,
        reset_after: bool = True,
        use_bias: bool = True,
        bias_regularizer: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        self.reset_after = reset_after
        self.use_bias = use_bias and reset_after
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    @property
    def separate_columns(self) -> tuple[slice, ...]:
        if self.reset_after:
            return super().separate_columns
        return slice(None, 2 * self.units), slice(2 * self.units, None)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.gates * self.units,),
                name="bias",
                initializer="zeros",
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )

    def step(
        self,
        inputs: Sequence[Tensor],
        states: list[Tensor],
        products: Sequence[_Products],
    ) -> tuple[Tensor, list[Tensor]]:
        (state,) = states
        z, r, *rest = products[0](state)
        if self.bias is not None:
            bias = ops.cast(ops.convert_to_tensor(self.bias), state.dtype)
            z, r, *rest = (
                x + b
                for x, b in zip([z, r, *rest], ops.split(bias, self.gates), strict=True)
            )
        gate = self.recurrent_activation
        z, r = gate(inputs[0] + z), gate(inputs[1] + r)
        candidate = r * rest[0] if rest else products[1](r * state)[0]
        output = z * state + (1 - z) * self.activation(inputs[2] + candidate)
        return output, [output]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "reset_after": self.reset_after,
            "use_bias": self.use_bias,
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }
