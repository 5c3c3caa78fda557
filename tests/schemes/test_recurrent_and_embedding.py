"""Embeddings and recurrent layers in every scheme, to a proven file."""

import functools
import itertools

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.cases import few_quick
from tests.schemes.int8_files import export_int8
from tfcompress.layers import PackedKernel

WORDS, STEPS = 40, 6
SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(0.5),
    "uniform": lambda: tfc.Uniform(4),
    "bits": lambda: tfc.BitSharing(penalty=0.1),
    "size": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "ranks": lambda: tfc.Decomposition("6/7"),
}


def text_classifier():
    words = keras.Input((STEPS,), dtype="int32")
    x = layers.Embedding(WORDS, 12, mask_zero=True, name="embedding")(words)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(words, layers.Dense(2)(layers.Dense(8, activation="relu")(x)))


def language_model():
    words = keras.Input((STEPS,), dtype="int32")
    embedding = layers.ReversibleEmbedding(WORDS, 12)
    x = layers.GlobalAveragePooling1D()(layers.Dense(12)(embedding(words)))
    return keras.Model(words, embedding(x, reverse=True))


def recurrent(kind, **arguments):
    def make():
        words = keras.Input((STEPS,), dtype="int32")
        x = layers.Embedding(WORDS, 12, mask_zero=True)(words)
        x = kind(8, return_sequences=True, dropout=0.1, **arguments)(x)
        x = kind(8, go_backwards=True, **arguments)(x)
        return keras.Model(words, layers.Dense(2)(x))

    return make


def convolutional(kind, shape):
    def make():
        words = keras.Input((STEPS,), dtype="int32")
        x = layers.Reshape((STEPS, *shape))(layers.Embedding(WORDS, 12)(words))
        x = kind(4, 3, padding="same", return_sequences=True, dropout=0.1)(x)
        x = kind(4, 2, recurrent_dropout=0.1)(x)
        return keras.Model(words, layers.Dense(2)(layers.Flatten()(x)))

    return make


NETS = {
    "text": text_classifier,
    "reversible": language_model,
    "lstm": recurrent(layers.LSTM),
    "gru": recurrent(layers.GRU),
    "gru, reset before": recurrent(layers.GRU, reset_after=False, unroll=True),
    "simple": recurrent(layers.SimpleRNN, recurrent_dropout=0.1),
    "conv, one axis": convolutional(layers.ConvLSTM1D, (6, 2)),
    "conv, two axes": convolutional(layers.ConvLSTM2D, (3, 2, 2)),
}


def trained(net, scheme):
    keras.utils.set_random_seed(0)
    student = tfc.compress(NETS[net](), SCHEMES[scheme]())
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    x = rng.integers(WORDS, size=(32, STEPS))
    x[:5, 4:] = 0
    student.fit(x, rng.integers(2, size=32), batch_size=16, epochs=2, verbose=0)
    return student, x


def is_quick(scheme, net):
    has_loop = net.startswith(("lstm", "gru", "simple", "conv"))
    return scheme == "ternary" and (net == "lstm" or not has_loop)


@pytest.mark.filterwarnings("ignore:.*of the weights are left alone")
@pytest.mark.filterwarnings("ignore:The file takes 1 sample at a time")
@pytest.mark.parametrize(
    "scheme, net", few_quick(itertools.product(SCHEMES, NETS), is_quick)
)
def test_each_scheme_ends_in_a_proven_file(scheme, net, tmp_path):
    student, x = trained(net, scheme)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    tiny = tfc.finalize(student)
    tiny.save(tmp_path / "tiny.keras")
    expected = student.predict(x, verbose=0)
    for model in (loaded, tiny, keras.models.load_model(tmp_path / "tiny.keras")):
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    packed = {x.name for x in tiny.layers if isinstance(x, PackedKernel)}
    for optimize in ("size", "latency"):
        path = tmp_path / f"{optimize}.tflite"
        report = tfc.export(tiny, path, optimize=optimize, verify=x)
        assert {row["layer"] for row in report["tensors"]} == packed
        assert report["agreement"]["top1"] >= (1 if optimize == "size" else 0.9)
        assert tfc.litert.check(path, tiny, x)["agreement"] == report["agreement"]


