"""Students, compared with the models that they are made of."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.graph.graph import Graph
from tfcompress.layers import QuantConv2D, QuantDense, QuantizedKernel
from tfcompress.quantizers import Uniform


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def dense_net(dtype="float32"):
    inputs = keras.Input((8,), dtype="float32")
    x = layers.Dense(8, activation="relu", dtype=dtype, name="a")(inputs)
    x = layers.Dense(8, activation="relu", dtype=dtype, name="b")(x)
    return keras.Model(inputs, layers.Dense(3, dtype=dtype, name="c")(x))


def with_value(value):
    model = dense_net()
    kernel = model.get_layer("b").get_weights()[0]
    kernel[1, 2] = value
    model.get_layer("b").kernel.assign(kernel)
    return model


def test_compress_leaves_the_model_untouched(trained):
    before = [np.array(weight) for weight in trained.get_weights()]
    nodes = [len(layer._outbound_nodes) for layer in trained.layers]
    student = tfc.compress(trained, tfc.PrunedTernary())
    student.get_layer("conv1").latent_kernel.assign(
        student.get_layer("conv1").latent_kernel * 0
    )
    assert [type(layer) for layer in trained.layers][1] is layers.Conv2D
    assert [len(layer._outbound_nodes) for layer in trained.layers] == nodes
    for old, new in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_student_starts_from_the_weights_of_the_model(trained):
    student = tfc.compress(trained, tfc.PrunedTernary())
    assert student.name == trained.name
    for old, new in zip(trained.layers[1:], student.layers[1:], strict=True):
        assert old.name == new.name
        if isinstance(new, QuantizedKernel):
            np.testing.assert_array_equal(old.kernel, new.latent_kernel)
        else:
            for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)
    assert isinstance(student.get_layer("conv1"), QuantConv2D)
    assert isinstance(student.get_layer("head"), QuantDense)


def test_student_with_8_bit_weights_predicts_nearly_as_the_model(trained, mnist):
    scheme = tfc.PrunedTernary(
        overrides={".*(conv|head).*": tfc.QuantizeConfig(Uniform(8))}
    )
    student = tfc.compress(trained, scheme)
    images = mnist[1][0][:200]
    expected = trained.predict(images, verbose=0)
    found = student.predict(images, verbose=0)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_weight_decay_is_half_the_squared_norm_and_keeps_own_regularizers():
    inputs = keras.Input((4,))
    own = keras.regularizers.L1(0.5)
    x = layers.Dense(4, kernel_regularizer=own, name="own")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="none")(x))
    student = tfc.compress(model, tfc.PrunedTernary(weight_decay=0.2))
    kernels = {
        layer.name: np.asarray(layer.latent_kernel) for layer in student.layers[1:]
    }
    expected = [
        0.5 * np.abs(kernels["own"]).sum(),
        0.2 / 2 * np.square(kernels["none"]).sum(),
    ]
    np.testing.assert_allclose(sorted(student.losses), sorted(expected), rtol=1e-5)


def test_shared_layers_stay_shared_in_the_student():
    inputs = keras.Input((8,))
    shared = layers.Dense(8, name="shared")
    model = keras.Model(inputs, layers.Dense(2)(shared(shared(inputs))))
    student = tfc.compress(model, tfc.PrunedTernary(first_last="ternary"))
    graph = Graph(student)
    assert len(graph.calls_of(graph.layers()["shared"])) == 2
    x = np.ones((2, 8), "float32")
    np.testing.assert_allclose(
        tfc.finalize(student)(x), student(x), rtol=1e-4, atol=1e-5
    )


def test_layers_of_nested_models_are_compressed(tmp_path):
    inner_in = keras.Input((8, 8, 4))
    y = layers.Conv2D(4, 3, padding="same", name="conv")(inner_in)
    inner = keras.Model(inner_in, layers.BatchNormalization()(y), name="inner")
    tail = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Flatten(), layers.Dense(3, name="dense")],
        name="tail",
    )
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    model = keras.Model(inputs, tail(inner(inner(x))))
    student = tfc.compress(model, tfc.PrunedTernary(first_last="ternary"))
    assert isinstance(student.get_layer("inner").get_layer("conv"), QuantConv2D)
    assert isinstance(student.get_layer("tail").get_layer("dense"), QuantDense)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    student.compile("sgd", "mse")
    student.fit(x, np.zeros((16, 3)), epochs=2, verbose=0)
    expected = student.predict(x, verbose=0)
    tiny = tfc.finalize(student)
    np.testing.assert_allclose(
        tiny.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
    )
    student.save(tmp_path / "student.keras")
    restored = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(restored.predict(x, verbose=0), expected)


def test_sequential_models_and_dict_inputs_are_compressed():
    sequential = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(2)])
    student = tfc.compress(sequential, tfc.PrunedTernary())
    assert student(np.ones((1, 4))).shape == (1, 2)

    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, {"out": layers.Dense(2)(layers.Dense(4)(x))})
    student = tfc.compress(model, tfc.PrunedTernary())
    data = {"a": np.ones((8, 4)), "b": np.zeros((8, 4))}
    student.compile("sgd", "mse")
    student.fit(data, {"out": np.ones((8, 2))}, verbose=0)
    found = tfc.finalize(student).predict(data, verbose=0)["out"]
    expected = student.predict(data, verbose=0)["out"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_mixed_precision_models_are_compressed_and_finalized():
    model = dense_net("mixed_bfloat16")
    student = tfc.compress(model, tfc.PrunedTernary())
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    student.compile("sgd", "mse")
    student.fit(x, np.zeros((32, 3)), verbose=0)
    found = tfc.finalize(student).predict(x, verbose=0)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        found, student.predict(x, verbose=0).astype("float32"), atol=0.1
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: keras.Sequential([layers.Dense(2)]), "keras.Input.*build"),
        (Subclassed, "is not built.*keras.Model\\(inputs, model.call\\(inputs\\)\\)"),
        (
            lambda: dense_net("float16"),
            "float32 weights.*'a/kernel' in float16.*mixed_",
        ),
        (lambda: dense_net("bfloat16"), "float32 weights.*in bfloat16"),
        (lambda: with_value(np.nan), "NaN or infinity in: b/kernel"),
        (lambda: with_value(np.inf), "NaN or infinity in: b/kernel"),
    ],
    ids=["not built", "subclassed", "float16", "bfloat16", "nan", "inf"],
)
def test_compress_refuses_models_without_a_graph_or_with_bad_weights(make, message):
    with pytest.raises(ValueError, match=message):
        tfc.compress(make(), tfc.PrunedTernary())


def test_compress_refuses_objects_that_are_no_keras_3_model():
    with pytest.raises(TypeError, match="Keras 3 model.*Received.*builtins.str"):
        tfc.compress("model.keras", tfc.PrunedTernary())
    tf_keras = pytest.importorskip("tf_keras")
    old = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(4,))])
    with pytest.raises(TypeError, match="Received.*tf_keras.*loaded in Keras 3"):
        tfc.compress(old, tfc.PrunedTernary())


@pytest.mark.parametrize("step", [tfc.plan, tfc.compress])
@pytest.mark.parametrize("scheme", ["ternary", None, tfc.PrunedTernary])
def test_objects_that_are_no_scheme_are_refused(step, scheme, trained):
    with pytest.raises(TypeError, match="A scheme is expected.*Received"):
        step(trained, scheme)


@pytest.mark.parametrize("step", [tfc.finalize, tfc.dequantize, tfc.summary])
@pytest.mark.parametrize("model", ["model.keras", None])
def test_objects_that_are_no_model_are_refused_by_all_steps(step, model):
    with pytest.raises(ValueError, match="Keras 3 model is expected. Received"):
        step(model)


def test_compress_refuses_models_without_compressible_layers(trained):
    inputs = keras.Input((4,))
    empty = keras.Model(inputs, layers.ReLU(name="relu")(inputs))
    with pytest.raises(ValueError, match="(?s)every layer is left alone.*relu"):
        tfc.compress(empty, tfc.PrunedTernary())
    student = tfc.compress(trained, tfc.PrunedTernary())
    with pytest.raises(ValueError, match="(?s)is compressed already"):
        tfc.compress(student, tfc.PrunedTernary())


def test_channel_of_zeros_trains_without_nan(trained, mnist):
    for name in ("conv1", "head"):
        layer = trained.get_layer(name)
        kernel = np.array(layer.kernel)
        kernel[..., 3] = 0
        layer.kernel.assign(kernel)
    student = tfc.compress(trained, tfc.PrunedTernary(0.6, first_last="ternary"))
    student.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(mnist[0][0][:512], mnist[0][1][:512], epochs=2, verbose=0)
    tiny = tfc.finalize(student)
    assert np.isfinite(tiny.predict(mnist[1][0][:10], verbose=0)).all()
    assert not tiny.get_layer("conv1").codes[..., 3].any()
