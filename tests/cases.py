"""Parametrized cases of which a few run in the quick tests."""

import pytest


def few_quick(cases, is_quick):
    """Returns cases; those for which `is_quick` is false are slow tests.

    Args:
        cases: list of arguments; a tuple for several ones.
        is_quick: function of the arguments of a case.
    """

    def mark(case):
        values = case if isinstance(case, tuple) else (case,)
        marks = () if is_quick(*values) else pytest.mark.slow
        return pytest.param(*values, marks=marks)

    return [mark(case) for case in cases]
