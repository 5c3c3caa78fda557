"""Budgets, as counts or as shares of the float model."""

import contextlib
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import keras

from tfcompress.arguments import is_number, listed
from tfcompress.cost.input_shape import (
    InputShape,
    example_input_shape,
    sized_graph,
)
from tfcompress.cost.layer_macs import layer_macs

# Share of a budget that a compressed model may leave unused.
SLACK = 0.02


def excess(received: float, budget: float, unit: str) -> str | None:
    """Returns a clause that tells by how much a budget is exceeded, or None.

    Args:
        received: float. Cost.
        budget: float. Budget, in the same unit.
        unit: str. Plural name of the unit; underscores become spaces.
    """
    # Not `>`, for a cost that is NaN. The bound leaves room for float32.
    if received <= budget * (1 + 1e-6):
        return None
    return (
        f"its {unit.replace('_', ' ')}, {received:,.6g}, are {received / budget:.4g} "
        f"times the budget of {budget:,.6g}"
    )


def at_least(bound: float) -> str:
    """Returns a lower bound as text of four digits, which itself keeps the bound."""
    return _rounded(bound, ROUND_CEILING)


def at_most(bound: float) -> str:
    """Returns an upper bound as text of four digits, which itself keeps the bound."""
    return _rounded(bound, ROUND_FLOOR)


def _rounded(value, rounding):
    digits = Decimal(value).normalize(Context(prec=4, rounding=rounding))
    return f"{float(digits):.4g}"


def parse_budget(budget: float | str, reference: float, name: str) -> float:
    """Returns a budget in absolute units, a float above 0.

    Args:
        budget: number of at least 1, or str for a share of the reference: "1/60",
            "0.02".
        reference: float. Cost of the float model.
        name: str. Name of the argument, for the error.

    Raises:
        ValueError: if `budget` is neither, not positive, or not finite.
    """
    value = None
    if isinstance(budget, str):
        part, slash, whole = budget.partition("/")
        with contextlib.suppress(ValueError, ArithmeticError):
            value = float(part) / (float(whole) if slash else 1.0) * reference
    elif is_number(budget):
        with contextlib.suppress(OverflowError):
            value = float(budget)
    # A number below 1 is a share that was not written as text.
    least = 0.0 if isinstance(budget, str) else 1.0
    if value is None or value == 0 or not least <= value < float("inf"):
        raise ValueError(
            f"`{name}` is a count of at least 1, or a share of the float model's as "
            f"text, such as '1/60'. Received: {name}={budget!r}."
        )
    return value


def check_sizes_known(
    model: keras.Model, input_shape: InputShape | None, needs: str
) -> None:
    """Checks that the multiply-accumulates of all layers can be counted.

    Args:
        model: the plan's model.
        input_shape: argument of the scheme, see `tfcompress.cost.layer_costs`.
        needs: str. Subject of the error, which needs the sizes: "A budget in MACs".

    Raises:
        ValueError: if the size of a layer's output is open, or the model takes no
            inputs of `input_shape`.
    """
    rows = layer_macs(sized_graph(model, input_shape))
    is_open = [row.name for row in rows if row.open_size]
    if not is_open:
        return
    names = listed([f"'{name}'" for name in is_open])
    hint = (
        f"Give the scheme the size to count at, such as input_shape="
        f"{example_input_shape(model)}. The model still takes inputs of any size."
        if input_shape is None and any(None in x.shape[1:] for x in model.inputs)
        else "It depends on more than the shape of the inputs. Give `Decomposition` a "
        "budget of parameters, or `SizeConstrained` one of bytes."
    )
    raise ValueError(
        f"{needs} needs the output size of every layer. Received: input_shape="
        f"{input_shape}, with which it is open for {names}. {hint}"
    )
