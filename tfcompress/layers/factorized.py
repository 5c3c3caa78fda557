"""Kernels that are the product of a basis and coefficients."""

import inspect
import math

import keras
import numpy as np
from keras import ops

from tfcompress.compat import keras_private
from tfcompress.layers.kernel import ComputedKernel, channel_axis
from tfcompress.layers.training_form import TrainingForm

STARTS = ("svd", "identity")
# Of the mean squared norm of the coefficients' rows: below it the basis does not
# learn any faster.
LEAST_NORM = 0.01


class FactorizedKernel(ComputedKernel, TrainingForm):
    """Mixin before a Keras layer: its kernel is a basis times coefficients.

    W = B C, in EDP's block a convolution with `kernel_rank` filters B (the basis) and a
    1 x 1 convolution C (the coefficients) that mixes them into the layer's outputs.
    A row of C that is zero takes one filter from the basis: the rank falls. A
    column that is zero takes an output channel. While it trains, the layer multiplies
    the two and runs one convolution: the same function at nearly the plain layer's
    cost. `tfcompress.finalize` makes one or two plain layers of it.

    The gradient of the basis is divided by the squared norms that the coefficients'
    rows start with (as in ScaledGD, Tong et al. 2021), so that the product learns at
    the pace of a plain kernel; else that would grow with the squared singular values.

    Args:
        kernel_rank: filters of the basis; None takes full rank, the smaller side of the
            kernel as a matrix.

    Variables: `_kernel`, float32, the basis (..., input channels, rank), with the
    layer's initializer, regularizer and constraint; `coefficients`, float32
    (rank, output channels). Not trainable: `pace` (rank,), what the basis's gradient is
    multiplied by; and masks of zeros and ones for what a scheme has cut, `rank_mask`
    (rank,) and `input_mask` (input channels,). `cut` is 1 once that is decided.

    Attributes:
        observer: function that is told the inputs of every call, or None.
        channel_axis: of inputs and outputs.
    """

    def __init__(self, *args, kernel_rank=None, **kwargs):
        super().__init__(*args, **kwargs)
        if kernel_rank is not None and (
            not isinstance(kernel_rank, int) or kernel_rank < 1
        ):
            raise ValueError(
                "`kernel_rank` is a positive integer. Received: "
                f"kernel_rank={kernel_rank!r}."
            )
        if getattr(self, "groups", 1) != 1 or getattr(self, "lora_rank", None):
            raise ValueError(
                f"{type(self).__name__} has one group and no `lora_rank`. Received: "
                f"groups={getattr(self, 'groups', 1)}, "
                f"lora_rank={getattr(self, 'lora_rank', None)}."
            )
        self.kernel_rank = kernel_rank
        self.observer = None

    def add_weight(self, *args, name=None, shape=None, **kwargs):
        if name == keras_private.KERNEL_NAME:
            *others, outputs = shape
            self.full_rank = min(math.prod(others), outputs)
            shape = (*others, self.kernel_rank or self.full_rank)
            kwargs["autocast"] = False  # the product is cast, not its factors
        return super().add_weight(*args, name=name, shape=shape, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        *_, inputs, rank = self.kernel_variable.shape
        outputs = self.filters if hasattr(self, "filters") else self.units
        self.coefficients = self.add_weight(
            name="coefficients",
            shape=(rank, outputs),
            initializer=keras.initializers.Orthogonal(),
            autocast=False,
        )
        state = {
            "initializer": "ones",
            "trainable": False,
            "autocast": False,
            "aggregation": "only_first_replica",
        }
        self.pace = self.add_weight(name="pace", shape=(rank,), **state)
        self.rank_mask = self.add_weight(name="rank_mask", shape=(rank,), **state)
        self.input_mask = self.add_weight(name="input_mask", shape=(inputs,), **state)
        self.cut = self.add_weight(name="cut", **{**state, "initializer": "zeros"})

    def call(self, inputs):
        if self.observer is not None:
            self.observer(inputs)
        return super().call(inputs)

    def hidden(self, inputs):
        """What the basis alone computes: a tensor with `kernel_rank` channels."""
        return self._multiplied(inputs, self.masked_factors()[0])

    def _multiplied(self, inputs, kernel):
        """What the plain layer computes before its bias."""
        kernel = ops.cast(kernel, self.compute_dtype)
        if isinstance(self, keras.layers.Dense):
            return ops.matmul(inputs, kernel)
        padding = self.padding
        if padding == "causal":
            inputs = ops.pad(inputs, keras_private.causal_padding(self))
            padding = "valid"
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    @property
    def channel_axis(self):
        return channel_axis(self)

    def compute_kernel(self):
        """B C without what is masked, in the layer's compute dtype."""
        *others, rank = self.kernel_variable.shape
        basis, coefficients = self.masked_factors()
        basis = ops.reshape(basis, (-1, rank))
        # Each factor moves the product, hence the halves.
        basis = scale_gradient(basis, 0.5 * ops.convert_to_tensor(self.pace))
        coefficients = scale_gradient(coefficients, ops.full((), 0.5))
        product = ops.matmul(basis, coefficients)
        return ops.cast(ops.reshape(product, (*others, -1)), self.compute_dtype)

    def masked_factors(self):
        """B and C without what is masked, float32 tensors."""
        inputs, ranks = map(ops.convert_to_tensor, (self.input_mask, self.rank_mask))
        basis = ops.convert_to_tensor(self.kernel_variable) * ops.expand_dims(
            inputs, -1
        )
        return basis, self.coefficients * ops.expand_dims(ranks, -1)

    def set_kernel(self, kernel, start="svd"):
        """Factorizes a kernel; the product is that kernel.

        Args:
            kernel: float array (..., input channels, output channels).
            start: "svd", B = U and C = S V^T of the kernel's singular value
                decomposition, so that the norms of C's rows are its singular values;
                or "identity", B = W and C = I, which needs a rank of as many as there
                are output channels.

        Raises:
            ValueError: if the rank is too small for an exact product.
        """
        matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        rank, outputs = self.coefficients.shape
        needed = outputs if start == "identity" else self.full_rank
        if rank != needed:
            raise ValueError(
                f"Layer '{self.name}' is expected to have rank {needed} for an exact "
                f"'{start}' start. Received: kernel_rank={rank}."
            )
        if start == "identity":
            basis, coefficients = matrix, np.eye(outputs)
        else:
            basis, values, vectors = np.linalg.svd(matrix, full_matrices=False)
            coefficients = values[:, None] * vectors
        self.set_factors(basis, coefficients)

    def set_factors(self, basis, coefficients):
        """Sets both factors and the pace that goes with them.

        Args:
            basis: float array (inputs of one output, rank), or of the basis's shape.
            coefficients: float array (rank, output channels).
        """
        self.kernel_variable.assign(basis.reshape(self.kernel_variable.shape))
        self.coefficients.assign(coefficients)
        norms = np.square(coefficients).sum(axis=1)
        norms = norms + LEAST_NORM * norms.mean()
        self.pace.assign(1.0 / np.where(norms > 0, norms, 1.0))  # a kernel of zeros

    def unfinished(self):
        shrinks = self.coefficients.constraint is not None
        if shrinks and not float(ops.convert_to_numpy(self.cut)):
            return ["channels and ranks are not cut yet. Train with `fit` to its end."]
        return []

    def inference_layers(self, norm, names):
        if self.is_decomposed():
            return list(decomposed_layers(self, self.factors()[0].shape[-1]))
        return [plain_layer(self)]

    def copy_to_inference(self, layers, norm):
        basis, coefficients, bias = self.factors()
        last = layers[-1]
        if len(layers) == 2:
            layers[0].kernel.assign(basis)
            last.kernel.assign(coefficients.reshape(last.kernel.shape))
        else:
            last.kernel.assign(ops.matmul(basis, coefficients))
        if bias is not None:
            last.bias.assign(bias)

    def channel_mask(self, channels, name):
        if name not in channels.read:
            return None
        return channels.read[name], ops.convert_to_numpy(self.input_mask) > 0

    def is_decomposed(self):
        """Whether ranks were cut, so that two layers are to be made of this one."""
        return not ops.convert_to_numpy(self.rank_mask).all()

    def factors(self):
        """The basis and the coefficients without the ranks that were cut, and the bias.

        Arrays; the basis is zero for masked input channels, the bias None if the layer
        has none.
        """
        ranks = np.flatnonzero(ops.convert_to_numpy(self.rank_mask))
        basis = ops.convert_to_numpy(self.kernel_variable)[..., ranks]
        inputs = ops.convert_to_numpy(self.input_mask)[:, None]
        coefficients = ops.convert_to_numpy(self.coefficients)[ranks]
        bias = ops.convert_to_numpy(self.bias) if self.use_bias else None
        return basis * inputs, coefficients, bias

    def get_config(self):
        return {**super().get_config(), "kernel_rank": self.kernel_rank}


def plain_layer(layer, **changes):
    """The plain layer, not built, of a factorized one, with changed arguments."""
    kind = layer.forms.plain
    known = inspect.signature(kind).parameters.keys() | {"name", "trainable"}
    config = {k: value for k, value in layer.get_config().items() if k in known}
    return kind.from_config({**config, "dtype": "float32", **changes})


def decomposed_layers(layer, rank, **changes):
    """The basis and the coefficients of a factorized layer as plain layers, not built.

    Args:
        layer: a `FactorizedKernel`.
        rank: filters of the basis.
        changes: arguments of the second layer that change.
    """
    basis = plain_layer(
        layer,
        name=f"{layer.name}_basis",
        use_bias=False,
        activation=None,
        activity_regularizer=None,
        **{width_argument(layer): rank},
    )
    if not isinstance(layer, keras.layers.Dense):
        pointwise = {"kernel_size": 1, "strides": 1, "dilation_rate": 1}
        changes = {**pointwise, "padding": "valid", **changes}
    return basis, plain_layer(layer, **changes)


def width_argument(layer):
    """The argument of a convolution or dense layer that sets its output channels."""
    return "units" if isinstance(layer, keras.layers.Dense) else "filters"


@ops.custom_gradient
def scale_gradient(x, scale):
    """`x`, with its gradient multiplied by `scale`, a tensor that broadcasts to it."""

    def gradient(*upstream, **keywords):
        (upstream,) = upstream or (keywords["upstream"],)
        return upstream * scale, ops.zeros_like(scale)

    return x, gradient


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedConv1D(FactorizedKernel, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a factorized kernel."""


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedConv2D(FactorizedKernel, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a factorized kernel."""


@keras.saving.register_keras_serializable(package="tfcompress")
class FactorizedDense(FactorizedKernel, keras.layers.Dense):
    """`keras.layers.Dense` with a factorized kernel."""
