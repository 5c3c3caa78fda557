"""Numbers that no training can use."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc

SCHEMES = {
    "ternary": (tfc.PrunedTernary, {}),
    "bits": (tfc.BitSharing, {"bops": "1/30"}),
    "gates": (tfc.BitSharing, {"penalty": 1.0}),
    "ranks": (tfc.Decomposition, {"macs": "1/2"}),
    "groups": (tfc.Decomposition, {"penalty": 1.0}),
    "size": (tfc.SizeConstrained, {"size": "1/2"}),
}
# Arguments that are numbers, with the largest of each.
ARGUMENTS = {
    "ternary": {"sparsity": 1, "discrepancy": 1000, "weight_decay": 1},
    "bits": {"max_pruned": 1, "search_fraction": 1, "weight_decay": 1},
    "gates": {"penalty": 1e6},
    "ranks": {"margin": 1, "search_fraction": 1, "weight_decay": 1},
    "groups": {"penalty": 1000},
    "size": {"rho": 1e6, "search_fraction": 1, "weight_decay": 1},
}
CASES = [(x, name, ARGUMENTS[x][name]) for x in SCHEMES for name in ARGUMENTS[x]]


@pytest.mark.parametrize("scheme, name, most", CASES)
def test_scheme_refuses_what_is_no_number_and_numbers_out_of_bounds(scheme, name, most):
    make, arguments = SCHEMES[scheme]
    for value in ("0.5", "much", True, [0.5], 1e30, 1.001 * most, -1, float("nan")):
        with pytest.raises(ValueError, match="(is|in) .*Received: ") as error:
            make(**arguments | {name: value})
        assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", ["4", True, [4.0], -1.0, float("inf")])
def test_distillation_and_ranges_refuse_what_is_no_number_in_their_bounds(value):
    with pytest.raises(ValueError, match="`temperature` is .*Received"):
        tfc.Distillation(temperature=value)
    with pytest.raises(ValueError, match="`weight` is .*Received"):
        tfc.Distillation(weight=value)
    with pytest.raises(ValueError, match="`initial_clip` is .*Received"):
        tfc.quantizers.UniformActivation(4, initial_clip=value)


def net():
    inputs = x = keras.Input((8,))
    for units in (16, 16, 16):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.mark.filterwarnings("ignore:The student", "ignore:Layer")
@pytest.mark.parametrize("scheme", ["ternary", "ranks"])
def test_finalize_refuses_weights_so_large_that_outputs_are_nan(scheme):
    make, arguments = SCHEMES[scheme]
    model = net()
    student = tfc.compress(model, make(**arguments))
    tfc.finalize(student)
    for variable in student.trainable_variables:
        if len(variable.shape) == 2:
            variable.assign(np.full(variable.shape, 1e18))
    with pytest.raises(ValueError, match="inite.*lower the learning rate"):
        tfc.finalize(student)


def test_sparsity_that_small_filters_cannot_have_is_said(mnist, compile_for_digits):
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, 2, name="small")(inputs)
    x = layers.Conv2D(8, 3, 2, name="large")(x)
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(x)))
    scheme = tfc.PrunedTernary(sparsity=0.97, first_last="ternary")
    rows = {row.name: row.treatment for row in tfc.plan(model, scheme).rows}
    assert "at most 0.889 zeros, as each filter keeps a weight" in rows["small"]
    assert "at most" not in rows["large"] + rows["head"]
    student = tfc.compress(model, scheme)
    compile_for_digits(student)
    data = [x[:64] for x in mnist[0]]
    with pytest.warns(UserWarning, match=r"'small' has a sparsity of 0\.8.*of 9 w"):
        student.fit(*data, epochs=3, verbose=0)


@pytest.mark.parametrize("count, rest", [(4, r" and 3 more\."), (2, r"\.")])
def test_error_of_nan_weights_names_the_first_few(count, rest):
    names = [f"dense{i}" for i in range(count)]
    model = keras.Sequential(
        [keras.Input((3,)), *(layers.Dense(3, name=name) for name in names)]
    )
    model.set_weights([np.full(x.shape, np.nan) for x in model.weights])
    paths = [x.path for x in model.weights]
    with pytest.raises(ValueError, match=f"in: {', '.join(paths[:5])}{rest}"):
        tfc.compress(model, tfc.PrunedTernary())
