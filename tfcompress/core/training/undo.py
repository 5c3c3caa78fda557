"""Variables that get their values back if the work on them fails."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from keras import ops


@contextlib.contextmanager
def undone_on_failure(variables: Sequence[Any]) -> Iterator[None]:
    """Gives variables their values back if a `with` statement does not complete.

    Interruptions from the keyboard count. Work that sets many variables is then done
    as a whole or not at all.

    Args:
        variables: sequence of Keras variables.
    """
    before = [ops.convert_to_numpy(variable).copy() for variable in variables]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        raise
