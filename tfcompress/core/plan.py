"""What a scheme will do to a model, layer by layer, before anything is done."""

import dataclasses
import re

import keras
from rich.table import Table

from tfcompress.core.checks import check_compressible
from tfcompress.core.config import KeepFloat
from tfcompress.core.scheme import Place
from tfcompress.graph.graph import Graph
from tfcompress.graph.separable import separable_layers, split_separable
from tfcompress.graph.signs import may_be_negative
from tfcompress.reporting.tables import render


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One layer: `config` is its treatment, or None with the `reason` why."""

    name: str
    layer: keras.layers.Layer
    config: object | None
    reason: str = ""
    note: str = ""

    @property
    def treatment(self):
        left_alone = f"left alone: {self.reason}"
        text = left_alone if self.config is None else str(self.config)
        return f"{text}; {self.note}" if self.note else text


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of all layers in running order; print it to read it.

    `model` is the one that the layers are of: the user's, or what it was split into.
    """

    model: keras.Model
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

    A separable convolution is shown as the depthwise and the pointwise layer that it
    becomes; an override for its name holds for both.

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
    separable_of = separable_layers(model)
    model = split_separable(model)
    graph = Graph(model)
    named = graph.layers()
    _check_overrides(scheme.overrides, named)
    why_not = scheme.treatment.why_not
    first = _at_the_border(graph.calls, why_not)
    last = _at_the_border(graph.calls[::-1], why_not, reverse=True)
    negative = may_be_negative(graph)
    rows = []
    for name, layer in named.items():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        choice = _override(scheme.overrides, name)
        reason = why_not(layer)
        if reason is not None:
            if isinstance(choice, scheme.treatment):
                raise ValueError(
                    f"The override for layer '{name}' asks for its compression. "
                    f"Received a layer of type {type(layer).__name__}: {reason}."
                )
            choice = KeepFloat(reason)
        elif choice is None and name in separable_of:
            choice = _override(scheme.overrides, separable_of[name])
        if choice is None:
            signed = any(negative(x) for c in graph.calls_of(layer) for x in c.inputs)
            place = Place(id(layer) in first, id(layer) in last, signed)
            choice = scheme.config_for(layer, place)
        if isinstance(choice, KeepFloat):
            rows.append(PlanRow(name, layer, None, choice.reason))
        else:
            rows.append(PlanRow(name, layer, choice))
    result = Plan(model, tuple(rows))
    if result.treated():
        scheme.check(model, result)
    notes = scheme.notes(model, result)
    rows = (dataclasses.replace(r, note=notes.get(r.name, "")) for r in result.rows)
    return Plan(model, tuple(rows))


def _at_the_border(calls, why_not, reverse=False):
    """ids of the eligible layers that no eligible layer comes before.

    With `reverse` and the calls in reversed order: that none comes after.
    """
    behind, border, inner = set(), set(), set()
    for call in calls:
        sources, targets = call.inputs, call.outputs
        if reverse:
            sources, targets = targets, sources
        passed = any(id(tensor) in behind for tensor in sources)
        if why_not(call.operation) is None:
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
