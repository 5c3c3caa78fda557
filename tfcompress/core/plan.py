"""Plan of a compression: the treatment of every layer, before it happens."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from rich.table import Table

from tfcompress.arguments import most_similar
from tfcompress.core.checks import check_compressible
from tfcompress.core.config import KeepFloat, QuantizeConfig, as_taken
from tfcompress.core.scheme import Place, Scheme
from tfcompress.core.user_class import user_class_of
from tfcompress.graph.frozen import frozen_layers, unfreeze_layers
from tfcompress.graph.graph import Call, Graph
from tfcompress.graph.parts.replacement import Replacement, replace_by_parts
from tfcompress.graph.parts.subclassed_model import with_graph
from tfcompress.graph.signs import may_be_negative
from tfcompress.layers.registry import forms_of
from tfcompress.layers.tensors.sources import Constant
from tfcompress.progress_bar import announced
from tfcompress.reporting.tables import render

FROZEN = "is frozen (trainable=False)"
UNUSED = "no output of the model depends on it"
OF_CONSTANTS = "is called on constants alone, and a file has its outputs instead"
ROUNDED = "kernel rounded to 8 bits"
FROZEN_HINT = "Frozen layers are left alone; unfreeze=True compresses and trains them."
# Share of the weights from which on layers that are left alone are worth a warning.
LARGE_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """Plan of one layer.

    Attributes:
        name: str. Name of the layer; "outer/inner" in nested models.
        layer: `keras.layers.Layer`. Layer of the plan's model.
        config: `Treatment`, or None if the layer is left alone.
        reason: str. Reason why it is left alone.
        note: str. Note of the scheme, or "".
        unfrozen: bool. Whether the user's layer is frozen, and the student's is not.
        has_form: bool. False if the layer is left alone for lack of a form.
    """

    name: str
    layer: keras.layers.Layer
    config: Any
    reason: str = ""
    note: str = ""
    unfrozen: bool = False
    has_form: bool = True

    @property
    def treatment(self) -> str:
        """Text of the treatment, or the reason why there is none."""
        left_alone = f"left alone: {self.reason}"
        text = left_alone if self.config is None else str(self.config)
        text += ", unfrozen" * self.unfrozen
        return f"{text}; {self.note}" if self.note else text


@dataclasses.dataclass(frozen=True)
class Plan:
    """Treatments of all layers of a model; `str(plan)` is a table.

    Attributes:
        model: `keras.Model`. The user's model, or a copy of it in which some layers are
            replaced by their parts, or unfrozen.
        rows: tuple of `PlanRow`. Layers in running order.
        graph: `tfcompress.graph.Graph` of the model.
    """

    model: keras.Model
    rows: tuple[PlanRow, ...]
    graph: Graph = dataclasses.field(repr=False, compare=False)

    def treated(self) -> list[PlanRow]:
        """Returns the rows of the layers that are compressed."""
        return [row for row in self.rows if row.config is not None]

    def __str__(self) -> str:
        table = Table("layer", "type", "weights", "treatment")
        for row in self.rows:
            table.add_row(
                row.name,
                type(row.layer).__name__,
                f"{row.layer.count_params():,}",
                row.treatment,
            )
        return render(table)


def plan(model: keras.Model, scheme: Scheme, unfreeze: bool = False) -> Plan:
    """Returns the treatments of `compress(model, scheme)`, without compressing.

    A layer that is replaced by its parts has a row for each of them. A separable
    convolution becomes a depthwise and a pointwise layer. A layer with sublayers
    becomes a nested model of these. An override for its name holds for all parts.

    Args:
        model: built Keras 3 model, see `tfcompress.compress`.
        scheme: scheme of compression, e.g. `tfcompress.PrunedTernary()`.
        unfreeze: bool. Whether frozen layers are compressed and trained, see
            `tfcompress.compress`.

    Returns:
        A `Plan` with every layer's treatment, or the reason why it is left alone.

    Raises:
        TypeError: if `model` is no Keras 3 model, or `scheme` no scheme.
        ValueError: if the model cannot be compressed (see `tfcompress.compress`), an
            override matches no layer, or the scheme's budget cannot be met.
    """
    model = with_graph(model)
    check_compressible(model)
    return plan_of_checked(model, scheme, unfreeze)


def plan_of_checked(model: keras.Model, scheme: Scheme, unfreeze: bool) -> Plan:
    """Returns `plan` of a model that `check_compressible` accepts."""
    if not isinstance(scheme, Scheme):
        raise TypeError(
            "A scheme is expected, such as tfc.PrunedTernary(sparsity=0.9). Received: "
            f"{scheme!r}."
        )
    user_class_of(model)
    with announced(f"Plan of '{model.name}'"):
        return _planned(model, scheme, unfreeze)


def _planned(model, scheme, unfreeze):
    replaced = replace_by_parts(model)
    graph = Graph(replaced.model)
    named = graph.layers()
    why_not = scheme.treatment.why_not
    is_frozen = _frozen(model, replaced, graph)
    stays_frozen, used = set() if unfreeze else is_frozen, graph.used()
    on_constants = _on_constants(graph)
    reasons = {
        name: UNUSED
        if id(layer) not in used
        else OF_CONSTANTS
        if id(layer) in on_constants
        else FROZEN
        if (reason := why_not(layer)) is None and name in stays_frozen
        else replaced.reasons.get(name, reason)
        for name, layer in named.items()
    }
    _check_overrides(scheme, reasons, replaced)
    model = replaced.model
    first = _border_layers(graph.calls, why_not) - _look_ups(named.values())
    last = _border_layers(graph.calls[::-1], why_not, reverse=True)
    negative = may_be_negative(graph)
    rows = []
    for name, layer in named.items():
        if isinstance(layer, keras.layers.InputLayer):
            continue
        choice = _requested(scheme.overrides, replaced.names(name), reasons[name])
        if choice is None:
            signed = any(negative(x) for c in graph.calls_of(layer) for x in c.inputs)
            place = Place(id(layer) in first, id(layer) in last, signed)
            choice = scheme.config_for(layer, place)
        if isinstance(choice, KeepFloat):
            why = choice.reason
            has_form = why == FROZEN or why != reasons[name]
            rows.append(PlanRow(name, layer, None, why, has_form=has_form))
        else:
            choice = as_taken(choice, layer)
            rows.append(PlanRow(name, layer, choice, unfrozen=name in is_frozen))
    return _checked(scheme, _unfrozen(Plan(model, tuple(rows), graph)))


def _on_constants(graph):
    """Ids of the layers that are called on constants alone."""
    made = {
        id(x)
        for call in graph.calls
        if isinstance(call.operation, Constant)
        for x in call.outputs
    }
    varying = {
        id(call.operation)
        for call in graph.calls
        if any(id(x) not in made for x in call.inputs)
    }
    called = {id(call.operation) for call in graph.calls if call.inputs}
    return called - varying


def _frozen(model, replaced, graph):
    """Names of the layers, parts included, that do not train in the user's model."""
    frozen = frozen_layers(replaced.model, graph)
    if replaced.model is not model:
        frozen |= frozen_layers(model, Graph(model))
    return {x for x in graph.layers() if frozen.intersection(replaced.names(x))}