@pytest.mark.parametrize("scheme", ["ternary", "uniform", "bits", "size"])
@pytest.mark.parametrize("net", NETS)
def test_nearly_all_weights_are_treated(net, scheme):
    plan = tfc.plan(NETS[net](), SCHEMES[scheme]())
    treated = sum(row.layer.count_params() for row in plan.treated())
    assert treated == plan.model.count_params()


@pytest.mark.parametrize(
    "scheme",
    [
        tfc.Uniform(4, 4),
        tfc.BitSharing("1/10"),
        tfc.PrunedTernary(activation_bits=8),
        tfc.SizeConstrained(value_bits="1/10", activation_bits=8),
    ],
)
def test_indices_and_states_are_not_quantized(scheme):
    for row in tfc.plan(NETS["lstm"](), scheme).treated():
        has_float_input = isinstance(row.layer, layers.Dense)
        assert (row.config.input_quantizer is not None) == has_float_input
        assert ("input" in row.treatment) == has_float_input


def test_embedding_is_no_first_layer_and_the_next_one_neither():
    plan = tfc.plan(NETS["text"](), tfc.PrunedTernary())
    found = [row.treatment for row in plan.treated()]
    assert found == ["ternary weights", "ternary weights", "8-bit weights"]


def test_override_of_a_recurrent_layer_holds_for_both_parts():
    model = NETS["lstm"]()
    name = model.layers[2].name
    plan = tfc.plan(model, tfc.PrunedTernary(overrides={name: tfc.KeepFloat()}))
    kept = [row.name for row in plan.rows if "on request" in row.treatment]
    assert kept == [f"{name}_dropout", f"{name}_input", name]


def test_frozen_recurrent_layer_is_left_alone():
    model = NETS["lstm"]()
    layer = model.layers[2]
    layer.trainable = False
    reasons = {row.name: row.reason for row in tfc.plan(model, tfc.Uniform()).rows}
    assert (
        "frozen" in reasons[layer.name] and "frozen" in reasons[f"{layer.name}_input"]
    )
    treated = {r.name for r in tfc.plan(model, tfc.Uniform(), unfreeze=True).treated()}
    assert {layer.name, f"{layer.name}_input"} <= treated


def test_untied_embedding_is_left_alone_with_a_reason():
    words = keras.Input((STEPS,), dtype="int32")
    embedding = layers.ReversibleEmbedding(WORDS, 12, tie_weights=False, name="table")
    model = keras.Model(
        words, embedding(layers.Dense(12)(embedding(words)), reverse=True)
    )
    rows = {row.name: row for row in tfc.plan(model, tfc.PrunedTernary()).rows}
    assert (
        rows["table"].treatment == "left alone: has a second table, tie_weights=False"
    )


def test_table_has_no_weight_decay():
    student = tfc.compress(NETS["text"](), tfc.PrunedTernary(weight_decay=1e-2))
    assert student.layers[1].embeddings_regularizer is None
    assert len(student.losses) == 2  # of the dense layers


def test_dequantized_student_predicts_the_same():
    student, x = trained("lstm", "ternary")
    plain = tfc.dequantize(student)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-5
    )


def integer_report(net, folder):
    student, x = trained(net, "uniform")
    return export_int8(tfc.finalize(student), folder, x)


@pytest.mark.parametrize("net", ["text", "reversible"])
def test_integer_files_have_the_codes_of_tables(net, tmp_path):
    report = integer_report(net, tmp_path)
    assert report["agreement"]["top1"] > 0.8
    assert "INT4" in {row["type"] for row in report["tensors"]}


UNROLLED = pytest.mark.parametrize(
    "kind, shape",
    few_quick(
        [
            (layers.LSTM, (4, 5)),
            (layers.GRU, (4, 5)),
            (functools.partial(layers.GRU, reset_after=False), (4, 5)),
            (layers.SimpleRNN, (4, 5)),
            (functools.partial(layers.ConvLSTM1D, kernel_size=3), (4, 5, 2)),
            (functools.partial(layers.ConvLSTM2D, kernel_size=3), (4, 5, 4, 2)),
        ],
        lambda kind, shape: kind in (layers.LSTM, layers.GRU),
    ),
)


