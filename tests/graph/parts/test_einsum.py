"""EinsumDense layers, compared with Dense layers and changes of shape."""

import keras
import pytest
from keras import layers

from tests.graph.parts.replaced import normal, replaced_alike

# `(equation, shape of the input, output_shape, bias_axes, types of the parts)`.
PRODUCTS = [
    ("ab,bc->ac", (4,), 3, "c", ["Dense"]),
    ("abc,cd->abd", (5, 4), (5, 7), "d", ["Dense"]),
    ("abc,cd->abd", (None, 4), (None, 7), "d", ["Dense"]),
    ("...x,xy->...y", (5, 4), 3, "y", ["Dense"]),
    ("abc,cde->abde", (5, 4), (None, 2, 3), "de", ["Dense", "Reshape"]),
    ("abc,cde->abde", (None, 4), (None, 2, 3), "de", ["Dense", "Reshape"]),
    ("abc,cde->abde", (5, 4), (None, 2, 3), "e", ["Dense", "Reshape"]),
    ("abcd,cde->abe", (5, 2, 3), (None, 6), "e", ["Reshape", "Dense"]),
    ("abcd,dce->abe", (5, 2, 3), (None, 6), "e", ["Reshape", "Dense"]),
    ("abc,bd->adc", (5, 4), (7, 4), None, ["Permute", "Dense", "Permute"]),
    ("ab,bcd->adc", (5,), (3, 2), "c", ["Dense", "Reshape"]),
    ("abc,c->ab", (5, 4), 5, None, ["Dense", "Reshape"]),
    ("abc,bcd->ad", (5, 4), 3, "d", ["Reshape", "Dense"]),
]
WHOLE = [
    ("abc,bcd->abd", (5, 4), (5, 3), "d", "no product of matrices"),
    ("abc,bc->abc", (5, 4), (5, 4), None, "no product of matrices"),
    ("abc,cd->abd", (5, 4), (5, 3), "bd", "has the `bias_axes` 'bd'"),
    ("...x,xyz->...yz", (5, 4), (3, 2), None, "dots and several axes"),
    ("abcd,de->abce", (None, None, 4), (None, None, 2), "e", None),
    ("abcd,def->abcef", (None, None, 4), (None, None, 2, 3), None, "open size"),
]


def model_of(equation, shape, output_shape, bias_axes, **config):
    inputs = keras.Input(shape)
    layer = layers.EinsumDense(
        equation, output_shape, bias_axes=bias_axes, name="einsum", **config
    )
    return keras.Model(inputs, layer(inputs))


def batch(shape):
    return normal(3, *(size or 6 for size in shape))


@pytest.mark.parametrize("activation", [None, "relu", "softmax"])
@pytest.mark.parametrize("equation, shape, output_shape, bias_axes, kinds", PRODUCTS)
def test_products_of_matrices_become_dense_layers(
    equation, shape, output_shape, bias_axes, kinds, activation
):
    model = model_of(equation, shape, output_shape, bias_axes, activation=activation)
    replaced = replaced_alike(model, batch(shape))
    found = [type(x).__name__ for x in replaced.model.layers[1:]]
    # An activation may need the axes that come after the product.
    assert [x for x in found if x != "Activation"] == kinds
    assert replaced.model.layers[-1].name == "einsum"
    assert set(replaced.whole_of.values()) == {"einsum"}
    assert not replaced.reasons


@pytest.mark.parametrize("equation, shape, output_shape, bias_axes, reason", WHOLE)
def test_other_equations_stay_whole_with_the_reason(
    equation, shape, output_shape, bias_axes, reason
):
    model = model_of(equation, shape, output_shape, bias_axes)
    replaced = replaced_alike(model, batch(shape))
    if reason is None:
        assert not replaced.reasons
    else:
        assert reason in replaced.reasons["einsum"]
        assert replaced.model is model


def test_parts_have_the_arguments_of_the_layer():
    decay = keras.regularizers.L2(0.1)
    config = {"kernel_regularizer": decay, "bias_regularizer": decay}
    config.update(activity_regularizer=decay, trainable=False, dtype="mixed_float16")
    model = model_of("abc,cde->abde", (5, 4), (None, 2, 3), "de", **config)
    dense, reshape = replaced_alike(model, batch((5, 4))).model.layers[-2:]
    assert (dense.name, reshape.name) == ("einsum_dense", "einsum")
    assert dense.kernel_regularizer.l2 == dense.bias_regularizer.l2
    assert dense.activity_regularizer.l2 == pytest.approx(0.1)
    assert not dense.trainable
    assert dense.dtype_policy.name == reshape.dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize("key", ["kernel_constraint", "bias_constraint"])
def test_layers_with_constraints_stay_whole(key):
    model = model_of("ab,bc->ac", (4,), 3, "c", **{key: "non_neg"})
    replaced = replaced_alike(model, batch((4,)))
    assert replaced.reasons == {"einsum": f"has a `{key}`"}


def test_layers_with_lora_stay_whole():
    model = model_of("ab,bc->ac", (4,), 3, "c")
    model.get_layer("einsum").enable_lora(2)
    replaced = replaced_alike(model, batch((4,)))
    assert "LoRA" in replaced.reasons["einsum"]
