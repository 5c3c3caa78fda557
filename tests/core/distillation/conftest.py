"""Fixture of the tests of distillation."""

import pytest


@pytest.fixture(scope="session")
def batch(mnist):
    """`(images, labels)` of 32 training samples."""
    return mnist[0][0][:32], mnist[0][1][:32]
