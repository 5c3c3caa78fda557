"""`EinsumDense` layers, written as `Dense` between changes of shape."""

import math
from collections.abc import Sequence

import numpy as np
from keras import activations, layers, ops

from tfcompress.graph.parts.examples import NoPartsError
from tfcompress.layers.cloning import config_of
from tfcompress.layers.kernel import value_of

KINDS = (layers.EinsumDense,)
_SHARED = ("trainable", "dtype")
_ARGUMENT = {
    layers.Activation: "activation",
    layers.Permute: "dims",
    layers.Reshape: "target_shape",
}
_OF_DENSE = (
    *("kernel_initializer", "bias_initializer"),
    *("kernel_regularizer", "bias_regularizer", "activity_regularizer"),
)


def parts(layer: layers.EinsumDense) -> list[layers.Layer]:
    """Returns layers that compute the same: `Permute`, `Reshape`, `Dense` and the like.

    The last of them has the layer's name; a `Dense` that is not the last has that name
    and "_dense".

    Raises:
        NoPartsError: if the kernel is not the matrix of one product, as where it has
            an axis that both the inputs and the outputs have.
    """
    labels = _Labels(layer)
    config = config_of(layer)
    for key in ("kernel_constraint", "bias_constraint"):
        if config[key] is not None:
            raise NoPartsError(f"has a `{key}`")
    if layer.lora_enabled or layer.quantization_mode:
        raise NoPartsError("has LoRA enabled or is quantized by Keras")
    shared = {key: config[key] for key in _SHARED}
    dense = {key: config[key] for key in _OF_DENSE}
    before, after = labels.shapes_before(), labels.shapes_after()
    dense.update(units=math.prod(labels.new_sizes), use_bias=layer.bias is not None)
    if layer.activation is activations.linear or not after:
        dense["activation"] = config["activation"]
    else:  # it may need the new axes apart, as softmax does
        after = [*after, (layers.Activation, layer.activation)]
    kinds = [*before, (layers.Dense, None), *after]
    chain = []
    for i, (kind, argument) in enumerate(kinds):
        name = "_input" * (i < len(before))
        name += f"_{kind.__name__.lower()}" * (i < len(kinds) - 1)
        arguments = dense if kind is layers.Dense else {_ARGUMENT[kind]: argument}
        chain.append(kind(**arguments, **shared, name=f"{layer.name}{name}"))
    return chain


def copy_weights(old: layers.EinsumDense, new: Sequence[layers.Layer]) -> None:
    """Gives the `Dense` of built `parts` the weights of the layer."""
    labels = _Labels(old)
    (dense,) = [layer for layer in new if isinstance(layer, layers.Dense)]
    kernel = np.transpose(
        value_of(old.kernel),
        [labels.kernel.index(label) for label in labels.summed + labels.new],
    )
    dense.kernel.assign(kernel.reshape(dense.kernel.shape))
    if old.bias is not None:
        bias = value_of(ops.broadcast_to(old.bias, labels.new_sizes))
        dense.bias.assign(bias.reshape(-1))


class _Labels:
    """Labels of an equation, sorted by their meaning.

    Attributes:
        kernel: str. Labels of the kernel, in its order.
        summed: str. Those that are summed over, in the order of the inputs.
        new: str. Those that only the outputs have, in the order of the outputs.
        new_sizes: list of int. Their sizes.
    """

    def __init__(self, layer: layers.EinsumDense) -> None:
        inputs, _, self._outputs = layer.equation.replace(" ", "").partition("->")
        self._inputs, self.kernel = inputs.split(",")
        # Any number of axes is one label, which no change of shape below can take.
        self._dots = "." in layer.equation
        if self._dots:
            self._inputs, self._outputs = (
                labels.replace("...", ".") for labels in (self._inputs, self._outputs)
            )
        sizes = dict(zip(self._outputs[1:], layer.partial_output_shape, strict=False))
        sizes.update(zip(self.kernel, layer.kernel.shape, strict=True))
        self._sizes = sizes
        self.summed = _among(self._inputs, self.kernel, self._outputs)
        self.new = _among(self._outputs, self.kernel, self._inputs)
        self._free = [x for x in self._inputs if x not in self.kernel]
        self.new_sizes = [sizes[label] for label in self.new]
        if len(self.summed + self.new) < len(self.kernel):
            raise NoPartsError(
                f"has the equation '{layer.equation}', which is no product of matrices"
            )
        if self._free[:1] != [self._inputs[0]] or self._outputs[0] != self._inputs[0]:
            raise NoPartsError(f"moves the batch by '{layer.equation}'")
        bias_axes = layer.bias_axes or ""
        if not set(bias_axes) <= set(self.new):
            raise NoPartsError(f"has the `bias_axes` '{bias_axes}'")

    def shapes_before(self) -> list[tuple[type[layers.Layer], tuple]]:
        """Returns layers and arguments: free axes, then all summed ones as one."""
        result = self._permuted(self._inputs, "".join(self._free) + self.summed)
        if len(self.summed) != 1:
            summed = math.prod(self._sizes[label] for label in self.summed)
            result.append((layers.Reshape, self._target([summed])))
        return result

    def shapes_after(self) -> list[tuple[type[layers.Layer], tuple]]:
        """Returns layers and arguments: new axes apart, in the order of the outputs."""
        result = []
        if len(self.new) != 1:
            result.append((layers.Reshape, self._target(self.new_sizes)))
        return result + self._permuted("".join(self._free) + self.new, self._outputs)

    def _permuted(self, old, new):
        """`Permute` from one order of labels to another, if it is another."""
        if old == new:
            return []
        if self._dots:
            raise NoPartsError("has an equation with dots that moves axes")
        return [(layers.Permute, tuple(old.index(label) for label in new[1:]))]

    def _target(self, last):
        if self._dots:
            raise NoPartsError("has an equation with dots and several axes")
        sizes = [self._sizes[label] for label in self._free[1:]]
        if sizes.count(None) > 1:
            raise NoPartsError("has several axes of open size")
        return tuple(-1 if size is None else size for size in sizes) + tuple(last)


def _among(labels, wanted, unwanted):
    return "".join(x for x in labels if x in wanted and x not in unwanted)
