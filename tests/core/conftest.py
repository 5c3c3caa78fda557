"""Fixtures of the tests that train with each scheme."""

import keras
import pytest

import tfcompress as tfc
from tests.core.scheme_table import BATCH, EPOCHS, RATE, SAMPLES, SCHEMES
from tests.small_net import small_net


@pytest.fixture(scope="module")
def new_student(trained_weights, compile_for_digits):
    """Function that returns a compiled student of the trained network."""

    def compress(name, optimizer=None, scheme=None, **arguments):
        keras.utils.set_random_seed(0)
        model = small_net()
        model.set_weights(trained_weights)
        student = tfc.compress(model, scheme or SCHEMES[name]())
        optimizer = optimizer or keras.optimizers.SGD(RATE, momentum=0.9)
        compile_for_digits(student, optimizer, **arguments)
        return student

    return compress


@pytest.fixture(scope="module")
def fit(mnist):
    """Function that trains a student for a few steps."""

    def train(student, *callbacks, **arguments):
        (images, labels), (test_images, test_labels) = mnist
        arguments = {
            "epochs": EPOCHS,
            "batch_size": BATCH,
            "shuffle": False,
            "verbose": 0,
            "validation_data": (test_images[:64], test_labels[:64]),
            **arguments,
        }
        return student.fit(
            images[:SAMPLES], labels[:SAMPLES], callbacks=list(callbacks), **arguments
        )

    return train
