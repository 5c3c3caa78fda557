"""Shared by the tests of the recipes."""

import pytest

from recipes.common import data


@pytest.fixture(scope="session")
def mnist5k():
    """`ImageData` of the 5 000 MNIST images, read once: it takes seconds."""
    return data.load(data.MNIST5K)
