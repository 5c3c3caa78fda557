"""Convolutions written as FULLY_CONNECTED operators on patches of their input."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.litert.lowering.reader import Reader, free_sizes

# Version of FULLY_CONNECTED with kernels of few bits and a scale per output channel.
FULLY_CONNECTED_VERSION = 12
# Axes of a convolution's input.
HEIGHT, WIDTH, CHANNELS = 1, 2, 3
# `{axis: (places to leave out before, places to leave out after)}`.
Cuts: TypeAlias = Mapping[int, tuple[int, int]]


class DenseWriter:
    """Writer of convolutions as FULLY_CONNECTED.

    A 1x1 convolution is a FULLY_CONNECTED operator on the same tensor. For any other
    window the input is padded. Its shifts by each column of the window are concatenated
    along the channels, and the same is done for the rows. The channels then are in the
    order of the kernel's weights.

    LiteRT copies the elements of a slice with steps one by one, which takes ten times
    as long as a convolution. A stride is therefore an axis of its own: RESHAPE splits
    an axis into steps and the places of one step. A shift is a slice of both.

    Slices end at places counted from the end, so that sizes without stride may be free.

    Args:
        model: a parsed file, which is changed.
        graph: one of its graphs.
    """

    def __init__(self, model: schema.ModelT, graph: schema.SubGraphT) -> None:
        self._model = model
        self._graph = graph
        self._integers: dict[tuple[int, ...], int] = {}

    def operators(self, reader: Reader) -> list[schema.OperatorT]:
        """Returns the operators that compute what one operator did.

        Args:
            reader: an operator without an obstacle. The last operator reads the same
                index as its kernel. The tensor there has to get the shape (output
                channels, weights per channel).
        """
        operator = reader.operator
        source = int(operator.inputs[0])
        if reader.name == "FULLY_CONNECTED":
            return [self._dense(operator, source, operator.builtinOptions)]
        before: list[schema.OperatorT] = []
        axes = [
            Axis(*along, reader.padding == "SAME")
            for along in zip(
                free_sizes(self._graph.tensors[source])[1:3],
                reader.window,
                reader.stride,
                reader.dilation,
                strict=True,
            )
        ]
        height, width = axes
        source = self._padded(before, source, [axis.pads for axis in axes])
        if reader.window == (1, 1) and reader.stride != (1, 1):
            source = self._strided(before, source, height, width)
        else:
            source = self._columns(before, source, width)
            source = self._rows(before, source, height)
        options = schema.FullyConnectedOptionsT(
            fusedActivationFunction=operator.builtinOptions.fusedActivationFunction,
            keepNumDims=True,
        )
        return [*before, self._dense(operator, source, options)]

    def _dense(self, operator, source, options):
        made = flatbuffer.operator(
            self._model, "FULLY_CONNECTED", source, 0, FULLY_CONNECTED_VERSION
        )
        made.inputs = np.array([source, *operator.inputs[1:]], np.int32)
        made.outputs = operator.outputs
        made.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        made.builtinOptions = options
        return made

    def _padded(self, before, source, pads):
        if not np.any(pads):
            return source
        batch, *sizes, channels = self._sizes(source)
        grown = [
            size if size < 0 else size + sum(pad)
            for size, pad in zip(sizes, pads, strict=True)
        ]
        inputs = [source, self._ints([(0, 0), *pads, (0, 0)])]
        options = schema.BuiltinOptions.PadOptions, schema.PadOptionsT()
        shape = [batch, *grown, channels]
        return self._append(before, "PAD", inputs, shape, options)

    def _strided(self, before, source, height, width):
        """Takes every n-th row and column, in one slice."""
        batch, _, _, channels = self._sizes(source)
        steps = [batch, height.steps, height.stride, width.steps]
        split = self._reshaped(before, source, [*steps, width.stride * channels])
        cuts = {
            1: (0, height.steps - height.outputs),
            2: (0, height.stride - 1),
            3: (0, width.steps - width.outputs),
            4: (0, (width.stride - 1) * channels),
        }
        taken = self._slice(before, split, cuts)
        return self._reshaped(
            before, taken, [batch, height.outputs, width.outputs, channels]
        )

    def _columns(self, before, source, axis):
        """Concatenates the shifts of a tensor by the columns of the window."""
        if axis.stride == 1:
            return self._side_by_side(before, source, axis.shifts(WIDTH))
        batch, height, _, channels = self._sizes(source)
        split = [batch, height, axis.steps, axis.stride * channels]
        source = self._reshaped(before, source, split)
        return self._side_by_side(
            before, source, axis.strided_shifts(WIDTH, CHANNELS, channels)
        )

    def _rows(self, before, source, axis):
        """Concatenates the shifts of a tensor by the rows of the window."""
        if axis.stride == 1:
            return self._side_by_side(before, source, axis.shifts(HEIGHT))
        batch, _, width, channels = self._sizes(source)
        split = [batch, axis.steps, axis.stride, width, channels]
        source = self._reshaped(before, source, split)
        source = self._side_by_side(before, source, axis.strided_shifts(HEIGHT, 2, 1))
        joined = [batch, axis.outputs, width, channels * axis.window]
        return self._reshaped(before, source, joined)

    def _side_by_side(self, before, source, all_cuts):
        """Concatenates slices of a tensor along the channels."""
        slices = [self._slice(before, source, cuts) for cuts in all_cuts]
        if len(slices) == 1:
            return slices[0]
        *sizes, channels = self._sizes(slices[0])
        options = (
            schema.BuiltinOptions.ConcatenationOptions,
            schema.ConcatenationOptionsT(axis=len(sizes)),
        )
        shape = [*sizes, channels * len(slices)]
        return self._append(before, "CONCATENATION", slices, shape, options)

    def _slice(self, before, source, cuts):
        """Leaves out places at both ends of some axes of a tensor."""
        cuts = {axis: cut for axis, cut in cuts.items() if any(cut)}
        if not cuts:
            return source
        sizes = self._sizes(source)
        axes = range(len(sizes))
        first = [cuts.get(axis, (0, 0))[0] for axis in axes]
        end = [-cuts.get(axis, (0, 0))[1] for axis in axes]
        # A bit of a mask is set where an axis is taken from its start, or to its end.
        begin_mask = sum(1 << axis for axis in axes if not first[axis])
        end_mask = sum(1 << axis for axis in axes if not end[axis])
        inputs = [source, *map(self._ints, (first, end, [1] * len(sizes)))]
        options = (
            schema.BuiltinOptions.StridedSliceOptions,
            schema.StridedSliceOptionsT(beginMask=begin_mask, endMask=end_mask),
        )
        shape = [
            size if size < 0 else size - first[axis] + end[axis]
            for axis, size in enumerate(sizes)
        ]
        return self._append(before, "STRIDED_SLICE", inputs, shape, options)

    def _reshaped(self, before, source, shape):
        inputs = [source, self._ints(shape)]
        options = schema.BuiltinOptions.ReshapeOptions, schema.ReshapeOptionsT(shape)
        return self._append(before, "RESHAPE", inputs, shape, options)

    def _append(self, before, name, inputs, shape, options):
        """Appends an operator, and returns the index of its result.

        Args:
            before: operators to append to.
            name: name of the operator.
            inputs: indices of its inputs. The result has the type of the first.
            shape: shape of the result, with -1 for a free size.
            options: `(member of schema.BuiltinOptions, options)`.
        """
        like = self._graph.tensors[inputs[0]]
        tensor = schema.TensorT(
            shape=np.maximum(np.array(shape, np.int32), 1),
            shapeSignature=np.array(shape, np.int32) if -1 in shape else None,
            hasRank=True,
            type=like.type,
            buffer=0,
            quantization=like.quantization,
        )
        target = flatbuffer.append_tensor(self._graph, tensor)
        # The second version of each of these operators takes int8.
        version = 1 if name == "RESHAPE" else 2
        operator = flatbuffer.operator(self._model, name, inputs[0], target, version)
        operator.inputs = np.array(inputs, np.int32)
        operator.builtinOptionsType, operator.builtinOptions = options
        before.append(operator)
        return target

    def _sizes(self, index: int) -> list[int]:
        return free_sizes(self._graph.tensors[index])

    def _ints(self, values: Sequence) -> int:
        """Returns the index of a constant int32 tensor, one for equal values."""
        array = np.array(values, "<i4")
        key = array.shape + tuple(array.ravel().tolist())
        if key not in self._integers:
            tensor = schema.TensorT(
                shape=np.array(array.shape, np.int32),
                hasRank=True,
                type=schema.TensorType.INT32,
                buffer=flatbuffer.append_buffer(
                    self._model, array.reshape(-1).view(np.uint8)
                ),
            )
            self._integers[key] = flatbuffer.append_tensor(self._graph, tensor)
        return self._integers[key]


class Axis:
    """Places of the window along one axis of a convolution's input.

    Attributes:
        window, stride, dilation: ints.
        pads: (before, after). Zeros that are added; after them the size is a multiple
            of the stride.
        steps: int. Size after the pads, in strides. 0 if the size is free.
        outputs: int. Size of the output. 0 if the size is free.

    Args:
        size: int. Size of the axis, -1 if it is free, which needs a stride of 1.
        window, stride, dilation: ints.
        same: bool. Whether the padding is SAME; VALID otherwise.
    """

    def __init__(
        self, size: int, window: int, stride: int, dilation: int, same: bool
    ) -> None:
        self.window, self.stride, self.dilation = window, stride, dilation
        self._reach = (window - 1) * dilation
        if size < 0:
            total = self._reach if same else 0
            self.steps = self.outputs = 0
            self.pads = total // 2, total - total // 2
            return
        self.outputs = -(-(size if same else size - self._reach) // stride)
        total = (self.outputs - 1) * stride + self._reach + 1 - size
        total = max(0, total) if same else 0
        least = max(size + total, stride * (self._reach // stride + self.outputs))
        self.steps = -(-least // stride)
        first = total // 2
        self.pads = first, self.steps * stride - size - first

    def shifts(self, axis: int) -> list[Cuts]:
        """Returns the cuts of each place of the window, with a stride of 1."""
        places = range(0, self._reach + 1, self.dilation)
        return [{axis: (place, self._reach - place)} for place in places]

    def strided_shifts(self, axis: int, inner: int, unit: int) -> list[Cuts]:
        """Returns the cuts of each place where strides are an axis of their own.

        Args:
            axis: int. Axis of the strides.
            inner: int. Axis of the places within a stride.
            unit: int. Elements of a place on that axis.
        """
        found: list[Cuts] = []
        for place in range(0, self._reach + 1, self.dilation):
            step, rest = divmod(place, self.stride)
            left = self.steps - self.outputs - step
            after = (self.stride - 1 - rest) * unit
            found.append({axis: (step, left), inner: (rest * unit, after)})
        return found
