"""`report.json`: settings, costs and results of a recipe."""

import dataclasses
import json
import math
import numbers
import os
import pathlib
from typing import Any

import keras

from tfcompress.arguments import is_number
from tfcompress.cost import ModelCost, layer_costs, total_cost


def _is_count(value):
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return integral and value >= 0


def _is_number(value):
    return is_number(value) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class _OrNone:
    schema: object


# Description of a valid value, and its test.
_TEXT = ("a string, not empty", lambda value: isinstance(value, str) and value)
_COUNT = ("an integer, 0 or more", _is_count)
_NUMBER = ("a finite number", _is_number)
_FRACTION = (
    "a fraction from 0 to 1",
    lambda value: _is_number(value) and 0 <= value <= 1,
)

_LAYER = {
    "name": _TEXT,
    "type": _TEXT,
    "weight_bits": _OrNone(_COUNT),
    "activation_bits": _OrNone(_COUNT),
    "container_bits": _OrNone(_COUNT),
    "sparsity": _OrNone(_FRACTION),
    "rank": _OrNone(_COUNT),
    "channels": _OrNone(_COUNT),
    "macs": _OrNone(_COUNT),
    "bytes": _COUNT,
}
_REPORT = {
    "recipe": _TEXT,
    "scheme": _TEXT,
    "model": _TEXT,
    "dataset": _TEXT,
    "seed": _COUNT,
    "epochs": _COUNT,
    "keras_backend": _TEXT,
    "machine": _TEXT,
    "wall_seconds": _NUMBER,
    "accuracy": dict.fromkeys(("float", "compressed", "litert"), _FRACTION),
    "size": dict.fromkeys(
        (
            "float_tflite_bytes",
            "tflite_bytes",
            "tflite_xz_bytes",
            "keras_bytes",
            "entropy_bytes",
            "value_bits",
        ),
        _COUNT,
    ),
    "cost": {
        **dict.fromkeys(("params", "float_params"), _COUNT),
        # None where the model leaves sizes open.
        **dict.fromkeys(("macs", "bops", "float_macs", "float_bops"), _OrNone(_COUNT)),
    },
    "budget": _OrNone({"kind": _TEXT, "requested": _NUMBER, "achieved": _NUMBER}),
    "agreement": {"samples": _COUNT, "top1": _FRACTION, "max_abs_diff": _NUMBER},
    "latency_ms": _OrNone(
        {"float": _NUMBER, "compressed": _NUMBER, "threads": _COUNT, "runs": _COUNT}
    ),
    "memory": _OrNone(dict.fromkeys(("float_arena_bytes", "arena_bytes"), _COUNT)),
    "layers": [_LAYER],
}


def build_report(
    *,
    recipe: str,
    scheme: str,
    model: str,
    dataset: str,
    seed: int,
    epochs: int,
    machine: str,
    wall_seconds: float,
    accuracy: dict[str, float],
    export_report: dict[str, Any],
    float_model: keras.Model,
    tiny: keras.Model,
    keras_path: str | os.PathLike,
    budget: dict[str, Any] | None = None,
    latency_ms: dict[str, Any] | None = None,
    memory: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Returns the report of a recipe, not validated yet.

    Args:
        recipe, scheme, model, dataset: str. Names.
        seed, epochs: int. Seed of the recipe, and epochs of the compressed model.
        machine: str. Kind of the processors that trained.
        wall_seconds: float. Duration of the trainings.
        accuracy: {"float", "compressed", "litert"}. Fractions of the test set.
        export_report: the report of a `tfcompress.export` with `verify`.
        float_model: the model before compression.
        tiny: the finalized model.
        keras_path: path of the file with `tiny`.
        budget: {"kind", "requested"} or None. Kinds: "bops", "macs", "value_bits",
            and "bytes" and "xz_bytes" of the file.
        latency_ms: {"float", "compressed", "threads", "runs"} or None. Milliseconds.
        memory: {"float_arena_bytes", "arena_bytes"} or None; `litert.peak_memory`.
    """
    costs = layer_costs(tiny)
    total = total_cost(costs)
    return {
        "recipe": recipe,
        "scheme": scheme,
        "model": model,
        "dataset": dataset,
        "seed": seed,
        "epochs": epochs,
        "keras_backend": keras.backend.backend(),
        "machine": machine,
        "wall_seconds": wall_seconds,
        "accuracy": accuracy,
        "size": {
            **_file_sizes(export_report["size"]),
            "keras_bytes": pathlib.Path(keras_path).stat().st_size,
            "entropy_bytes": total.entropy_bytes,
            "value_bits": total.value_bits,
        },
        "cost": _costs(total, total_cost(layer_costs(float_model))),
        "budget": budget and _with_achieved(budget, total, export_report["size"]),
        "agreement": export_report["agreement"],
        "latency_ms": latency_ms,
        "memory": memory,
        "layers": [{key: getattr(cost, key) for key in _LAYER} for cost in costs],
    }


def _costs(total: ModelCost, before: ModelCost) -> dict[str, int | None]:
    return {
        "params": total.params,
        "macs": total.macs,
        "bops": total.bops,
        "float_params": before.params,
        "float_macs": before.macs,
        "float_bops": before.bops,
    }


def _file_sizes(size: dict[str, int]) -> dict[str, int]:
    """Sizes of files; the arena is under "memory", beside the float file's."""
    return {name: value for name, value in size.items() if name != "arena_bytes"}


def _with_achieved(
    budget: dict[str, Any], total: ModelCost, file_size: dict[str, int]
) -> dict[str, Any]:
    achieved = {
        "bops": total.bops,
        "macs": total.macs,
        "bytes": file_size["tflite_bytes"],
        "xz_bytes": file_size["tflite_xz_bytes"],
        "value_bits": total.value_bits,
    }
    return {**budget, "achieved": achieved[budget["kind"]]}


def write_report(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Validates a report and writes it as JSON, whole or not at all.

    Args:
        report: the report, as `build_report` returns it.
        path: path of the file; its folder must exist.

    Raises:
        ValueError: if a key is missing or unknown, or a value is of the wrong
            kind, NaN or infinite. Nothing is written then.
        OSError: if the file cannot be written.
    """
    validate_report(report)
    text = json.dumps(report, indent=2, default=lambda number: number.item()) + "\n"
    file = pathlib.Path(path)
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def validate_report(report: dict[str, Any]) -> None:
    """Raises ValueError, with the place, unless `report` is a valid report."""
    _check(report, _REPORT, "report")


def _check(value, schema, place):
    if isinstance(schema, dict):
        _check_keys(value, schema, place)
        for key, inner in schema.items():
            _check(value[key], inner, f"{place}[{key!r}]")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{place} must be a list. Received: {value!r}.")
        for index, element in enumerate(value):
            _check(element, schema[0], f"{place}[{index}]")
    elif isinstance(schema, _OrNone):
        if value is not None:
            _check(value, schema.schema, place)
    else:
        description, accepts = schema
        if not accepts(value):
            raise ValueError(f"{place} must be {description}. Received: {value!r}.")


def _check_keys(value, schema, place):
    if not isinstance(value, dict) or set(value) != set(schema):
        received = sorted(value) if isinstance(value, dict) else value
        raise ValueError(
            f"{place} must be a dictionary with the keys {sorted(schema)}. "
            f"Received: {received!r}."
        )
