"""Operators that read kernels, and their sizes in one run."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.kernels import NATIVE_BITS

# Largest number of patches to lay side by side: more take longer than any CONV_2D.
MOST_PATCHES = 25


class Reader:
    """Operator of a graph that reads a kernel.

    Attributes:
        name: str. Name of the operator, such as "CONV_2D".
        operator: `schema.OperatorT`.
        kernel: int. Index of the tensor that holds the kernel.
        kernel_type: member of `schema.TensorType`. Type of that tensor.
        activations: "float" or "int8", type of the input.
        window: (height, width) of the kernel; (1, 1) for FULLY_CONNECTED.
        stride, dilation: the same of both.

    Args:
        model: a parsed file.
        graph: graph of the operator.
        operator: operator with a name in `NATIVE_BITS`.
        shapes: `{tensor index: shape}` in one run, for tensors of free sizes. Others
            have their shapes in the file.
    """

    def __init__(
        self,
        model: schema.ModelT,
        graph: schema.SubGraphT,
        operator: schema.OperatorT,
        shapes: Mapping[int, Sequence[int]],
    ) -> None:
        self.name = flatbuffer.operator_name(model, operator)
        self.operator = operator
        self.kernel = int(operator.inputs[1])
        self.kernel_type = graph.tensors[self.kernel].type
        source = graph.tensors[operator.inputs[0]]
        is_float = source.type == schema.TensorType.FLOAT32
        self.activations = "float" if is_float else "int8"
        self.window = self.stride = self.dilation = (1, 1)
        self._input, self._output, self._weights = (
            [int(size) for size in shapes.get(int(index), graph.tensors[index].shape)]
            for index in (operator.inputs[0], operator.outputs[0], self.kernel)
        )
        if self.name != "FULLY_CONNECTED":
            options = operator.builtinOptions
            self.window = self._weights[1], self._weights[2]
            self.stride = options.strideH, options.strideW
            self.dilation = options.dilationHFactor, options.dilationWFactor
        self._free = [size < 0 for size in free_sizes(source)[1:3]]

    def obstacle(self, bits: int) -> str:
        """Returns the reason why FULLY_CONNECTED cannot compute it, or "".

        Args:
            bits: int. Bits of the codes in the kernel, 2 or 4.
        """
        if math.prod(self._weights[1:]) * bits % 8:
            # XNNPACK leaves such kernels to much slower ones.
            return f"its channels do not fill whole bytes with {bits} bits"
        if self.name == "FULLY_CONNECTED":
            return ""
        if self.name != "CONV_2D":
            return "its channels are computed apart"
        if self._weights[3] != self._input[3]:
            return "its groups of channels are computed apart"
        if math.prod(self.window) > MOST_PATCHES:
            return f"its window has more than {MOST_PATCHES} places"
        if any(
            is_free and step > 1
            for is_free, step in zip(self._free, self.stride, strict=True)
        ):
            return "it has strides along a size that is free"
        return ""

    @property
    def padding(self) -> str:
        """Padding of a convolution, "SAME" or "VALID"."""
        same = self.operator.builtinOptions.padding == schema.Padding.SAME
        return "SAME" if same else "VALID"

    @property
    def shape_class(self) -> str:
        """Class of shapes whose costs follow one formula.

        One of "depthwise", "vector", "1x1", "1x1 strided" and "window".
        """
        if self.name == "DEPTHWISE_CONV_2D":
            return "depthwise"
        if self.window != (1, 1):
            return "window"
        if self.stride != (1, 1):
            return "1x1 strided"
        return "vector" if math.prod(self._output[:-1]) == 1 else "1x1"

    @property
    def sizes(self) -> np.ndarray:
        """Sizes that predict the operator's time, float64 (5,).

        The entries are 1, multiplications, weights, elements of input and output, and
        elements of the patches that FULLY_CONNECTED would read.
        """
        outputs, weights = math.prod(self._output), math.prod(self._weights)
        channels, window = self._output[-1], math.prod(self.window)
        is_depthwise = self.name == "DEPTHWISE_CONV_2D"
        per_output = window if is_depthwise else weights / channels
        patches = outputs / channels * window * self._input[-1]
        moved = math.prod(self._input) + outputs
        return np.array([1, outputs * per_output, weights, moved, patches], float)

    def extra_operators(self) -> int:
        """Returns about how many operators FULLY_CONNECTED needs before it."""
        strides = sum(step > 1 for step in self.stride)
        if self.window == (1, 1):
            return 3 if strides else 0
        return 1 + 2 * strides + sum(n + 1 for n in self.window if n > 1)


def free_sizes(tensor: schema.TensorT) -> list[int]:
    """Returns the sizes of a tensor, -1 for those that are free."""
    for sizes in (tensor.shapeSignature, tensor.shape):
        if sizes is not None and np.size(sizes):
            return [int(size) for size in np.atleast_1d(sizes)]
    return []


def readers(
    model: schema.ModelT,
    graph: schema.SubGraphT,
    shapes: Mapping[int, Sequence[int]],
) -> list[Reader]:
    """Returns the `Reader` of each operator of a graph that reads a constant kernel."""
    return [
        Reader(model, graph, operator, shapes)
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) in NATIVE_BITS
        and flatbuffer.constant(model, graph.tensors[operator.inputs[1]]) is not None
    ]
