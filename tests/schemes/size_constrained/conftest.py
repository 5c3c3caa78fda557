"""Search spaces after their start, which takes seconds and is done once."""

import copy
import functools

import numpy as np
import pytest

from tests.schemes.size_constrained.small_space import BUDGETS, SPARSE, new_space


@pytest.fixture(scope="package")
def start_once():
    """Function from one of `BUDGETS` to a space as `start` left it."""

    @functools.cache
    def start(name):
        space = new_space(name)
        space.start()
        return space, space.allocation.budget, [np.array(v) for v in _variables(space)]

    def restored(name):
        space, budget, values = start(name)
        for variable, value in zip(_variables(space), values, strict=True):
            variable.assign(value)
        space.set_budget(copy.copy(budget))
        space.admm.residual = None
        return space

    return restored


@pytest.fixture(params=BUDGETS)
def started(request, start_once):
    return start_once(request.param)


@pytest.fixture(params=SPARSE)
def started_sparse(request, start_once):
    return start_once(request.param)


def _variables(space):
    return [v for layer in space.codebooks.layers.values() for v in layer.weights]