def _requested(overrides, names, reason):
    """Treatment that overrides or the layer itself ask for, or None.

    Args:
        overrides: see `Scheme`.
        names: names of the layer and of those that it is a part of.
        reason: reason why the layer cannot be treated, or None.
    """
    choice = next(filter(None, (_override(overrides, name) for name in names)), None)
    if reason is None or isinstance(choice, KeepFloat):
        return choice
    return KeepFloat(reason)


def _unfrozen(plan):
    """The plan, of a copy of its model if layers are to be unfrozen."""
    treated = [row.layer for row in plan.rows if row.unfrozen]
    copy = unfreeze_layers(plan.model, treated)
    if copy is plan.model:
        return plan
    graph = Graph(copy)
    named = graph.layers()
    rows = [dataclasses.replace(row, layer=named[row.name]) for row in plan.rows]
    return Plan(copy, tuple(rows), graph)


def _checked(scheme, plan):
    """The plan, with the scheme's notes.

    Raises:
        ValueError: if the scheme's budget cannot be met.
    """
    if plan.treated():
        try:
            scheme.check(plan.model, plan)
        except ValueError as error:
            if any(row.reason == FROZEN for row in plan.rows):
                raise ValueError(f"{error} {FROZEN_HINT}") from error
            raise
    notes = scheme.notes(plan.model, plan)
    if scheme.packs_all_kernels():
        notes = {row.name: ROUNDED for row in rounded_rows(plan)} | notes
    rows = (dataclasses.replace(x, note=notes.get(x.name, "")) for x in plan.rows)
    return dataclasses.replace(plan, rows=tuple(rows))


