"""Shared by all tests: a quiet, seeded Keras; TensorFlow sees two CPUs."""

import gc
import os

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )

# `clear_session` collects garbage; what the imports made is none.
gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _xla_on_request():
    """By default Keras compiles with XLA, which takes three times as long on a CPU."""
    with pytest.MonkeyPatch.context() as patched:
        if ON_TENSORFLOW:
            resolve = "_resolve_auto_jit_compile"
            patched.setattr(keras.Model, resolve, lambda _: False)
        yield


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all: a second one counts its collectives from the beginning,
    and TensorFlow takes them for those of the first."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True, scope="module")
def _free_memory():
    """Frees the graphs of the module before; that takes seconds."""
    keras.utils.clear_session()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Each test starts with the same seed, and names start from the beginning."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
