"""What a scheme will do to a model, layer by layer, before anything is done."""

import dataclasses
import re

import keras
from rich.table import Table

from tfcompress import layers
from tfcompress.reporting.tables import render
from tfcompress.schemes.config import KeepFloat, QuantizeConfig
from tfcompress.schemes.scheme import Place
from tfcompress.surgery.checks import check_compressible
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.signs import may_be_negative

QUANTIZED = {
    keras.layers.Conv1D: layers.QuantConv1D,
    keras.layers.Conv2D: layers.QuantConv2D,
    keras.layers.Dense: layers.QuantDense,
    keras.layers.DepthwiseConv2D: layers.QuantDepthwiseConv2D,
}


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One layer: `config` is a QuantizeConfig, or None with the `reason` why."""

    name: str
    layer: keras.layers.Layer
    config: QuantizeConfig | None
    reason: str = ""
    note: str = ""

    @property
    def treatment(self):
        if self.config is None:
            text = f"left alone: {self.reason}"
        else:
            text = _describe(self.config.kernel_quantizer)
            if self.config.input_quantizer is not None:
                text += f", input {_describe(self.config.input_quantizer)}"
        return f"{text}; {self.note}" if self.note else text


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of all layers in running order; print it to read it."""

    rows: tuple[PlanRow, ...]

    def treated(self):
        """The rows of the layers that will be compressed."""
        return [row for row in self.rows if row.config is not None]

    def __str__(self):
        table = Table("layer", "type", "weights", "treatment")
        for row in self.rows:
            table.add_row(
                row.name,
                type(row.layer).__name__,
                f"{row.layer.count_params():,}",
                row.treatment,
            )
        return render(table)


def plan(model, scheme):
    """Shows what `compress(model, scheme)` would do; changes nothing.

    Args:
        model: a built Functional or Sequential Keras 3 model.
        scheme: a `tfcompress.schemes.Scheme`.

    Returns:
        A `Plan` with every layer's treatment or the reason it is left alone.

    Raises:
        TypeError, ValueError: if the model cannot be compressed (see
            `tfcompress.compress`), an override matches no layer, or the scheme's
            budget cannot be met.
    """
    check_compressible(model)
    graph = Graph(model)
    named = graph.layers()
    _check_overrides(scheme.overrides, named)
    first = _at_the_border(graph.calls)
    last = _at_the_border(graph.calls[::-1], reverse=True)
    negative = may_be_negative(graph)
    rows = []
    for name, layer in named.items():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        choice = _override(scheme.overrides, name)
        reason = _why_not(layer)
        if reason is not None:
            if isinstance(choice, QuantizeConfig):
                raise ValueError(
                    f"The override for layer '{name}' asks for quantization. "
                    f"Received a layer of type {type(layer).__name__}: {reason}."
                )
            choice = KeepFloat(reason)
        elif choice is None:
            signed = any(negative(x) for c in graph.calls_of(layer) for x in c.inputs)
            place = Place(id(layer) in first, id(layer) in last, signed)
            choice = scheme.config_for(layer, place)
        if isinstance(choice, KeepFloat):
            rows.append(PlanRow(name, layer, None, choice.reason))
        else:
            rows.append(PlanRow(name, layer, choice))
    result = Plan(tuple(rows))
    if result.treated():
        scheme.check(model, result)
    notes = scheme.notes(model, result)
    return Plan(
        tuple(
            dataclasses.replace(row, note=notes.get(row.name, ""))
            for row in result.rows
        )
    )


def _why_not(layer):
    """Why a layer cannot be quantized, or None if it can."""
    if isinstance(layer, (layers.QuantizedKernel, layers.PackedKernel)):
        return "is compressed already"
    if type(layer) in QUANTIZED:
        if getattr(layer, "lora_enabled", False):
            return "has LoRA enabled"
        if getattr(layer, "quantization_mode", None):
            return f"is quantized by Keras ({layer.quantization_mode})"
        return None
    if not getattr(layer, "weights", None):
        return "has no weights"
    if isinstance(layer, keras.layers.BatchNormalization):
        return "batch normalization, folded when finalized where possible"
    kinds = ", ".join(kind.__name__ for kind in QUANTIZED)
    return f"only layers of type {kinds} are compressed"


def _at_the_border(calls, reverse=False):
    """ids of the eligible layers that no eligible layer comes before.

    With `reverse` and the calls in reversed order: that none comes after.
    """
    behind, border, inner = set(), set(), set()
    for call in calls:
        sources, targets = call.inputs, call.outputs
        if reverse:
            sources, targets = targets, sources
        passed = any(id(tensor) in behind for tensor in sources)
        if _why_not(call.operation) is None:
            (inner if passed else border).add(id(call.operation))
            passed = True
        if passed:
            behind.update(id(tensor) for tensor in targets)
    return border - inner


def _override(overrides, name):
    for pattern, config in overrides.items():
        if re.fullmatch(pattern, name):
            return config
    return None


def _check_overrides(overrides, names):
    for pattern in overrides:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ValueError(
                "Each override must match the whole name of at least one layer. "
                f"Received: {pattern!r}; the layers are {', '.join(names)}."
            )


def _describe(quantizer):
    bits = "/".join(map(str, quantizer.candidates))
    return f"{type(quantizer).__name__} {bits} bit"
