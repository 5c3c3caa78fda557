"""Tables of embeddings: rows of INT8 in flash."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.litert.packed_models import make_packed
from tfcompress.compat.litert_private import schema
from tfcompress.litert import flatbuffer
from tfcompress.micro import tables
from tfcompress.micro.operators import operator_name
from tfcompress.micro.runtime import MicroRunner, sufficient_arena

pytestmark = pytest.mark.filterwarnings("ignore:TensorFlow Lite Micro and Keras have")
WORDS, STEPS = 30, 6


@pytest.fixture(autouse=True)
def needs_the_runtime(runtime):
    """Skips these tests where the runtime is not installed."""


def tokens(dtype="int32"):
    return keras.Input((STEPS,), dtype=dtype)


def plain(dtype="int32", name="table"):
    words = tokens(dtype)
    x = kl.Conv1D(16, 3, activation="relu")(kl.Embedding(WORDS, 8, name=name)(words))
    return words, kl.Dense(3)(kl.GlobalAveragePooling1D()(x))


def kept_float():
    return plain(name="float_table")


def of_float_inputs():
    return plain("float32")


def few_rows():
    words = tokens()
    x = kl.Embedding(2, 64, name="table")(words)  # other numbers are no tokens
    return words, kl.Dense(3)(kl.Flatten()(kl.Dense(90, activation="relu")(x)))


def masked():
    words = tokens()
    x = kl.Embedding(WORDS, 8, mask_zero=True, name="table")(words)
    return words, kl.Dense(3)(kl.GlobalAveragePooling1D()(x))


def unrolled():
    words = tokens()
    x = kl.Embedding(WORDS, 8, name="table")(words)
    return words, kl.Dense(3)(kl.LSTM(4, unroll=True)(x))


def read_twice():
    words = [tokens(), tokens()]
    table = kl.Embedding(WORDS, 8, name="table")
    x = kl.Concatenate()([table(x) for x in words])
    return words, kl.Dense(3)(kl.Flatten()(x))


def reversible():
    words = tokens()
    table = kl.ReversibleEmbedding(WORDS, 8, name="table")
    return words, table(kl.GlobalAveragePooling1D()(table(words)), reverse=True)


def exported(build, path):
    """`(packed model, samples, report, content)` of a network."""
    keras.utils.set_random_seed(0)
    model = make_packed(keras.Model(*build()), (4,))
    rng = np.random.default_rng(0)
    rows = min(WORDS, model.get_layer(index=len(model.inputs)).input_dim)
    samples = [rng.integers(0, rows, (40, STEPS)).astype(x.dtype) for x in model.inputs]
    samples = samples if len(samples) > 1 else samples[0]
    report = tfc.export(
        model, path, samples, representative_data=samples, target="micro"
    )
    return model, samples, report, path.read_bytes()


@pytest.mark.parametrize(
    "build",
    [
        plain, kept_float, of_float_inputs, few_rows, masked, unrolled, read_twice,
        reversible,
    ],
)  # fmt: skip
def test_rows_stay_int8_in_flash(build, tmp_path):
    *_, report, content = exported(build, tmp_path / "model.tflite")
    name = "float_table" if build is kept_float else "table"
    row = report["tensors"][0]
    assert (row["tensor"], row["encoding"]) == (name, "INT8")
    assert "would decode the whole table" in row["reason"]
    assert report["agreement"]["top1"] > 0.8
    file = flatbuffer.read(content)
    names = [operator_name(file, x) for x in file.subgraphs[0].operators]
    assert names.count("GATHER") == (2 if build is read_twice else 1)
    assert build is masked or not {"SELECT", "SELECT_V2", "LESS"} & set(names)


def test_rows_are_the_trained_ones_rounded_once(tmp_path):
    model, _, _, content = exported(plain, tmp_path / "model.tflite")
    file = flatbuffer.read(content)
    ((gather, table),) = tables._gathers(file, file.subgraphs[0])
    layer = model.get_layer("table")
    values = layer.codes * keras.ops.convert_to_numpy(layer.kernel_scale)
    scale = table.quantization.scale[0]
    expected = np.clip(np.round(values / scale), -128, 127)
    found = flatbuffer.constant(file, table).view(np.int8).reshape(WORDS, 8)
    np.testing.assert_array_equal(found, expected)
    assert found.max() == 127
    output = file.subgraphs[0].tensors[gather.outputs[0]]
    assert output.quantization.scale[0] == scale


@pytest.mark.parametrize(
    "build, kind", [(plain, "INT32"), (of_float_inputs, "FLOAT32")]
)
def test_tokens_keep_the_type_of_the_input(build, kind, tmp_path):
    *_, content = exported(build, tmp_path / "model.tflite")
    graph = flatbuffer.read(content).subgraphs[0]
    expected = getattr(schema.TensorType, kind)
    assert graph.tensors[graph.inputs[0]].type == expected


def test_negative_tokens_are_refused_by_the_runtime(runtime, tmp_path):
    _, samples, _, content = exported(plain, tmp_path / "model.tflite")
    runner = MicroRunner(runtime, content, "model")
    runner([samples])
    with pytest.raises(ValueError, match="Node GATHER"):
        runner([samples - WORDS])


def test_damaged_table_is_found(tmp_path):
    *_, content = exported(plain, tmp_path / "model.tflite")
    file = flatbuffer.read(content)
    ((_, table),) = tables._gathers(file, file.subgraphs[0])
    codes = flatbuffer.constant(file, table).view(np.int8)
    tables.check_tables(content, {"table": codes})
    with pytest.raises(ValueError, match=r"something else for \['table'\]"):
        tables.check_tables(content, {"table": codes[::-1]})


def test_runtime_takes_indices_of_32_bits_alone(runtime, tmp_path):
    *_, content = exported(plain, tmp_path / "model.tflite")
    for kind in ("INT32", "INT16", "INT64", "INT8"):
        file = flatbuffer.read(content)
        (graph,) = file.subgraphs
        graph.tensors[graph.inputs[0]].type = getattr(schema.TensorType, kind)
        changed = flatbuffer.write(file)
        if kind == "INT32":
            runtime("load", kind, changed, sufficient_arena(changed))
            continue
        with pytest.raises(ValueError, match="Positions of type .* are not supported"):
            runtime("load", kind, changed, sufficient_arena(changed))
