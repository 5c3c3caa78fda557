"""Layers made of several, such as attention, in every scheme, to a proven file."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.schemes.int8_files import export_int8
from tests.schemes.test_kinds_of_layers import SCHEMES
from tfcompress.cost import layer_costs, total_cost

SAMPLES = 32
rng = np.random.default_rng(0)


def block(x, name):
    """A block of a transformer, with 16 features and two heads."""
    attention = layers.MultiHeadAttention(2, 8, dropout=0.1, name=f"{name}_attention")
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, attention(y, y)])
    y = layers.LayerNormalization()(x)
    y = layers.Dense(32, activation="relu", name=f"{name}_up")(y)
    return layers.Add()([x, layers.Dense(16, name=f"{name}_down")(y)])


def image_transformer():
    inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(16, 4, strides=4, name="patches")(inputs)
    x = block(block(layers.Reshape((16, 16))(x), "first"), "second")
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def text_transformer():
    inputs = keras.Input((8,), dtype="int32")
    x = layers.Embedding(20, 16, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(block(x, "first"))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def frames():
    inputs = keras.Input((4, 8, 8, 2))
    image_net = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.SeparableConv2D(16, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ],
        name="image_net",
    )
    x = layers.TimeDistributed(image_net, name="frames")(inputs)
    x = layers.TimeDistributed(layers.Dense(16, activation="relu"), name="steps")(x)
    x = layers.EinsumDense("abc,cde->abde", (4, 4, 4), name="einsum")(x)
    x = layers.SpectralNormalization(layers.Dense(16), name="spectral")(
        layers.Flatten()(x)
    )
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


NETWORKS = {"image": image_transformer, "text": text_transformer, "frames": frames}


def data(model):
    shape = (SAMPLES, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        x = rng.integers(1, 20, shape) * (np.arange(8) < rng.integers(3, 9, (32, 1)))
        return x.astype("int32")
    return rng.normal(size=shape).astype("float32")


def trained(network, scheme, **arguments):
    keras.utils.set_random_seed(0)
    model = NETWORKS[network]()
    x = data(model)
    student = tfc.compress(model, scheme, **arguments)
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    y = rng.integers(2, size=SAMPLES)
    student.fit(x, y, batch_size=8, epochs=2, verbose=0)
    return model, student, x


def cases():
    """Every network in every scheme to all files; a few of these are quick."""
    for scheme in SCHEMES:
        for network in NETWORKS:
            files = ("size", "latency", "balanced")
            yield pytest.param(scheme, network, files, marks=pytest.mark.slow)
    for network in NETWORKS:
        yield "ternary", network, ("size",)


@pytest.mark.filterwarnings("ignore:.*of the weights are left alone")
@pytest.mark.parametrize("scheme, network, files", cases())
def test_each_scheme_ends_in_a_proven_file(scheme, network, files, tmp_path):
    _, student, x = trained(network, SCHEMES[scheme]())
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    expected = student.predict(x, verbose=0)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)
    tiny = tfc.finalize(loaded)
    np.testing.assert_allclose(tiny.predict(x, verbose=0), expected, atol=1e-3)
    for optimize in files:
        path = tmp_path / f"{optimize}.tflite"
        report = tfc.export(tiny, path, optimize=optimize, verify=x)
        # Operators that read integers round their inputs to 8 bits.
        assert report["agreement"]["top1"] >= (1 if optimize == "size" else 0.8)


@pytest.mark.parametrize("network", NETWORKS)
def test_nearly_all_weights_are_treated(network):
    model = NETWORKS[network]()
    plan = tfc.plan(model, tfc.PrunedTernary())
    rows = [row for row in plan.rows if not isinstance(row.layer, layers.Embedding)]
    treated = sum(row.layer.count_params() for row in plan.treated())
    assert treated >= 0.9 * sum(row.layer.count_params() for row in rows)


@pytest.mark.parametrize("network", NETWORKS)
def test_costs_of_a_model_are_those_of_its_student(network):
    model = NETWORKS[network]()
    student = tfc.compress(model, tfc.Uniform(4))
    before, after = (layer_costs(m) for m in (model, student))
    counted = {cost.name: cost.macs for cost in before if cost.macs}
    assert counted == {cost.name: cost.macs for cost in after if cost.macs}
    assert total_cost(before).params == total_cost(after).params
    head = 16 * 2
    if network == "image":
        attention = 4 * 16 * 16 * 16
        feed_forward = 2 * 16 * 16 * 32
        patches = 16 * 4 * 4 * 16
        assert (
            total_cost(before).macs == patches + 2 * (attention + feed_forward) + head
        )
    if network == "frames":
        convolution = 4 * 6 * 6 * (3 * 3 * 2 + 2 * 16)
        dense = 4 * 16 * 16 + 4 * 16 * 16 + 4 * 16 * 16
        assert total_cost(before).macs == convolution + dense + head


@pytest.mark.slow
def test_students_with_attention_are_distilled():
    _, student, x = trained("image", tfc.Uniform(4), distill=True)
    assert np.isfinite(student.predict(x, verbose=0)).all()


@keras.saving.register_keras_serializable("tests")
class Doubled(keras.Model):
    """Model with a training step of its own."""

    def train_step(self, data):
        return {**super().train_step(data), "steps": keras.ops.ones(())}


@pytest.mark.slow
def test_students_of_user_classes_have_attention():
    plain = image_transformer()
    model = Doubled(inputs=plain.inputs, outputs=plain.outputs, name="own")
    student = tfc.compress(model, tfc.Uniform(4))
    assert isinstance(student, Doubled)
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    x = data(model)
    logs = student.fit(x, np.zeros(SAMPLES), verbose=0).history
    assert logs["steps"] == [1.0]
    tfc.finalize(student)


@pytest.mark.slow
def test_integer_files_have_the_codes_of_attention(tmp_path):
    _, student, x = trained("image", tfc.Uniform(4, 8))
    tiny = tfc.finalize(student)
    report = export_int8(tiny, tmp_path, x)
    stored = {row["layer"] for row in report["tensors"]}
    assert "first_attention/query_dense" in stored
    assert report["agreement"]["top1"] > 0.8


@pytest.mark.slow
def test_files_for_microcontrollers_compute_attention(tmp_path):
    _, student, x = trained("image", tfc.Uniform(4))
    path = tmp_path / "micro.tflite"
    report = tfc.export(
        tfc.finalize(student), path, target="micro", verify=x, representative_data=x
    )
    assert report["agreement"]["top1"] > 0.8
