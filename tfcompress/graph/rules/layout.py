"""Rules of operations that move, repeat, pad or select channels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.trace import Count, Space, Trace
from tfcompress.layers.kernel import channel_axis
from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps


def flatten(trace: Trace, call: Call) -> None:
    source = trace.space(call.inputs[0])
    sizes = call.inputs[0].shape
    if None in sizes[1:] or len(sizes) < 2:
        trace.freeze_call(call)
        return
    order = list(range(1, len(sizes)))
    if channel_axis(call.operation) == 1:  # the layer moves the channels to the end
        order = [*order[1:], 1]
    place = order.index(source.axis)
    before, after = order[:place], order[place + 1 :]
    inner = math.prod(sizes[axis] for axis in after)
    _put_repeated(trace, call, source, inner, math.prod(sizes[axis] for axis in before))


def reshape_layer(trace: Trace, call: Call) -> None:
    shape = call.operation.target_shape
    _reshape(trace, call, "target_shape", shape, first_axis=1)


def reshape_operation(trace: Trace, call: Call) -> None:
    shape = call.operation.newshape
    if not isinstance(shape, (tuple, list)):
        trace.freeze_call(call)
        return
    _reshape(trace, call, "newshape", shape, first_axis=0)


def permute(trace: Trace, call: Call) -> None:
    _transpose(trace, call, (0, *call.operation.dims))


def transpose(trace: Trace, call: Call) -> None:
    ndim = len(call.inputs[0].shape)
    axes = call.operation.axes
    _transpose(trace, call, range(ndim)[::-1] if axes is None else axes)


def expand_dims(trace: Trace, call: Call) -> None:
    space, axis = trace.space(call.inputs[0]), call.operation.axis
    if not isinstance(axis, int):
        trace.freeze_call(call)
        return
    axis %= len(call.outputs[0].shape)
    moved = space.axis + (axis <= space.axis)
    trace.put(call, Space(moved, space.ids))


def drop_axes(trace: Trace, call: Call) -> None:
    """Rule of reductions and squeezing over other axes than that of the channels."""
    space, operation = trace.space(call.inputs[0]), call.operation
    axes = operation.axis
    axes = [axes] if isinstance(axes, int) else axes
    ndim = len(call.inputs[0].shape)
    # A reduction over all axes, or one with an initial value.
    if axes is None or getattr(operation, "initial", None) is not None:
        trace.freeze_call(call)
        return
    axes = [axis % ndim for axis in axes]
    if space.axis in axes:
        trace.freeze_call(call)
        return
    before = sum(axis < space.axis for axis in axes)
    moved = space.axis - (0 if getattr(operation, "keepdims", False) else before)
    trace.put(call, Space(moved, space.ids))


def pad(trace: Trace, call: Call) -> None:
    """Pads the channels' axis with new channels, which are always zero."""
    space, operation = trace.space(call.inputs[0]), call.operation
    ndim = len(call.inputs[0].shape)
    widths = [list(map(int, width)) for width in operation.pad_width]
    widths = widths * ndim if len(widths) == 1 else widths
    args, kwargs = call.arguments
    value = kwargs.get("constant_values", args[1] if len(args) > 1 else None)
    zeros = operation.mode == "constant" and (value is None or np.all(value == 0))
    before, after = (trace.new(width) for width in widths[space.axis])
    if (len(before) or len(after)) and not zeros:
        trace.freeze_call(call)
        return

    def changes(count: Count) -> dict[str, Any]:
        changed = [*widths]
        changed[space.axis] = [count(before), count(after)]
        return {"pad_width": changed}

    ids = np.concatenate([before, space.ids, after])
    trace.put(call, Space(space.axis, ids))
    trace.resize(call, "", space.ids, ids, {}, changes)


def split(trace: Trace, call: Call) -> None:
    operation = call.operation
    space = trace.space(call.inputs[0])
    if operation.axis % len(call.inputs[0].shape) != space.axis:
        for output in call.outputs:
            trace.put(call, space, output)
        return
    sections = operation.indices_or_sections
    if isinstance(sections, int):
        size = len(space.ids) // sections
        sections = [size * i for i in range(1, sections)]
    parts = np.split(space.ids, sections)
    for output, ids in zip(call.outputs, parts, strict=True):
        trace.put(call, Space(space.axis, ids), output)

    def changes(count: Count) -> dict[str, Any]:
        ends = tuple(count(space.ids[:section]) for section in sections)
        return {"indices_or_sections": ends}

    trace.resize(call, "", space.ids, space.ids, {}, changes)


