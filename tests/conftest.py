"""Shared by all tests: a quiet, seeded Keras on the TensorFlow backend."""

import gc
import os

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest

# `clear_session` collects garbage; what the imports made is none.
gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Each test starts with the same seed and without the graphs of others."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
