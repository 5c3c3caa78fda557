"""Budgets, as counts or as shares of the float model."""

import contextlib
import numbers

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


def parse_budget(budget: float | str, reference: float, name: str) -> float:
    """Returns a budget in absolute units, a float above 0.

    Args:
        budget: number, or str for a share of the reference: "1/60", "0.02".
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
    elif isinstance(budget, numbers.Real) and not isinstance(budget, bool):
        with contextlib.suppress(OverflowError):
            value = float(budget)
    if value is None or not 0 < value < float("inf"):
        raise ValueError(
            f"`{name}` is a positive count, or a share of the float model's as text, "
            f"such as '1/60'. Received: {name}={budget!r}."
        )
    return value
