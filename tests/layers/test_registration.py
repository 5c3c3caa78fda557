import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.own_layers import NETWORKS, Product, images
from tfcompress.cost import layer_costs
from tfcompress.layers.registry import forms_of


def student_of(name="own kernel"):
    return tfc.compress(NETWORKS[name](), tfc.PrunedTernary(0.5))


def test_form_in_training_computes_with_the_quantized_kernel():
    student = student_of()
    layer = student.get_layer("two")
    assert isinstance(layer, Product) and isinstance(layer, tfc.layers.QuantizedKernel)
    codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.matrix), codes * scale)
    x = np.ones((2, 16), "float32")
    expected = x @ (codes * scale) * ops.convert_to_numpy(layer.gain)
    np.testing.assert_allclose(layer(x), np.maximum(expected, 0), rtol=1e-5)


def test_form_in_inference_stores_codes_in_place_of_the_kernel():
    layer = tfc.finalize(student_of()).get_layer("two")
    assert isinstance(layer, tfc.layers.PackedKernel)
    assert [x.dtype for x in layer.weights if x.shape == (16, 24)] == []
    assert sum(x.dtype == "uint8" for x in layer.weights) == 1
    assert layer.codes.shape == (16, 24)
    assert len(layer.weights) == 3  # gain, scales, codes


def test_kernel_of_mixed_precision_is_quantized_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = student_of()
    finally:
        keras.config.set_dtype_policy("float32")
    layer = student.get_layer("two")
    assert layer.matrix.dtype == "bfloat16"
    codes, scale = layer.kernel_quantizer.encode(layer.latent_kernel)
    expected = ops.cast(codes * scale, "bfloat16")
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (layer.matrix, expected)))


@tfc.layers.register(channel_axes=-2)
class Unknown(layers.Layer):
    """Layer of an unknown number of products, whose channels are on the first axis."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(6, input_shape[-1]), name="kernel")
        self.bias = self.add_weight(shape=(6,), name="bias")

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(self.kernel)) + self.bias


def unknown_net():
    inputs = keras.Input((8,))
    x = layers.Dense(8, activation="relu")(layers.Dense(8)(inputs))
    return keras.Model(inputs, layers.Dense(2)(Unknown(name="own")(x)))


def test_macs_are_counted_by_the_function_that_is_registered_or_not_at_all():
    costs = {cost.name: cost for cost in layer_costs(NETWORKS["own kernel"]())}
    assert costs["two"].macs == 16 * 24 * 5 * 5
    assert costs["two"].params == 16 * 24 + 24
    tiny = tfc.finalize(tfc.compress(unknown_net(), tfc.Uniform(4)))
    cost = next(cost for cost in layer_costs(tiny) if cost.name == "own")
    assert cost.macs is None and cost.not_counted and not cost.open_size
    assert cost.weights == 6 * 8 and cost.params == 6 * 8 + 6


@pytest.mark.parametrize(
    "scheme", [tfc.PrunedTernary(0.5), tfc.Uniform(4), tfc.BitSharing("1/40")]
)
def test_layer_with_channels_on_another_axis_ends_in_a_proven_file(scheme, tmp_path):
    model, x = unknown_net(), np.random.default_rng(0).normal(size=(32, 8))
    student = tfc.compress(model, scheme)
    student.compile("adam", "mse")
    student.fit(x, np.ones((32, 2)), epochs=2, verbose=0)
    tiny = tfc.finalize(student)
    assert tiny.get_layer("own").kernel_scale.shape == (6, 1)
    np.testing.assert_allclose(tiny(x), student(x), atol=1e-3)
    tfc.export(tiny, tmp_path / "tiny.tflite", verify=x.astype("float32"))


@tfc.layers.register(kernel="w")
class Squared(layers.Layer):
    """Layer that computes with another matrix than its kernel."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], 6), initializer="he_normal")

    def call(self, inputs):
        return ops.matmul(inputs, ops.tanh(self.w) + 0.1)


def test_file_of_a_layer_that_changes_its_kernel_is_refused_with_the_reason(tmp_path):
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2)(Squared(name="own")(inputs)))
    tiny = tfc.finalize(tfc.compress(model, tfc.PrunedTernary(0.5)))
    with pytest.raises(ValueError, match="'own'.*computes with other values"):
        tfc.export(tiny, tmp_path / "tiny.tflite")


class InConstructor(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kernel = self.add_weight(shape=(8, 6))

    def build(self, input_shape):
        pass

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


class TwoInputs(Unknown):
    def build(self, input_shape):
        super().build(input_shape[0])

    def call(self, inputs):
        return super().call(inputs[0]) + inputs[1][:, :1]


def test_layers_without_one_kernel_and_one_input_are_left_alone_with_the_reason():
    tfc.layers.register(TwoInputs)
    inputs = keras.Input((8,))
    x = TwoInputs(name="own")([inputs, inputs])
    model = keras.Model(inputs, layers.Dense(2)(x))
    rows = {row.name: row for row in tfc.plan(model, tfc.PrunedTernary()).rows}
    assert rows["own"].reason == "takes several inputs"
    tfc.layers.register(InConstructor)
    model = keras.Model(inputs, layers.Dense(2)(InConstructor(name="own")(inputs)))
    rows = {row.name: row for row in tfc.plan(model, tfc.PrunedTernary()).rows}
    assert rows["own"].reason == "makes its kernel `kernel` in its constructor"
    other = tfc.layers.register(type("Other", (Unknown,), {}), kernel="missing")
    model = keras.Model(inputs, layers.Dense(2)(other(name="own")(inputs)))
    rows = {row.name: row for row in tfc.plan(model, tfc.PrunedTernary()).rows}
    assert rows["own"].reason == "has no variable `missing`"


@pytest.mark.parametrize(
    "cls, arguments, error, message",
    [
        (Product(3), {}, TypeError, "the class itself"),
        (layers.Dense, {}, ValueError, "class of your own.*Dense"),
        (type("A", (layers.Layer,), {}), {}, ValueError, "`build\\(self, input_shape"),
        (Unknown, {"channel_axes": 1}, ValueError, "negative.*\\(1,\\)"),
        (Unknown, {"channel_axes": ()}, ValueError, "negative"),
    ],
)
def test_register_refuses_what_it_cannot_register(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        tfc.layers.register(cls, **arguments)


def test_decomposition_leaves_registered_layers_alone():
    plan = tfc.plan(NETWORKS["own kernel"](), tfc.Decomposition(macs="3/4"))
    assert {row.name for row in plan.treated()} == {"stem", "head"}


def test_subclass_of_a_registered_class_is_registered_by_itself():
    class Derived(Product):
        pass

    assert forms_of(Derived(3)) is None


LOAD = """
import sys, keras, tfcompress as tfc
if sys.argv[2] == "registered":
    import tests.own_layers
keras.models.load_model(sys.argv[1])
"""


@pytest.mark.slow
def test_files_load_where_the_class_is_registered_and_say_so_elsewhere(tmp_path):
    path = tmp_path / "tiny.keras"
    tfc.finalize(student_of()).save(path)
    for how in ("registered", "unknown"):
        command = [sys.executable, "-c", LOAD, str(path), how]
        run = subprocess.run(command, capture_output=True, text=True)
        assert (run.returncode == 0) == (how == "registered"), run.stderr[-2000:]
    assert "PackedProduct" in run.stderr
    assert images().shape == (32, 12, 12, 3)