def rounded_rows(plan: Plan) -> list[PlanRow]:
    """Returns the rows of layers left alone whose kernels an int8 file rounds.

    They are those of a scheme that `packs_all_kernels`.
    """
    return [
        row
        for row in plan.rows
        if row.config is None
        and row.reason not in (UNUSED, OF_CONSTANTS)
        and QuantizeConfig.why_not(row.layer) is None
        and forms_of(row.layer).is_linear
    ]


def warn_of_left_alone(plan: Plan) -> None:
    """Warns if a large share of a model's weights is left alone, and nobody asked.

    Args:
        plan: plan of the model.
    """
    frozen = [row.layer for row in plan.rows if row.reason == FROZEN]
    share = _share(plan, frozen)
    if share >= LARGE_SHARE:
        warnings.warn(
            f"{len(frozen)} layers with {share:.0%} of the weights are frozen and left "
            "alone. unfreeze=True compresses and trains them.",
            stacklevel=4,
        )
    unknown = [row for row in plan.rows if not row.has_form]
    share = _share(plan, [row.layer for row in unknown])
    if share >= LARGE_SHARE:
        largest = max(unknown, key=lambda row: row.layer.count_params())
        warnings.warn(
            f"{share:.0%} of the weights are left alone. Most of them are in "
            f"'{largest.layer.name}', of type {type(largest.layer).__name__}: "
            f"{largest.reason}. `tfcompress.plan` lists all.",
            stacklevel=4,
        )


def _share(plan, layers):
    return sum(layer.count_params() for layer in layers) / plan.model.count_params()


def _border_layers(
    calls: Sequence[Call],
    why_not: Callable[[Any], str | None],
    reverse: bool = False,
) -> set[int]:
    """Returns ids of the eligible layers that no eligible layer comes before.

    With `reverse`, and the calls in reversed order, no eligible layer comes after.
    """
    passed_tensors: set[int] = set()
    border: set[int] = set()
    inner: set[int] = set()
    for call in calls:
        sources, targets = call.inputs, call.outputs
        if reverse:
            sources, targets = targets, sources
        passed = any(id(tensor) in passed_tensors for tensor in sources)
        if why_not(call.operation) is None:
            (inner if passed else border).add(id(call.operation))
            passed = True
        if passed:
            passed_tensors.update(id(tensor) for tensor in targets)
    return border - inner


def _look_ups(layers):
    """Ids of the embeddings, which read no data that few bits could spoil."""
    kind = keras.layers.Embedding
    return {id(layer) for layer in layers if isinstance(layer, kind)}


def _override(overrides: Mapping[str, Any], name: str) -> Any:
    for pattern, config in overrides.items():
        if re.fullmatch(pattern, name):
            return config
    return None


def _check_overrides(
    scheme: Scheme, reasons: Mapping[str, str | None], replaced: Replacement
) -> None:
    """Raises an error for an override that has no effect.

    Args:
        scheme: scheme with the overrides.
        reasons: `{layer name: reason why it cannot be compressed, or None}`.
        replaced: result of `replace_by_parts`, with these layers.
    """
    for pattern, config in scheme.overrides.items():
        found = {
            name: why
            for name, why in reasons.items()
            if any(re.fullmatch(pattern, x) for x in replaced.names(name))
        }
        if not found:
            raise ValueError(
                "Each override must match the whole name of at least one layer. "
                f"Received: {pattern!r}; of {len(reasons)} layers the most similar are "
                f"{most_similar(pattern, reasons)}."
            )
        if isinstance(config, scheme.treatment) and None not in found.values():
            name, reason = next(iter(found.items()))
            hint = " Pass unfreeze=True to compress and train it."
            raise ValueError(
                f"The override {pattern!r} asks for compression of a layer that cannot "
                f"be compressed. Received: '{name}': {reason}."
                + hint
                * (reason == FROZEN)
            )
