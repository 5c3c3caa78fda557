"""Layers and models of a user's own in every scheme, to a proven file."""

import itertools

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.cases import few_quick
from tests.own_layers import NETWORKS, images

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(0.5),
    "uniform": lambda: tfc.Uniform(4),
    "bits": lambda: tfc.BitSharing("1/40", group_size=2),
    "size": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "file": lambda: tfc.SizeConstrained(size="9 kB"),
    "ranks": lambda: tfc.Decomposition("6/7"),
}
# Operators of "latency" round their inputs, and activations of few bits with
# them; these networks have hardly learned, so that some classes change.
LEAST_AGREEMENT = {"size": 1, "latency": 0.7}


def is_quick(scheme, name):
    return scheme == "ternary" and name != "subclassed model"


@pytest.mark.parametrize(
    "scheme, name", few_quick(itertools.product(SCHEMES, NETWORKS), is_quick)
)
def test_each_scheme_ends_in_a_proven_file(name, scheme, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = NETWORKS[name](), images()
    student = tfc.compress(model, SCHEMES[scheme]())
    np.testing.assert_allclose(student.count_params() >= model.count_params(), True)
    labels = np.random.default_rng(0).integers(3, size=32)
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    student.fit(x, labels, batch_size=16, epochs=2, verbose=0)
    student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    tiny = tfc.finalize(student)
    tiny.save(tmp_path / "tiny.keras")
    loaded = keras.models.load_model(tmp_path / "tiny.keras")
    expected = student.predict(x, verbose=0)
    is_near = np.isclose(tiny.predict(x, verbose=0), expected, atol=1e-3).all(axis=1)
    assert is_near.mean() > 0.9  # ties of roundings may fall to either side
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), tiny.predict(x, verbose=0)
    )
    for optimize, least in LEAST_AGREEMENT.items():
        path = tmp_path / f"{optimize}.tflite"
        report = tfc.export(loaded, path, optimize=optimize, verify=x)
        assert report["agreement"]["top1"] >= least


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scheme", ["ternary", "bits", "size"])
def test_nearly_all_weights_are_treated(name, scheme):
    plan = tfc.plan(NETWORKS[name](), SCHEMES[scheme]())
    treated = sum(row.layer.count_params() for row in plan.treated())
    assert treated >= 0.9 * plan.model.count_params()


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_model_of_a_student_predicts_as_it(name):
    model, x = NETWORKS[name](), images()
    student = tfc.compress(model, tfc.PrunedTernary(0.5))
    plain = tfc.dequantize(student)
    expected = student.predict(x, verbose=0)
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, atol=1e-4)
    assert plain.count_params() == model.count_params()
