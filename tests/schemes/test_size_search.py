"""How a search for zeros and bits goes along in `fit`."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.schemes.test_size_space import (
    counts,
    move,
    start_once,  # noqa: F401 -- a fixture
    started_sparse,  # noqa: F401 -- a fixture
)


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
            kernel = np.array(space.layers[name]._kernel)
            np.testing.assert_array_equal(kernel, before[name] * mask)
            assert not (mask & ~held[name]).any()
            if mask.sum() > space.floors()[name]:
                gone = np.abs(before[name][held[name] & ~mask])
                assert gone.max(initial=0.0) <= np.abs(before[name][mask]).min()
        kept.append(sum(counts(space).values()))
    assert kept[0] >= kept[1] > kept[2] >= kept[3] >= kept[4]
    assert 0.85 < budget.size_of(space.codes()) / budget.total < 1.1


def test_in_a_fit_the_size_comes_down_to_the_budget(trained, mnist, compile_for_digits):
    """Float kernels at first, then quantized ones; more than the budget, then less."""
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            space = self.model.size_space
            on = {float(np.array(q.quantizes)) for q in space.quantizers.values()}
            size = space.budget.size_of(space.codes()) / space.budget.total
            seen.append((on, size, space.is_fixed(), space.residual is None))

    student = tfc.compress(
        trained, tfc.SizeConstrained(value_bits="1/100", search_fraction=0.5)
    )
    compile_for_digits(student, keras.optimizers.SGD(0.01))
    data = [x[:240] for x in mnist[0]]
    student.fit(*data, batch_size=6, epochs=2, verbose=0, callbacks=[Look()])
    quantizes, size, fixed, without_v = zip(*seen, strict=True)
    first = quantizes.index({1.0})
    assert list(quantizes) == [{0.0}] * first + [{1.0}] * (len(seen) - first)
    assert list(without_v) == [True] + [False] * (first - 1) + [True] * (80 - first)
    assert first == pytest.approx(0.3 * 40, abs=1)
    assert fixed.index(True) == 40 and fixed[-1]
    # All weights at these bits are about 1.7 times the budget.
    assert max(size[:first]) == pytest.approx(1.7, abs=0.1)
    assert size[first] > 1.5 > size[first + 12] > 1.15 > size[35]
    assert 0.95 < size[40] < 1.01
    assert (np.diff(size[first:41]) < 0.1).all()


def test_a_loaded_student_may_have_no_step_to_project_in(
    trained, mnist, compile_for_digits, tmp_path
):
    student = tfc.compress(trained, tfc.SizeConstrained(value_bits="1/100"))
    student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    compile_for_digits(student, keras.optimizers.SGD(0.01))
    student.fit(*(x[:120] for x in mnist[0]), batch_size=60, epochs=1, verbose=0)
    assert student.size_space.is_fixed()
