"""Budgets as users write them."""

import contextlib
import numbers

# A budget is met by an artefact that takes at most this share less than allowed.
SLACK = 0.02


def parse_budget(budget, reference, name):
    """A budget in absolute units.

    Args:
        budget: a count, or a share of the reference as text: "1/60", "0.02".
        reference: what the float model takes.
        name: of the argument, for the error.

    Returns:
        A positive float.

    Raises:
        ValueError: if it is neither, not positive, or not finite.
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
