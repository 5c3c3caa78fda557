"""Layers that compute with weights, constants and sizes beside their sublayers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress.graph.parts.replacement import replace_by_parts

RNG = np.random.default_rng(0)


class Positions(layers.Layer):
    """Embeddings of tokens and of their positions, which are constants."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.positions = layers.Embedding(20, 8), layers.Embedding(9, 8)

    def call(self, inputs):
        return self.tokens(inputs) + self.positions(ops.arange(ops.shape(inputs)[-1]))


class StoredPositions(Positions):
    """Embeddings of positions that the layer holds, and that broadcast."""

    def build(self, shape):
        self.tokens.build(shape)
        self.positions.build(shape)
        self.places = ops.expand_dims(ops.arange(6), axis=0)

    def call(self, inputs):
        return self.tokens(inputs) + self.positions(self.places)


class WithToken(layers.Layer):
    """Layer that puts a weight before the steps of a sequence, as a class token."""

    def __init__(self, repeated, **kwargs):
        super().__init__(**kwargs)
        self.repeated, self.dense = repeated, layers.Dense(8)

    def build(self, shape):
        self.dense.build(shape)
        self.token = self.add_weight(shape=(1, 1, 8), initializer="ones", name="token")

    def call(self, inputs):
        batch = ops.shape(inputs)[0]
        token = self.repeated(self.token, batch)
        return ops.concatenate([token, self.dense(inputs)], axis=1)


class Attention(layers.Layer):
    """Attention by reshaping, with the batch and the heads apart or as one axis."""

    def __init__(self, folds, **kwargs):
        super().__init__(**kwargs)
        self.folds, self.inner = folds, layers.Dense(24)
        self.outer = layers.Dense(8)

    def call(self, inputs):
        batch, steps, _ = ops.shape(inputs)
        steps = steps if self.folds else -1
        x = ops.reshape(self.inner(inputs), (batch, steps, 3, 2, 4))
        x = ops.transpose(x, (2, 0, 3, 1, 4))
        query, key, value = x[0], x[1], x[2]
        if self.folds:
            query, key, value = (
                ops.reshape(part, (batch * 2, steps, 4)) for part in (query, key, value)
            )
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
        x = ops.matmul(ops.softmax(scores), value)
        x = ops.transpose(ops.reshape(x, (batch, 2, steps, 4)), (0, 2, 1, 3))
        return self.outer(ops.reshape(x, (batch, steps, 8)))


class Scaled(layers.Layer):
    """Layer with two weights, one of them under two names, and a frozen one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(8)

    def build(self, shape):
        self.dense.build(shape)
        self._scale = self.gamma = self.add_weight(
            shape=(8,), regularizer="l2", constraint="non_neg", initializer="ones"
        )
        self.shift = self.add_weight(shape=(8,), initializer="ones", trainable=False)

    def call(self, inputs):
        return self.dense(inputs) * ops.exp(self.gamma) * self._scale + self.shift


TOKENS = {
    "broadcast": lambda token, batch: ops.broadcast_to(token, (batch, 1, 8)),
    "tile": lambda token, batch: ops.tile(token, [batch, 1, 1]),
    "repeat": lambda token, batch: ops.repeat(token, batch, axis=0),
    "zeros": lambda token, batch: token + ops.zeros((batch, 1, 8)),
    "array": lambda token, batch: (
        token * ops.tile(np.ones((1, 1, 8), "float32"), (batch, 1, 1))
    ),
}
OF_IDS = {"positions": Positions, "stored": StoredPositions}
OF_VECTORS = {
    "attention": lambda: Attention(False),
    "scaled": Scaled,
    **{name: lambda f=function: WithToken(f) for name, function in TOKENS.items()},
}


def net(name, steps=6):
    """A model around a layer, with weights of a training, and inputs for it."""
    if name in OF_IDS:
        inputs = keras.Input((steps,), dtype="int32")
        layer, x = OF_IDS[name](name="block"), RNG.integers(0, 20, (3, 6))
    else:
        make = {**OF_VECTORS, "folded": lambda: Attention(True)}[name]
        inputs, layer = keras.Input((steps, 5)), make()
        layer.name = "block"
        x = RNG.normal(size=(3, 6, 5)).astype("float32")
    model = keras.Model(inputs, layer(inputs))
    for variable in model.variables:
        variable.assign(RNG.uniform(0.5, 1.5, variable.shape))
    return model, x


@pytest.mark.parametrize("steps", [6, None])
@pytest.mark.parametrize("name", ["positions", *OF_VECTORS])
def test_weights_constants_and_sizes_of_a_call_are_tensors_of_its_graph(
    name, steps, tmp_path
):
    model, x = net(name, steps)
    attributes = vars(model.get_layer("block"))
    before = {k: v for k, v in attributes.items() if isinstance(v, keras.Variable)}
    shape = ops.shape
    replaced = replace_by_parts(model)
    assert replaced.nested == {"block"} and replaced.reasons == {}
    assert replaced.model.count_params() == model.count_params()
    assert ops.shape is shape
    assert all(attributes[key] is value for key, value in before.items())
    replaced.model.save(tmp_path / "model.keras")
    expected = model.predict(x, verbose=0)
    for one in (replaced.model, keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_allclose(one.predict(x, verbose=0), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["folded", "stored"])
def test_call_for_sequences_of_one_length_is_entered(name):
    model, x = net(name)
    replaced = replace_by_parts(model)
    assert replaced.nested == {"block"}
    outputs = [m.predict(x, verbose=0) for m in (model, replaced.model)]
    np.testing.assert_allclose(*outputs, rtol=1e-5)


def test_own_weight_keeps_its_regularizer_its_constraint_and_whether_it_trains():
    model, x = net("scaled")
    replaced = replace_by_parts(model).model.get_layer("block")
    (scale,) = [w for w in replaced.trainable_weights if w.constraint is not None]
    assert scale.shape == (8,)
    assert len(replaced.non_trainable_weights) == 1
    losses = [float(sum(part.losses)) for part in (model.get_layer("block"), replaced)]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("name", [*OF_IDS, *(x for x in OF_VECTORS if x != "scaled")])
def test_block_in_mixed_precision_has_the_same_type(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, x = net(name)
        replaced = replace_by_parts(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert replaced.nested == {"block"}
    outputs = [m(ops.convert_to_tensor(x)) for m in (model, replaced.model)]
    assert outputs[0].dtype == outputs[1].dtype
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, outputs))


def test_layer_that_is_called_on_constants_alone_stays_float_with_the_reason():
    model, _ = net("positions")
    rows = {row.name: row for row in tfc.plan(model, tfc.PrunedTernary()).rows}
    tokens, positions = (rows[f"block/{x.name}"] for x in model.layers[1]._layers)
    assert tokens.config is not None
    assert positions.config is None and "on constants alone" in positions.reason


@pytest.mark.parametrize("name", ["positions", "broadcast", "attention"])
def test_student_of_a_block_trains_and_its_packed_model_computes_the_same(name):
    model, x = net(name)
    student = tfc.compress(model, tfc.PrunedTernary())
    student.compile("sgd", "mse")
    targets = model.predict(x, verbose=0)
    student.fit(x, 0.5 * targets, epochs=2, verbose=0)
    packed = tfc.finalize(student)
    outputs = [m.predict(x, verbose=0) for m in (student, packed)]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)
