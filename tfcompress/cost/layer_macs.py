"""Multiply-accumulates of the layers of a graph."""

import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tfcompress.cost import arithmetic
from tfcompress.cost.formulas import has_formula, kernel_names, output_positions
from tfcompress.graph.graph import Call, Graph
from tfcompress.layers import PackedKernel, QuantizedKernel
from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps

# Reason why MACs are not counted.
NO_FORMULA = "no formula for its operations"


class LayerMacs(NamedTuple):
    """MACs of one layer, see `LayerCost`.

    Attributes:
        name: str. Name of the layer; inside nested models "outer/inner".
        macs: int. Multiply-accumulates per example, of all calls; None if they are not
            counted.
        open_size: bool. Whether that is because the model leaves the size of an output
            open.
    """

    name: str
    macs: int | None
    open_size: bool


def layer_macs(graph: Graph) -> list[LayerMacs]:
    """Returns the MACs of every layer that has kernels, in the order of first calls.

    They are those of `layer_costs`, which also measures the codes of all kernels.

    Args:
        graph: graph of a model in which layers of several kernels are replaced by their
            parts, such as a plan's or a student's.
    """
    samples = samples_of(graph)
    calls_of: dict[int, list[Call]] = {}
    for call in graph.calls:
        if kernel_names(call.operation):
            calls_of.setdefault(id(call.operation), []).append(call)
    rows = []
    for calls in calls_of.values():
        macs, why = macs_of(calls, _kernel_shapes(calls[0].operation), samples)
        is_open = bool(why) and has_formula(calls[0].operation)
        rows.append(LayerMacs(calls[0].name, macs, is_open))
    return rows


def _kernel_shapes(layer):
    if isinstance(layer, PackedKernel):
        return [tuple(layer.kernel_shape)]
    if isinstance(layer, QuantizedKernel):
        return [tuple(layer.latent_kernel.shape)]
    names = kernel_names(layer)
    return [tuple(operator.attrgetter(name)(layer).shape) for name in names]


def samples_of(graph: Graph) -> dict[int, int | None]:
    """Returns `{id(tensor): samples per example}`; steps may be such samples."""
    samples: dict[int, int | None] = {id(tensor): 1 for tensor in graph.inputs}
    for call in graph.calls:
        numbers = [samples[id(tensor)] for tensor in call.inputs]
        known = [number for number in numbers if number is not None]
        number = max(known, default=1) if known == numbers else None
        if isinstance(call.operation, MergeSteps):
            steps = call.inputs[0].shape[1]
            number = None if None in (number, steps) else number * steps
        elif isinstance(call.operation, SplitSteps):
            number = samples[id(call.inputs[1])]
        samples.update({id(tensor): number for tensor in call.outputs})
    return samples


def macs_of(
    calls: Sequence[Call],
    kernel_shapes: Sequence[tuple[int, ...]],
    samples: Mapping[int, int | None],
) -> tuple[int | None, str]:
    """Returns `(macs, "")` over all calls, or `(None, reason)`."""
    if not has_formula(calls[0].operation):
        return None, NO_FORMULA
    total = 0
    for call in calls:
        positions = (
            samples[id(call.inputs[0])],
            *output_positions(
                call.operation, call.inputs[0].shape, call.outputs[0].shape
            ),
        )
        if None in positions:
            sizes = positions[1:] if positions[0] == 1 else positions
            return None, f"the model leaves its output size {sizes} open"
        total += sum(
            arithmetic.kernel_macs(shape, positions) for shape in kernel_shapes
        )
    return total, ""