def get_item(trace: Trace, call: Call) -> None:
    """Rule of `x[key]` with slices, with steps of one along the channels' axis."""
    space = trace.space(call.inputs[0])
    args, kwargs = call.arguments
    key = kwargs["key"] if "key" in kwargs else args[1]
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    plain = (int, slice, type(None), type(Ellipsis))
    if not all(isinstance(part, plain) for part in key):
        trace.freeze_call(call)
        return
    taken = sum(part is not None and part is not Ellipsis for part in key)
    rest = [slice(None)] * (len(call.inputs[0].shape) - taken)
    at = key.index(Ellipsis) if Ellipsis in key else len(key)
    key[at : at + 1] = rest
    # Index of the channels' axis in the key.
    (place,) = [
        i
        for i, part in enumerate(key)
        if part is not None
        and sum(other is not None for other in key[:i]) == space.axis
    ]
    start, stop, step = 0, 0, 0
    if isinstance(key[place], slice):
        start, stop, step = key[place].indices(len(space.ids))
    if step != 1:
        trace.freeze_call(call)
        return
    ids = space.ids[start:stop]
    axis = sum(not isinstance(part, int) for part in key[:place])

    def changes(count: Count) -> dict[str, Any]:
        first = count(space.ids[:start])
        changed = [*key]
        changed[place] = slice(first, first + count(ids))
        return {"key": tuple(changed)}

    trace.put(call, Space(axis, ids))
    trace.resize(call, "", space.ids, ids, {}, changes)


def merge_steps(trace: Trace, call: Call) -> None:
    _move_beside_steps(trace, call, -1)


def split_steps(trace: Trace, call: Call) -> None:
    _move_beside_steps(trace, call, 1)


LAYERS = {
    MergeSteps: merge_steps,
    SplitSteps: split_steps,
    layers.Flatten: flatten,
    layers.Permute: permute,
    layers.Reshape: reshape_layer,
}
OPERATIONS = {
    "expanddims": expand_dims,
    "getitem": get_item,
    "max": drop_axes,
    "mean": drop_axes,
    "min": drop_axes,
    "pad": pad,
    "reshape": reshape_operation,
    "split": split,
    "squeeze": drop_axes,
    "sum": drop_axes,
    "transpose": transpose,
}


def _move_beside_steps(trace: Trace, call: Call, moved: int) -> None:
    """Puts the same channels on a neighboring axis, unless they are the steps."""
    space = trace.space(call.inputs[0])
    if space.axis + moved < 1:
        trace.freeze_call(call)
    else:
        trace.put(call, Space(space.axis + moved, space.ids))


def _transpose(trace: Trace, call: Call, axes: Sequence[int]) -> None:
    space = trace.space(call.inputs[0])
    ndim = len(call.inputs[0].shape)
    moved = [axis % ndim for axis in axes].index(space.axis)
    trace.put(call, Space(moved, space.ids))


def _put_repeated(
    trace: Trace, call: Call, space: Space, inner: int, outer: int
) -> None:
    """Puts channels on the last axis, each `inner` times, all of them `outer` times."""
    ids = np.tile(np.repeat(space.ids, inner), outer)
    trace.put(call, Space(len(call.outputs[0].shape) - 1, ids))


def _reshape(
    trace: Trace, call: Call, argument: str, shape: Sequence, first_axis: int
) -> None:
    """Rule of a reshape that leaves the channels on one axis.

    Elements keep their order. The channels are therefore on the output's axis of the
    same stride, or they are repeated along its last axis.

    Args:
        argument: name of the operation's argument with the shape.
        shape: value of that argument.
        first_axis: axis of the output that `shape[0]` is the size of.
    """
    (source,), (output,) = call.inputs, call.outputs
    space = trace.space(source)
    if (
        None in source.shape[space.axis :]
        or len(source.shape) < 2
        or not all(isinstance(size, int) for size in shape)
    ):
        trace.freeze_call(call)
        return
    stride = math.prod(source.shape[space.axis + 1 :])
    axes = [
        axis
        for axis in range(1, len(output.shape))
        if output.shape[axis] == len(space.ids)
        and None not in output.shape[axis:]
        and math.prod(output.shape[axis + 1 :]) == stride
    ]
    last = output.shape[-1] or 0
    if axes:
        trace.put(call, Space(axes[-1], space.ids))
    elif len(output.shape) > 1 and last % (stride * len(space.ids)) == 0:
        outer = last // (stride * len(space.ids))
        _put_repeated(trace, call, space, stride, outer)
    else:
        trace.freeze_call(call)
        return
    made = trace.space(output)

    def changes(count: Count) -> dict[str, Any]:
        changed = list(shape)
        if changed[made.axis - first_axis] != -1:
            changed[made.axis - first_axis] = count(made.ids)
        return {argument: tuple(changed)}

    trace.resize(call, "", space.ids, made.ids, {}, changes)
