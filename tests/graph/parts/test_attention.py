"""Attention layers, compared with nested models of their sublayers."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.graph.parts.replaced import IDS, embedded, normal, replaced_alike
from tfcompress.core.plan import FROZEN

MHA = layers.MultiHeadAttention


def treatments(model, scheme=None, **arguments):
    planned = tfc.plan(model, scheme or tfc.PrunedTernary(), **arguments)
    return {row.name: row.treatment for row in planned.rows}


def self_attention(**config):
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, MHA(2, 4, name="mha", **config)(inputs, inputs))


@pytest.mark.parametrize(
    "config, call",
    [
        ({}, {}),
        ({"dropout": 0.5}, {}),
        ({"output_shape": 5, "use_bias": False}, {}),
        ({"dropout": 0.1, "value_dim": 3}, {}),
        ({}, {"use_causal_mask": True}),
        ({}, {"return_attention_scores": True}),
    ],
)
def test_cross_attention_is_made_of_dense_layers(config, call):
    query, value = keras.Input((5, 8)), keras.Input((7, 6))
    model = keras.Model(
        [query, value], MHA(2, 4, name="mha", **config)(query, value, **call)
    )
    replaced = replaced_alike(model, normal(3, 5, 8), normal(3, 7, 6))
    assert replaced.nested == {"mha"} and not replaced.reasons
    parts = ("query_dense", "key_dense", "value_dense", "attention_output")
    kinds = {x.name: type(x) for x in replaced.model.get_layer("mha").layers}
    assert all(kinds[name] is layers.Dense for name in parts)
    assert replaced.model.count_params() == model.count_params()


@pytest.mark.parametrize("steps", [6, None])
def test_attention_over_any_number_of_steps_is_opened(steps):
    inputs = keras.Input((steps, 8))
    model = keras.Model(inputs, MHA(2, 4)(inputs, inputs, use_causal_mask=True))
    assert len(replaced_alike(model, normal(2, 6, 8)).nested) == 1


def test_attention_masks_are_arguments_of_the_nested_model():
    query, value = keras.Input((5, 8)), keras.Input((7, 6))
    mask = keras.Input((5, 7), dtype="bool")
    model = keras.Model(
        [query, value, mask], MHA(2, 4)(query, value, attention_mask=mask)
    )
    x = normal(3, 5, 8), normal(3, 7, 6)
    allowed = np.random.default_rng(0).random((3, 5, 7)) > 0.5
    replaced = replaced_alike(model, *x, allowed)
    assert replaced.nested
    changed = [replaced.model([*x, m]) for m in (allowed, ~allowed)]
    assert np.abs(changed[0] - changed[1]).max() > 1e-3


def test_grouped_query_attention_is_opened():
    inputs = keras.Input((6, 8))
    layer = layers.GroupQueryAttention(4, 4, 2, name="gqa")
    replaced = replaced_alike(
        keras.Model(inputs, layer(inputs, inputs)), normal(3, 6, 8)
    )
    assert replaced.nested == {"gqa"}


@pytest.mark.parametrize("kind", [layers.Attention, layers.AdditiveAttention])
def test_attention_without_kernels_is_left_as_it_is(kind):
    query, value = keras.Input((5, 8)), keras.Input((7, 8))
    model = keras.Model([query, value], kind()([query, value]))
    assert replaced_alike(model, normal(3, 5, 8), normal(3, 7, 8)).model is model


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras on JAX refuses to compute it"
)
def test_shapes_that_keras_gets_wrong_leave_the_layer_whole():
    model = self_attention(value_dim=3)  # Keras expects the heads of queries
    replaced = replaced_alike(model, normal(3, 6, 8))
    assert replaced.model is model
    assert replaced.reasons == {"mha": "has values and queries of different sizes"}


def test_layers_shared_by_calls_of_one_kind_stay_shared():
    inputs = keras.Input((6, 8))
    shared = MHA(2, 4, name="mha")
    model = keras.Model(inputs, shared(shared(inputs, inputs), shared(inputs, inputs)))
    replaced = replaced_alike(model, normal(3, 6, 8))
    assert replaced.model.count_params() == model.count_params()


def test_layers_shared_by_calls_of_several_kinds_stay_whole():
    inputs = keras.Input((6, 8))
    shared = MHA(2, 4, name="mha")
    outputs = shared(shared(inputs, inputs), inputs, use_causal_mask=True)
    replaced = replaced_alike(keras.Model(inputs, outputs), normal(3, 6, 8))
    assert replaced.reasons == {"mha": "is called with arguments of several kinds"}


def test_layers_in_nested_models_are_opened():
    inner = self_attention()
    inner.name = "inner"
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, inner(inner(inputs)))
    replaced = replaced_alike(model, normal(3, 6, 8))
    assert replaced.nested == {"inner/mha"}
    assert "inner/mha/query_dense" in treatments(model)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_parts_compute_in_the_types_of_the_layer(policy, dtype):
    keras.config.set_dtype_policy(policy)
    try:
        replaced = replaced_alike(self_attention(dtype=dtype), normal(3, 6, 8))
    finally:
        keras.config.set_dtype_policy("float32")
    assert replaced.nested == {"mha"}


def test_dropout_of_attention_runs_in_training_only():
    replaced = replaced_alike(self_attention(dropout=0.5), normal(3, 6, 8)).model
    x = normal(3, 6, 8)
    keras.utils.set_random_seed(0)
    quiet = [replaced(x, training=False) for _ in range(2)]
    noisy = [replaced(x, training=True) for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    assert np.abs(noisy[0] - noisy[1]).max() > 1e-3


def test_frozen_attention_is_left_alone_unless_it_is_unfrozen():
    model = self_attention()
    model.get_layer("mha").trainable = False
    found = treatments(model)
    dense = [name for name in found if name.endswith(("_dense", "_output"))]
    assert len(dense) == 4
    assert {found[name] for name in dense} == {f"left alone: {FROZEN}"}
    unfrozen = treatments(model, unfreeze=True)
    assert all("unfrozen" in unfrozen[name] for name in dense)


def test_overrides_hold_by_the_names_of_a_layer_and_of_its_parts():
    overrides = {
        "mha/query": tfc.KeepFloat("the queries"),
        "mha": tfc.QuantizeConfig(tfc.quantizers.Uniform(4)),
    }
    found = treatments(self_attention(), tfc.PrunedTernary(overrides=overrides))
    assert found["mha/query_dense"] == "left alone: the queries"
    assert found["mha/value_dense"] == found["mha/attention_output"] == "4-bit weights"
    with pytest.raises(ValueError, match="whole name"):
        treatments(
            self_attention(), tfc.PrunedTernary(overrides={"mha/q": overrides["mha"]})
        )


def through_mask(*stack, **config):
    """Model of ids with padding."""
    ids, x = embedded()
    for layer in stack:
        x = layer(x)
    return keras.Model(ids, x)


def attend(x):
    return MHA(2, 4)(x, x)


def nested(*stack):
    inputs = keras.Input((None, 8))
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


MASKED = {
    "attention": lambda: [attend],
    "attention twice": lambda: [attend, attend],
    "nested attention": lambda: [nested(attend)],
    "nested twice": lambda: [nested(layers.Dense(8), nested(attend))],
    "after a nested model": lambda: [nested(layers.Dense(8)), attend],
    "after a nested attention": lambda: [nested(attend), attend],
    "recurrent": lambda: [
        attend,
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        attend,
    ],
}


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
@pytest.mark.parametrize("end", [layers.GlobalAveragePooling1D, lambda: layers.LSTM(3)])
@pytest.mark.parametrize("case", MASKED)
def test_masks_reach_all_layers_as_before(case, end):
    model = through_mask(*MASKED[case](), end())
    replaced = replaced_alike(model, IDS)
    assert replaced.nested and not replaced.reasons
    # The vector of padding has no effect: the masks are read.
    embedding = replaced.model.layers[1]
    before = keras.ops.convert_to_numpy(replaced.model(IDS))
    (vectors,) = embedding.get_weights()
    embedding.set_weights([np.concatenate([vectors[:1] + 5, vectors[1:]])])
    after = keras.ops.convert_to_numpy(replaced.model(IDS))
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*destroy the mask")
def test_nested_model_that_is_called_with_a_mask_and_without_is_opened():
    ids, x = embedded()
    plain = layers.Dense(8)(layers.Reshape((6, 8))(x))
    inner = nested(attend)
    outputs = [layers.LSTM(3)(inner(y)) for y in (plain, x)]
    replaced = replaced_alike(keras.Model(ids, outputs), IDS)
    assert len(replaced.nested) == 1


@pytest.mark.parametrize("which", ["query", "value"])
def test_masks_of_queries_and_of_values_differ(which):
    ids, x = embedded()
    other = keras.Input((5, 8))
    pair = (x, other) if which == "query" else (other, x)
    outputs = layers.GlobalAveragePooling1D()(MHA(2, 4)(*pair))
    assert replaced_alike(
        keras.Model([ids, other], outputs), IDS, normal(3, 5, 8)
    ).nested