def unrolled(kind, shape, units, bits, batch_size=None):
    """`(finalized model with a layer named "steps", samples)` after an epoch."""
    keras.utils.set_random_seed(2)  # some scales are equal up to rounding alone
    inputs = keras.Input(batch_shape=(batch_size, *shape))
    x = layers.Flatten()(kind(units, unroll=True, name="steps")(inputs))
    student = tfc.compress(keras.Model(inputs, layers.Dense(2)(x)), tfc.Uniform(*bits))
    student.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(32, *shape))
    student.fit(x, np.zeros((32, 2)), verbose=0, batch_size=batch_size)
    return tfc.finalize(student), x


@UNROLLED
def test_integer_files_have_unrolled_layers(kind, shape, tmp_path):
    check_integer_file(*unrolled(kind, shape, 8, (8, 8)), tmp_path)


def test_integer_files_of_one_sample_have_unrolled_layers(tmp_path):
    # The converter leaves the first step's state of zeros out, but not its gates.
    check_integer_file(*unrolled(layers.LSTM, (4, 5), 8, (8, 8), 1), tmp_path)


def check_integer_file(tiny, x, tmp_path):
    report = export_int8(tiny, tmp_path, x)
    assert report["agreement"]["top1"] > 0.8
    assert "steps" in {row["layer"] for row in report["tensors"]}


@pytest.mark.filterwarnings("ignore:TensorFlow Lite Micro and Keras have")
@UNROLLED
def test_files_of_microcontrollers_have_unrolled_layers(kind, shape, tmp_path):
    pytest.importorskip("tflite_micro")
    tiny, x = unrolled(kind, shape, 40, (2,))
    report = tfc.export(
        tiny, tmp_path / "micro.tflite", verify=x,
        target="micro", representative_data=x,
    )  # fmt: skip
    assert report["agreement"]["top1"] > 0.8
    encodings = {row["tensor"]: row["encoding"] for row in report["tensors"]}
    assert encodings["steps"] == "Huffman"


def test_integer_files_refuse_loops_over_steps(tmp_path):
    with pytest.raises(ValueError, match="build recurrent layers with unroll=True"):
        integer_report("lstm", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:TensorFlow Lite Micro and Keras have")
@pytest.mark.parametrize("net", ["text", "reversible"])
def test_files_of_microcontrollers_have_embeddings(net, tmp_path):
    pytest.importorskip("tflite_micro")
    student, x = trained(net, "uniform")
    report = tfc.export(
        tfc.finalize(student), tmp_path / "m.tflite", x, target="micro",
        representative_data=x,
    )  # fmt: skip
    assert report["agreement"]["top1"] > 0.7
    assert "embedding" in report["tensors"][0]["tensor"]


def test_files_of_stateful_layers_are_refused(tmp_path):
    inputs = keras.Input(batch_shape=(2, 5, 3))
    x = layers.Dense(2)(layers.LSTM(4, stateful=True, name="lstm")(inputs))
    student = tfc.compress(keras.Model(inputs, x), tfc.Uniform())
    student.compile("adam", "mse")
    rng = np.random.default_rng(0)
    student.fit(rng.normal(size=(4, 5, 3)), np.zeros((4, 2)), batch_size=2, verbose=0)
    tiny = tfc.finalize(student)
    with pytest.raises(ValueError, match="'lstm' with stateful=True"):
        tfc.export(tiny, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_batch_normalization_after_them_is_not_folded():
    words = keras.Input((STEPS,), dtype="int32")
    x = layers.BatchNormalization()(layers.Embedding(WORDS, 12)(words))
    x = layers.LSTM(8, activation=None, return_sequences=True)(x)
    x = layers.Flatten()(layers.BatchNormalization()(x))
    student = tfc.compress(keras.Model(words, layers.Dense(2)(x)), tfc.Uniform(8))
    student.compile("adam", "mse")
    x = np.random.default_rng(0).integers(WORDS, size=(32, STEPS))
    student.fit(x, np.zeros((32, 2)), verbose=0)
    tiny = tfc.finalize(student)
    kinds = [type(layer) for layer in tiny.layers]
    assert kinds.count(layers.BatchNormalization) == 2
    np.testing.assert_allclose(
        tiny.predict(x, verbose=0), student.predict(x, verbose=0), atol=1e-5
    )
