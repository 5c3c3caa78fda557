"""Layers that Keras cannot copy by their configuration, through whole students."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc

FACTOR = 3.0


def model_of(*stack, shape=(6,)):
    outputs = inputs = keras.Input(shape)
    for layer in stack:
        outputs = layer(outputs)
    outputs = layers.Dense(3, name="head")(outputs)
    return keras.Model(inputs, outputs)


def dense(**config):
    return layers.Dense(6, name="dense", **config)


def triple(x):
    return FACTOR * x


def local_classes():
    @keras.saving.register_keras_serializable("local_to_a_function")
    class Registered(layers.Layer):
        def call(self, x):
            return 2.0 * x

    class Scale(layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x):
            return self.factor * x

        def compute_output_shape(self, shape):
            return shape

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    class Bare(layers.Layer):
        """Its constructor takes none of the arguments of every layer."""

        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return self.factor * x

    class Mean(keras.regularizers.Regularizer):
        def __call__(self, x):
            return ops.mean(x)

        def get_config(self):
            return {}

    return Registered, Scale, Bare, Mean


Registered, Scale, Bare, Mean = local_classes()


class LeakyByCall:
    def __call__(self, x):
        return ops.leaky_relu(x)


def vectorized():
    inputs = keras.Input((6,))
    x = ops.vectorized_map(lambda row: FACTOR * row, dense()(inputs))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def lookup():
    found = layers.IntegerLookup(name="lookup")
    found.adapt(np.arange(5))
    inputs = keras.Input((6,), dtype="int64")
    x = layers.Flatten()(layers.Embedding(8, 2)(found(inputs)))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def in_steps(layer):
    return model_of(layers.TimeDistributed(layer), shape=(5, 4))


MODELS = {
    "lambda": lambda: model_of(dense(), layers.Lambda(lambda x: FACTOR * x)),
    "lambda of a function": lambda: model_of(dense(), layers.Lambda(triple)),
    "lambda of a partial": lambda: model_of(
        dense(), layers.Lambda(functools.partial(ops.multiply, 2.0))
    ),
    "lambda with arguments": lambda: model_of(
        dense(), layers.Lambda(lambda x, by: x * by, arguments={"by": 4.0})
    ),
    "lambda with a shape": lambda: model_of(
        dense(), layers.Lambda(lambda x: x[:, :2], output_shape=lambda s: (s[0], 2))
    ),
    "lambda with a mask": lambda: model_of(
        layers.Masking(),
        layers.Lambda(lambda x: FACTOR * x, mask=lambda _, mask: mask),
        layers.GlobalAveragePooling1D(),
        shape=(5, 4),
    ),
    "lambda in steps": lambda: in_steps(layers.Lambda(lambda x: FACTOR * x)),
    "lambda in a nested wrapper": lambda: model_of(
        layers.TimeDistributed(layers.TimeDistributed(layers.Lambda(triple))),
        shape=(5, 4, 2),
    ),
    "model in steps": lambda: in_steps(
        keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: FACTOR * x)])
    ),
    "local layer in steps": lambda: in_steps(Scale(2.0)),
    "activation in steps": lambda: in_steps(layers.Dense(4, activation=triple)),
    "recurrent activation": lambda: model_of(
        layers.LSTM(4, activation=lambda x: 0.5 * x), shape=(5, 4)
    ),
    "local layer": lambda: model_of(dense(), Scale(2.0)),
    "bare layer": lambda: model_of(dense(), Bare(2.0)),
    "activation": lambda: model_of(dense(activation=lambda x: FACTOR * x)),
    "partial activation": lambda: model_of(
        dense(activation=functools.partial(ops.leaky_relu, negative_slope=0.3))
    ),
    "object as activation": lambda: model_of(dense(activation=LeakyByCall())),
    "activation layer": lambda: model_of(dense(), layers.Activation(triple)),
    "separable activation": lambda: model_of(
        layers.SeparableConv1D(6, 2, activation=lambda x: FACTOR * x),
        layers.GlobalAveragePooling1D(),
        shape=(5, 4),
    ),
    "local regularizer": lambda: model_of(dense(kernel_regularizer=Mean())),
    "initializer": lambda: model_of(
        dense(kernel_initializer=lambda shape, dtype=None: ops.ones(shape, dtype))
    ),
    "vectorized map": vectorized,
    "lookup": lookup,
}


def samples_of(model):
    rng = np.random.default_rng(0)
    shape = (16, *model.input_shape[1:])
    if "int" in model.inputs[0].dtype:
        return rng.integers(0, 7, shape)
    return rng.normal(size=shape).astype("float32")


@pytest.mark.parametrize("name", MODELS)
def test_student_keeps_the_functions_of_a_models_layers(name):
    model = MODELS[name]()
    x = samples_of(model)
    exact = tfc.compress(model, tfc.Decomposition(penalty=1.0))
    np.testing.assert_allclose(exact(x), model(x), rtol=1e-4, atol=1e-5)
    assert [x.name for x in exact.layers] == [
        x.name for x in tfc.plan(model, tfc.PrunedTernary()).model.layers
    ]
    student = tfc.compress(model, tfc.PrunedTernary())
    plain = tfc.dequantize(student)
    np.testing.assert_allclose(plain(x), student(x), rtol=1e-4, atol=1e-5)
    tiny = tfc.finalize(student)
    np.testing.assert_allclose(tiny(x), student(x), rtol=1e-4, atol=1e-5)


def test_student_with_a_lambda_is_trained_saved_and_exported(tmp_path):
    model = MODELS["lambda"]()
    x = samples_of(model)
    student = tfc.compress(model, tfc.PrunedTernary())
    student.compile("adam", "mse")
    student.fit(x, np.zeros((16, 3)), epochs=2, verbose=0)
    tiny = tfc.finalize(student)
    np.testing.assert_allclose(tiny(x), student(x), rtol=1e-4, atol=1e-5)
    tfc.export(tiny, tmp_path / "tiny.tflite", verify=x)
    # Keras loads the code of the function, without the names that it refers to.
    model = model_of(dense(), layers.Lambda(lambda x: 2.0 * x))
    student = tfc.compress(model, tfc.PrunedTernary())
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras", safe_mode=False)
    np.testing.assert_allclose(tfc.finalize(loaded)(x), student(x), rtol=1e-4)


class WithoutConfig(layers.Layer):
    def __init__(self, function):
        super().__init__(name="strange")
        self.function = function

    def call(self, x, training=None):
        return self.function(x) if training else 2.0 * x


class OfShortConfig(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def call(self, x, training=None):
        return x * self.units if training else x

    def get_config(self):
        return super().get_config()


class OfRaisingConfig(layers.Layer):
    def call(self, x, training=None):
        return 2.0 * x if training else x

    def get_config(self):
        raise RuntimeError("nothing to tell")


UNCLONABLE = {
    "without a configuration": lambda: WithoutConfig(ops.tanh),
    "with a short configuration": lambda: OfShortConfig(2, name="strange"),
    "with a configuration that raises": lambda: OfRaisingConfig(name="strange"),
    "within another": lambda: layers.TimeDistributed(OfRaisingConfig(), name="strange"),
}


@pytest.mark.parametrize("name", UNCLONABLE)
@pytest.mark.parametrize("step", [tfc.plan, tfc.compress])
def test_layer_that_cannot_be_copied_is_named_before_anything_is_done(step, name):
    shape = (5, 4) if name == "within another" else (6,)
    if name == "within another":
        OfRaisingConfig.compute_output_shape = lambda self, shape: shape
    model = model_of(dense(), UNCLONABLE[name](), shape=shape)
    with pytest.raises(ValueError, match="Layer 'strange'.*copied.*get_config") as info:
        step(model, tfc.PrunedTernary())
    assert len(str(info.value)) < 500


class OfWrongConfig(layers.Layer):
    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1], self.units))

    def call(self, x):
        return ops.matmul(x, self.weight)

    def get_config(self):
        return super().get_config()


def test_layer_whose_copy_has_other_weights_is_named():
    model = model_of(dense(), OfWrongConfig(5, name="strange"))
    with pytest.raises(
        ValueError, match="'strange'.*get_config.*\\(6, 5\\).*\\(6, 2\\)"
    ):
        tfc.compress(model, tfc.PrunedTernary())


class OfLongConfig(layers.Layer):
    def __init__(self, sizes=(), **kwargs):
        super().__init__(**kwargs)
        self.sizes = sizes

    def call(self, x, training=None):
        return -x if training else x

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes, "extra": 1}


def test_error_for_a_layer_with_a_long_configuration_gives_the_cause():
    """The message of Keras begins with the configuration."""
    model = model_of(dense(), OfLongConfig(list(range(200)), name="long"))
    with pytest.raises(ValueError, match="'long'.* to OfLongConfig: {'extra': 1}"):
        tfc.plan(model, tfc.PrunedTernary())
