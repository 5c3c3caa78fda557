"""Table of a model's costs."""

import keras
from rich.table import Table

from tfcompress.cost import InputShape, float32_cost, layer_costs, total_cost
from tfcompress.cost.input_shape import example_input_shape
from tfcompress.graph.parts.subclassed_model import with_graph
from tfcompress.reporting.tables import render


def summary(model: keras.Model, input_shape: InputShape | None = None) -> str:
    """Returns a table of the costs of each layer and of the model, as text.

    "bits" are bits of a weight, with those of its container in a file if that is
    larger. "act" are bits of the layer's input. Ratios compare with the same layers
    in float32. Bytes are those of weights, scales and biases; the file adds its graph.
    MACs and BOPs that are unknown are "-".

    Args:
        model: built model: plain, a student, or finalized; see `layer_costs`.
        input_shape: tuple of ints without the batch axis. Size at which a model of
            free input sizes is counted, see `tfcompress.cost.layer_costs`. None is that
            of a student's scheme, if it has one.

    Returns:
        A string of lines no wider than 120 characters.

    Raises:
        ValueError: if the model is not built, is subclassed and cannot be traced, or
            does not take inputs of `input_shape`.
    """
    model = with_graph(model)
    costs = layer_costs(model, input_shape)
    total = total_cost(costs)
    parts = [render(_layer_table(costs, total)), render(_total_table(total))]
    parts += [
        f" {cost.name} ({cost.type}) is not in the MACs and BOPs: {cost.not_counted}."
        for cost in total.not_counted
        if not cost.open_size
    ]
    open_sizes = sum(cost.open_size for cost in costs)
    if open_sizes:
        parts.append(
            f" MACs and BOPs are unknown: the model leaves the output sizes of "
            f"{open_sizes} layers open. summary(model, input_shape="
            f"{example_input_shape(model)}) counts them at a size."
        )
    return "\n".join(parts)


def _layer_table(costs, total):
    table = Table(show_footer=True)
    table.add_column("layer", "total", overflow="fold")
    table.add_column("type", overflow="fold")
    table.add_column("kernel", no_wrap=True)
    for title, footer in (
        ("bits", ""),
        ("act", ""),
        ("zeros", ""),
        ("params", _integer(total.params)),
        ("MACs", _integer(total.macs, "-")),
        ("bytes", _integer(total.bytes)),
    ):
        table.add_column(title, footer, justify="right", no_wrap=True)
    for cost in costs:
        table.add_row(
            cost.name,
            cost.type,
            " x ".join(map(str, cost.kernel_shape or ())),
            _bits(cost),
            _integer(cost.activation_bits),
            "" if cost.sparsity is None else f"{cost.sparsity:.1%}",
            _integer(cost.params),
            _integer(cost.macs, "-"),
            _integer(cost.bytes),
        )
    return table


def _total_table(total):
    table = Table("total")
    for title in ("this model", "in float32", "ratio"):
        table.add_column(title, justify="right")
    reference = float32_cost(total)
    for title, name in (
        ("BOPs", "bops"),
        ("bytes", "bytes"),
        ("bytes, entropy bound", "entropy_bytes"),
        ("value bits, kernels only", "value_bits"),
    ):
        value, before = getattr(total, name), getattr(reference, name)
        ratio = f"{before / value:.2f}x" if value else ""
        table.add_row(title, _integer(value, "-"), _integer(before, "-"), ratio)
    return table


def _bits(cost):
    if cost.weight_bits == cost.container_bits:
        return _integer(cost.weight_bits)
    return f"{cost.weight_bits} in {cost.container_bits}"


def _integer(value, unknown=""):
    return unknown if value is None else f"{value:,}"
