"""Plans of a compression."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.core import Scheme
from tfcompress.graph.channels import Channels
from tfcompress.quantizers import Ternary, Uniform


def treatments(model, scheme):
    return {row.name: row.treatment for row in tfc.plan(model, scheme).rows}


def two_branches():
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(4, 3, padding="same", name="first_a")(inputs)
    b = layers.Conv2D(4, 1, name="first_b")(inputs)
    x = layers.Add(name="add")([a, b])
    x = layers.DepthwiseConv2D(3, name="inner")(x)
    x = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(x))
    outputs = [layers.Dense(2, name="last_a")(x), layers.Dense(3, name="last_b")(x)]
    return keras.Model(inputs, outputs)


def test_plan_has_a_treatment_or_a_reason_per_layer():
    assert treatments(two_branches(), tfc.PrunedTernary()) == {
        "first_a": "8-bit weights",
        "first_b": "8-bit weights",
        "add": "left alone: has no weights",
        "inner": "ternary weights",
        "relu": "left alone: has no weights",
        "flatten": "left alone: has no weights",
        "last_a": "8-bit weights",
        "last_b": "8-bit weights",
    }


@pytest.mark.parametrize(
    "first_last, expected",
    [
        ("ternary", "ternary weights"),
        ("float", "left alone: first or last layer, first_last='float'"),
    ],
)
def test_first_and_last_layers_are_treated_as_asked_for(first_last, expected):
    found = treatments(two_branches(), tfc.PrunedTernary(first_last=first_last))
    assert {found[name] for name in ("first_a", "first_b", "last_a", "last_b")} == {
        expected
    }
    assert found["inner"] == "ternary weights"


@pytest.mark.parametrize(
    "scheme, expected",
    [
        (tfc.PrunedTernary(first_last="ternary"), "ternary weights"),
        (tfc.Uniform(3, 5), "3-bit weights, 5-bit inputs"),
        (
            tfc.BitSharing(bops="1/40", group_size=None),
            "2/4/8-bit weights, 2/4/8-bit inputs",
        ),
        (
            tfc.BitSharing(bops="1/60", weight_bits=(2, 4), group_size=None),
            "2/4-bit weights, 2/4/8-bit inputs",
        ),
        (tfc.SizeConstrained("1/10"), "weights from a codebook of at most 8 bits"),
        (tfc.Decomposition(macs="1/2"), "basis x coefficients, svd start"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scheme) else "",
)
def test_plan_describes_a_treatment_in_the_terms_of_its_scheme(
    trained, scheme, expected
):
    text, _, _ = treatments(trained, scheme)["conv1"].partition("; ")
    assert text == expected


def test_plan_gives_reasons_for_unsupported_layers():
    inputs = keras.Input((8, 8, 3))
    x = layers.EinsumDense("abcd,cd->abcd", (8, 8, 3), name="einsum")(inputs)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    lora = layers.Dense(4, name="lora")
    x = lora(layers.Dense(4, name="int8")(layers.Flatten()(x)))
    model = keras.Model(inputs, x)
    lora.enable_lora(2)
    model.get_layer("int8").quantize("int8")
    found = treatments(model, tfc.PrunedTernary())
    assert "'abcd,cd->abcd', which is no product of matrices" in found["einsum"]
    assert "batch normalization" in found["bn"]
    assert "LoRA" in found["lora"]
    assert "quantized by Keras (int8)" in found["int8"]
    assert found["conv"] == "8-bit weights"


def test_overrides_match_by_name_and_by_pattern(trained):
    scheme = tfc.PrunedTernary(
        overrides={
            "conv1": tfc.KeepFloat("its output is read elsewhere"),
            "conv.*": tfc.QuantizeConfig(Uniform(4)),
            "head": tfc.QuantizeConfig(Ternary(sparsity=0.5)),
        }
    )
    found = treatments(trained, scheme)
    assert found["conv0"] == found["conv2"] == "4-bit weights"
    assert found["conv1"] == "left alone: its output is read elsewhere"
    assert found["head"] == "ternary weights"


def test_override_by_a_pattern_is_for_the_layers_that_can_be_compressed(trained):
    overrides = {".*": tfc.QuantizeConfig(Uniform(4))}
    found = treatments(trained, tfc.PrunedTernary(overrides=overrides))
    assert {x for x in found.values() if "left alone" not in x} == {"4-bit weights"}
    assert "left alone: has no weights" in found.values()


@pytest.mark.parametrize("units, warns", [(4, False), (64, True)])
@pytest.mark.parametrize("is_asked", [False, True])
def test_large_share_without_a_form_is_warned_of(units, warns, is_asked):
    inputs = keras.Input((5, 4))
    lstm = layers.RNN(layers.LSTMCell(units), name="lstm")
    x = layers.Dense(8, name="dense")(lstm(inputs))
    model = keras.Model(inputs, layers.Dense(600, name="head")(x))
    overrides = {"lstm": tfc.KeepFloat()} if is_asked else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tfc.compress(model, tfc.PrunedTernary(overrides=overrides))
    found = [str(x.message) for x in caught if "left alone" in str(x.message)]
    assert len(found) == (warns and not is_asked)
    assert all("'lstm', of type RNN: only layers of" in text for text in found)


def test_layers_of_nested_models_are_named_by_their_path():
    inner = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, name="dense")], name="inner"
    )
    inputs = keras.Input((8,))
    x = layers.Dense(8, name="stem")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(inner(x)))
    overrides = {"inner/dense": tfc.KeepFloat()}
    found = treatments(model, tfc.PrunedTernary(overrides=overrides))
    assert found["inner/dense"] == "left alone: kept float on request"


def test_printed_plan_has_a_row_per_layer(trained):
    lines = str(tfc.plan(trained, tfc.PrunedTernary())).splitlines()
    row = next(line for line in lines if "conv1" in line)
    assert row.split() == ["conv1", "Conv2D", "1,152", "ternary", "weights"]


@pytest.mark.parametrize("scheme", [tfc.BitSharing("1/20"), tfc.Decomposition("1/2")])
def test_plan_follows_the_channels_once(scheme, trained, monkeypatch):
    graphs = []
    follow = Channels.__init__

    def counted(channels, graph):
        graphs.append(graph)
        follow(channels, graph)

    monkeypatch.setattr(Channels, "__init__", counted)
    assert graphs == [tfc.plan(trained, scheme).graph]


def test_wrong_overrides_are_refused(trained):
    with pytest.raises(ValueError, match="Received: 'con0'; of .* similar are conv0"):
        tfc.plan(trained, tfc.PrunedTernary(overrides={"con0": tfc.KeepFloat()}))
    with pytest.raises(ValueError, match="'bn0' asks for.*'bn0': batch norm"):
        overrides = {"bn0": tfc.QuantizeConfig(Ternary())}
        tfc.plan(trained, tfc.PrunedTernary(overrides=overrides))
    for wrong in [("conv0", tfc.KeepFloat())], "conv0", {0: tfc.KeepFloat()}, 0:
        with pytest.raises(TypeError, match="`overrides` is a dict.*Received"):
            tfc.PrunedTernary(overrides=wrong)
    with pytest.raises(TypeError, match="Received: 'float' for 'conv0'"):
        tfc.PrunedTernary(overrides={"conv0": "float"})
    with pytest.raises(ValueError, match="regular expression.*'conv\\('"):
        tfc.PrunedTernary(overrides={"conv(": tfc.KeepFloat()})
    with pytest.raises(TypeError, match="`kernel_quantizer` is a"):
        tfc.QuantizeConfig("ternary")


def test_layer_that_no_output_depends_on_is_left_alone(tmp_path):
    """The converter drops it, so that its codes would be in no file."""
    inputs = keras.Input((8,))
    x = layers.Dense(6, name="used")(inputs)
    inner = keras.Model(inputs, [x, layers.Dense(5, name="unused")(x)], name="inner")
    model = keras.Model(inputs, layers.Dense(4, name="head")(inner(inputs)[0]))
    scheme = tfc.PrunedTernary()
    rows = {row.name: row for row in tfc.plan(model, scheme).rows}
    assert "no output of the model depends" in rows["inner/unused"].reason
    assert rows["inner/used"].config is not None
    student = tfc.compress(model, scheme)
    batch = np.ones((4, 8), "float32")
    tfc.export(tfc.finalize(student), tmp_path / "tiny.tflite", verify=batch)


def test_compress_warns_with_the_reason_of_a_layer_that_stays_whole():
    inputs = keras.Input((6, 16))
    shared = keras.layers.MultiHeadAttention(2, 16, name="shared")
    x = shared(shared(inputs, inputs), inputs, use_causal_mask=True)
    model = keras.Model(inputs, layers.Dense(4, name="head")(x))
    assert "several kinds" in treatments(model, tfc.PrunedTernary())["shared"]
    with pytest.warns(UserWarning, match="'shared', .*arguments of several kinds"):
        tfc.compress(model, tfc.PrunedTernary())
    asked = {"shared": tfc.KeepFloat("as it is")}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tfc.compress(model, tfc.PrunedTernary(overrides=asked))
