"""Training with two steps per call and gradients accumulated over two steps."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.backends.curves import SCHEMES, digits, small_net
from tfcompress.cost import layer_costs, total_cost

# Budgets of the schemes, as shares of the float model's cost.
BUDGETS = {
    "bits": ("bops", 1 / 30),
    "ranks": ("macs", 1 / 2),
    "size": ("value_bits", 1 / 20),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (x in ("bits", "size")))
        for x in SCHEMES
    ],
)
def test_final_form_predicts_like_the_student_and_meets_the_budget(name):
    images, labels = digits()
    model = small_net()
    student = tfc.compress(model, SCHEMES[name]())
    student.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=2,
        jit_compile=False,
    )
    history = student.fit(images, labels, batch_size=16, epochs=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    tiny = tfc.finalize(student)
    expected, received = (x.predict(images, verbose=0) for x in (student, tiny))
    np.testing.assert_allclose(received, expected, atol=1e-4)
    if name in BUDGETS:
        measure, share = BUDGETS[name]
        before, after = (
            getattr(total_cost(layer_costs(x)), measure) for x in (model, tiny)
        )
        assert 0.8 * share < after / before <= share
