"""How a search for zeros and bits goes along in `fit`."""

import functools

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.schemes.size_constrained.test_search_space import (
    counts,
    move,
    start_once,  # noqa: F401 -- a fixture
    started_sparse,  # noqa: F401 -- a fixture
)
from tests.small_net import small_net
from tfcompress.litert import packed_size
from tfcompress.schemes.size_constrained.rate_distortion import operating_points
from tfcompress.schemes.size_constrained.search import WORTH


def test_weights_are_taken_until_the_budget_is_met(started_sparse):  # noqa: F811
    """The least for what they cost, and none of them comes back."""
    space, budget = started_sparse
    move(space)
    space.project(factor=3.0)
    kept = [sum(counts(space).values())]
    for step, factor in enumerate((2.0, 1.4, 1.0, 1.0), start=2):
        move(space, step, size=0.1)
        before, held = space.kernels(), space.masks()
        space.tighten(factor)
        for name, mask in space.masks().items():
            kernel = np.array(space.layers[name].latent_kernel)
            np.testing.assert_array_equal(kernel, before[name] * mask)
            assert not (mask & ~held[name]).any()
            if mask.sum() > space.floors()[name]:
                gone = np.abs(before[name][held[name] & ~mask])
                assert gone.max(initial=0.0) <= np.abs(before[name][mask]).min()
        kept.append(sum(counts(space).values()))
    assert kept[0] >= kept[1] > kept[2] >= kept[3] >= kept[4]
    assert 0.85 < budget.size_of(space.codes()) / budget.total < 1.1


@pytest.mark.parametrize("worth", [0.1, 0.5])
def test_other_bits_are_worth_it(started_sparse, worth):  # noqa: F811
    """Those of now would lose more, for the same number of nominal bits."""
    space, budget = started_sparse
    move(space)
    masks, before, points = space.masks(), space.bits, {}
    for name, kernel in space.kernels().items():
        points[name] = operating_points(
            kernel * masks[name], space.floors()[name], budget, space.bit_widths
        )
    space.tighten(worth=worth)
    for name, kept in counts(space).items():
        costs, losses, bits = points[name].costs, points[name].losses, points[name].bits
        chosen = (points[name].kept == kept) & (bits == space.bits[name])
        same = (bits == before[name]) & (costs <= costs[chosen])
        if space.bits[name] != before[name] and same.any():
            assert losses[chosen] <= (1 - worth) * losses[same].min()


class Look(keras.callbacks.Callback):
    """After each step: whether kernels are quantized, sizes, what is settled.

    And at each choice of bits: what others than those of now have to be worth.
    """

    def __init__(self):
        super().__init__()
        self.quantized, self.size, self.bits = [], [], []
        self.without_v, self.fixed, self.worth = [], [], []

    def on_train_begin(self, logs=None):
        space = self.model.size_space
        tighten = space.tighten

        def watched(factor=1.0, worth=0.0):
            self.worth.append(worth)
            tighten(factor, worth)

        space.tighten = watched

    def on_train_batch_end(self, batch, logs=None):
        space = self.model.size_space
        on = {float(np.array(q.quantizes)) for q in space.quantizers.values()}
        self.quantized.append(on == {1.0})
        self.size.append(space.budget.size_of(space.codes()) / space.budget.total)
        self.bits.append(sum(space.bits.values()))
        self.without_v.append(space.residual is None)
        self.fixed.append(space.is_frozen())


@pytest.fixture(scope="module")
def steps(trained_weights, mnist, compile_for_digits):
    """Function from a budget to what `Look` saw in 80 steps, 40 of them a search."""

    @functools.cache
    def fit(value_bits):
        keras.utils.set_random_seed(0)
        model = small_net()
        model.set_weights(trained_weights)
        scheme = tfc.SizeConstrained(value_bits=value_bits, search_fraction=0.5)
        student, seen = tfc.compress(model, scheme), Look()
        compile_for_digits(student, keras.optimizers.SGD(0.01))
        data = [x[:240] for x in mnist[0]]
        student.fit(*data, batch_size=6, epochs=2, verbose=0, callbacks=[seen])
        return seen

    return fit


def test_float_kernels_come_first_where_zeros_are_to_be_found(steps):
    seen = steps("1/500")
    first = seen.quantized.index(True)
    assert first == pytest.approx(0.3 * 40, abs=1)
    assert seen.quantized == [False] * first + [True] * (80 - first)
    assert seen.without_v == [True] + [False] * (first - 1) + [True] * (80 - first)


def test_and_do_not_where_the_size_pays_for_nearly_all_weights(steps):
    """At the bits to begin with all of them are about 3 times the budget."""
    seen = steps("1/100")
    assert all(seen.quantized) and all(seen.without_v)


@pytest.mark.parametrize("value_bits", ["1/500", "1/100"])
def test_the_size_comes_down_to_the_budget(steps, value_bits):
    """From five times as much, along a line of the logarithm; then it stays."""
    seen = steps(value_bits)
    first = seen.quantized.index(True)
    for step in range(first, 40):
        passed = (step - first) / (40 - first)
        assert seen.size[step] == pytest.approx(5 ** (1 - passed), rel=0.4)
    assert seen.fixed == [False] * 40 + [True] * 40
    assert min(seen.size[40:]) > 0.9 and max(seen.size[40:]) < 1.01
    assert len(set(seen.bits[40:])) == 1


def test_bits_are_chosen_anew_on_the_way(steps):
    bits = steps("1/100").bits
    assert bits[0] > bits[20] > bits[39]


@pytest.mark.parametrize("value_bits", ["1/500", "1/100"])
def test_other_bits_have_to_gain_enough_for_layers_that_train_quantized(
    steps, value_bits
):
    first, *others = steps(value_bits).worth
    assert first == 0.0
    assert len(others) > 10 and set(others) == {WORTH}


class Sizes(keras.callbacks.Callback):
    """At the first step of each epoch: of the finished file, and what it may be."""

    def __init__(self):
        super().__init__()
        self.share = []

    def on_train_batch_begin(self, batch, logs=None):
        if not batch and self.model.size_space.is_frozen():
            size = packed_size(tfc.finalize(self.model), compressed=True)
            self.share.append(size / self.model.scheme.total(self.model))


def test_while_it_trains_on_the_file_is_kept_within_the_size(
    trained, mnist, compile_for_digits
):
    """And not only at the end, when nothing can make up for what is taken."""
    scheme = tfc.SizeConstrained(size="3 kB", search_fraction=0.2)
    student, seen = tfc.compress(trained, scheme), Sizes()
    compile_for_digits(student, keras.optimizers.SGD(0.1))
    data = [x[:240] for x in mnist[0]]
    student.fit(*data, batch_size=12, epochs=5, verbose=0, callbacks=[seen])
    assert len(seen.share) >= 4
    assert min(seen.share[1:]) > 0.9 and max(seen.share[1:]) <= 1.0


def test_a_loaded_student_may_have_no_step_to_project_in(
    trained, mnist, compile_for_digits, tmp_path
):
    student = tfc.compress(trained, tfc.SizeConstrained(value_bits="1/100"))
    student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    compile_for_digits(student, keras.optimizers.SGD(0.01))
    student.fit(*(x[:120] for x in mnist[0]), batch_size=60, epochs=1, verbose=0)
    assert student.size_space.is_frozen()
