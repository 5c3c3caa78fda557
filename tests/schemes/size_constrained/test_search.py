"""Size-constrained search in `fit`: its phases, step by step."""

import functools

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.schemes.size_constrained.small_space import digits_net, used
from tests.small_net import small_net
from tfcompress.litert import packed_size
from tfcompress.schemes.size_constrained.phases import MIN_GAIN, RELAXATION
from tfcompress.schemes.size_constrained.search import ADMM_FRACTION

STEPS, SEARCH_STEPS = 80, 40


class Recorder(keras.callbacks.Callback):
    """State of the student after each step, and the arguments of each allocation."""

    def __init__(self):
        super().__init__()
        self.quantized, self.size, self.bits = [], [], []
        self.without_v, self.frozen, self.min_gains = [], [], []

    def on_train_begin(self, logs=None):
        allocation = self.model.size_space.allocation
        tighten = allocation.tighten

        def recorded(factor=1.0, min_gain=0.0, exact=False):
            self.min_gains.append(min_gain)
            tighten(factor, min_gain, exact)

        allocation.tighten = recorded

    def on_train_batch_end(self, batch, logs=None):
        space = self.model.size_space
        self.quantized.append(is_quantizing(space))
        self.size.append(used(space))
        self.bits.append(sum(space.codebooks.bits.values()))
        self.without_v.append(space.admm.residual is None)
        self.frozen.append(space.is_frozen())


def is_quantizing(space):
    [on] = {float(q.quantizes) for q in space.codebooks.quantizers.values()}
    return on == 1.0


def new_student(compile_for_digits, net=digits_net, learning_rate=0.02, **arguments):
    student = tfc.compress(net(), tfc.SizeConstrained(**arguments))
    compile_for_digits(student, keras.optimizers.SGD(learning_rate))
    return student


@pytest.fixture(scope="module")
def recorded(mnist, compile_for_digits):
    """Function from a budget to the `Recorder` of 80 steps, 40 of them a search."""

    @functools.cache
    def fit(value_bits):
        keras.utils.set_random_seed(0)
        student = new_student(compile_for_digits, small_net, value_bits=value_bits)
        recorder = Recorder()
        data = [x[:240] for x in mnist[0]]
        student.fit(*data, batch_size=6, epochs=2, verbose=0, callbacks=[recorder])
        assert len(recorder.size) == STEPS
        return recorder

    return fit


def test_small_budget_trains_float_kernels_first(recorded):
    seen = recorded("1/500")
    first = seen.quantized.index(True)
    assert first == pytest.approx(ADMM_FRACTION * SEARCH_STEPS, abs=1)
    assert seen.quantized == [False] * first + [True] * (STEPS - first)
    # There is V from the first projection to the end of ADMM.
    assert seen.without_v == [True] + [False] * (first - 1) + [True] * (STEPS - first)


def test_budget_for_a_fifth_of_the_size_skips_admm(recorded):
    """At the initial bits, all weights are about 3 times the budget."""
    seen = recorded("1/100")
    assert all(seen.quantized) and all(seen.without_v)


@pytest.mark.parametrize("value_bits", ["1/500", "1/100"])
def test_logarithm_of_the_size_comes_down_in_a_line_to_the_budget(recorded, value_bits):
    seen = recorded(value_bits)
    first = seen.quantized.index(True)
    for step in range(first, SEARCH_STEPS):
        passed = (step - first) / (SEARCH_STEPS - first)
        assert seen.size[step] == pytest.approx(RELAXATION ** (1 - passed), rel=0.2)
    assert seen.frozen == [False] * SEARCH_STEPS + [True] * (STEPS - SEARCH_STEPS)
    assert min(seen.size[SEARCH_STEPS:]) > 0.9 and max(seen.size[SEARCH_STEPS:]) < 1.01
    assert len(set(seen.bits[SEARCH_STEPS:])) == 1


def test_bits_come_down_during_the_descent(recorded):
    bits = recorded("1/100").bits
    assert bits[0] > bits[20] > bits[39]


@pytest.mark.parametrize("value_bits", ["1/500", "1/100"])
def test_bits_of_layers_that_train_quantized_change_for_a_least_gain(
    recorded, value_bits
):
    first, *others = recorded(value_bits).min_gains
    assert first == 0.0
    assert len(others) > 10 and set(others) == {MIN_GAIN}


class ValidationRecorder(keras.callbacks.Callback):
    """Whether the student computes with codebooks in steps and in validations."""

    def __init__(self):
        super().__init__()
        self.in_steps, self.in_validations, self.projected = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.in_steps.append(is_quantizing(self.model.size_space))

    def on_test_begin(self, logs=None):
        codebooks = self.model.size_space.codebooks
        self.in_validations.append(is_quantizing(self.model.size_space))
        masks = codebooks.masks()
        self.projected.append(
            not any(x[~masks[name]].any() for name, x in codebooks.kernels().items())
        )


def test_validation_during_admm_sees_projected_weights(mnist, compile_for_digits):
    student = new_student(compile_for_digits, value_bits="1/500", search_fraction=1.0)
    seen = ValidationRecorder()
    data = [x[:60] for x in mnist[0]]
    student.fit(
        *data, validation_data=data, batch_size=20, epochs=7, verbose=0,
        callbacks=[seen],
    )  # fmt: skip
    # ADMM ends in the third epoch.
    assert seen.in_steps[:6] == [False] * 6 and seen.in_steps[9:] == [True] * 12
    assert seen.in_validations == [True] * 7
    assert all(seen.projected[:2])


class FileSizes(keras.callbacks.Callback):
    """Size of the finished file at the first step of each epoch of fine-tuning, as a
    share of the budget."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def on_train_batch_begin(self, batch, logs=None):
        if not batch and self.model.size_space.is_frozen():
            size = packed_size(tfc.finalize(self.model), compressed=True)
            self.shares.append(size / self.model.scheme.total(self.model))


@pytest.mark.slow
def test_fine_tuning_keeps_the_file_within_the_size(mnist, compile_for_digits):
    """In each epoch, so that later steps make up for the weights that are removed."""
    student = new_student(
        compile_for_digits, learning_rate=0.1, size="3 kB", search_fraction=1 / 3
    )
    seen = FileSizes()
    data = [x[:240] for x in mnist[0]]
    student.fit(*data, batch_size=24, epochs=3, verbose=0, callbacks=[seen])
    assert len(seen.shares) == 2
    assert 0.9 < seen.shares[1] <= 1.0


def test_loaded_student_with_two_steps_of_search_ends_it(
    mnist, compile_for_digits, tmp_path
):
    """The search ends before its first projection is due."""
    student = new_student(compile_for_digits, value_bits="1/100")
    student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    compile_for_digits(student, keras.optimizers.SGD(0.01))
    student.fit(*(x[:120] for x in mnist[0]), batch_size=60, epochs=1, verbose=0)
    assert student.size_space.is_frozen()


def test_second_connect_leaves_the_training_as_it_is(mnist, compile_for_digits):
    """The proximal step of the second one replaces that of the first."""
    data, weights = [x[:60] for x in mnist[0]], []
    for connects in (1, 2):
        keras.utils.set_random_seed(0)
        student = new_student(
            compile_for_digits, value_bits="1/500", search_fraction=1.0
        )
        for _ in range(connects - 1):
            student.scheme.connect(student)
        student.fit(*data, batch_size=20, epochs=2, verbose=0)
        weights.append(student.get_weights())
    for once, twice in zip(*weights, strict=True):
        np.testing.assert_array_equal(twice, once)
