"""Removed channels, compared with the whole model in which nothing reads them."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from recipes.common.models import BUILDERS
from tests.graph.graphs import (
    GRAPHS,
    basic_block,
    chain,
    conv,
    depth_multiplier,
    inverted_residual,
    lenet,
    nested,
    one_dimensional,
    slices,
)
from tests.graph.removal import (
    call_on_random,
    difference,
    mask_reads,
    randomize,
    remove_some,
    some_groups,
)
from tests.litert.packed_models import make_packed
from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.remove import remove_channels, remove_groups
from tfcompress.layers import PackedKernel, QuantDense
from tfcompress.quantizers import Ternary


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make(graph, rng):
    """A model with random weights, statistics, biases and slopes."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    return randomize(keras.Model(inputs, graph(inputs)), rng)


def made(channels):
    return np.unique(np.concatenate(list(channels.written.values())))


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_removal_of_channels_that_nothing_reads_keeps_predictions(graph, rng, tmp_path):
    model = make(graph, rng)
    smaller, channels, dropped, error = remove_some(model, rng, share=0.4)
    assert error < 1e-5
    left = Channels(Graph(smaller))
    for name, written in channels.written.items():
        assert len(left.written[name]) == (~dropped[written]).sum(), name
        assert len(left.read[name]) == (~dropped[channels.read[name]]).sum(), name
    assert dropped.any() and smaller.count_params() < model.count_params()

    smaller.save(tmp_path / "smaller.keras")
    restored = keras.models.load_model(tmp_path / "smaller.keras")
    call = call_on_random(model, rng)
    assert difference(call(smaller), call(restored)) == 0


def test_graphs_freeze_only_outputs_and_softmax_and_broadcast_channels():
    staying = {}
    for graph in GRAPHS:
        channels = Channels(Graph(make(graph, np.random.default_rng(0))))
        reasons = {channels.frozen[c] for c in made(channels)} - {""}
        staying[graph.__name__] = sorted(reasons - {"the model returns them"})
        assert channels.unknown == []
    unusual = {name: reasons for name, reasons in staying.items() if reasons}
    assert list(unusual) == ["lenet", "spatial_attention"]  # softmax, broadcasting


@pytest.mark.parametrize(
    "graph",
    [chain, inverted_residual, depth_multiplier, lenet, one_dimensional, nested],
    ids=lambda graph: graph.__name__,
)
def test_packed_layers_lose_channels_without_changing_predictions(graph, rng):
    model = make_packed(make(graph, rng))
    assert any(isinstance(x, PackedKernel) for x in Graph(model).layers().values())
    assert remove_some(model, rng)[-1] < 1e-5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_removal_keeps_the_dtype_policy(policy, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = make(basic_block, rng)
        smaller, _, _, error = remove_some(model, rng)
    finally:
        keras.config.set_dtype_policy(before)
    assert error < 0.05  # sums are rounded to 16 bits
    assert {x.dtype_policy.name for x in smaller.layers} == {policy}


def test_removal_of_channels_that_are_read_changes_predictions(rng):
    # Proof that the comparison of the other tests finds a wrong channel.
    model = make(chain, rng)
    channels = Channels(Graph(model))
    dropped = some_groups(channels, rng)
    call = call_on_random(model, rng)
    expected = call(model)
    smaller = remove_groups(model, channels, dropped)
    assert difference(expected, call(smaller)) > 1e-3
    mask_reads(model, channels, dropped)
    assert difference(call(model), call(smaller)) < 1e-5


@pytest.mark.parametrize(
    "name, size",
    [
        ("resnet20", 16),
        ("MobileNetV3Small", 32),
        pytest.param("DenseNet121", 32, marks=pytest.mark.slow),
        pytest.param("EfficientNetV2B0", 32, marks=pytest.mark.slow),
    ],
)
def test_networks_lose_channels_without_changing_predictions(name, size, rng):
    keras.utils.set_random_seed(0)
    if name in BUILDERS:
        model = BUILDERS[name]((size, size, 3), 10)
    else:
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=10,
            classifier_activation=None,
        )  # fmt: skip
    _, channels, _, error = remove_some(randomize(model, rng), rng)
    assert error < 1e-5
    assert channels.removable().sum() == len(made(channels)) - 10


def test_finalized_model_keeps_the_codes_of_kept_channels(rng):
    model = make(lenet, rng)
    tiny = tfc.finalize(tfc.compress(model, tfc.PrunedTernary()))
    keep = {"first": [0, 2], "second": [1, 3, 4], "third": [0, 6]}
    smaller = remove_channels(tiny, keep)
    codes = Graph(tiny).layers()["second"].codes
    np.testing.assert_array_equal(
        Graph(smaller).layers()["second"].codes,
        codes[:, :, keep["first"]][..., keep["second"]],
    )


@pytest.mark.parametrize(
    "graph, keep, params",
    [
        (
            chain,
            {"first": [1, 3], "second": [0, 2, 4]},
            3 * 3 * 3 * 2 + 4 * 2 + 3 * 3 * 2 * 3 + 3 + 4 * 3 + 3 * 3 * 3 * 2 + 2,
        ),
        (  # the channels of the stem go with those of the layer that is added
            basic_block,
            {"second": [0, 2]},
            (3 * 3 * 3 * 2 + 2) + (3 * 3 * 2 * 6 + 6) + 4 * 6
            + (3 * 3 * 6 * 2 + 2) + (3 * 3 * 2 * 3 + 3),
        ),
    ],
)  # fmt: skip
def test_removal_leaves_the_expected_parameter_count(graph, keep, params, rng):
    assert remove_channels(make(graph, rng), keep).count_params() == params


def test_removal_leaves_the_model_and_other_configuration_untouched(rng):
    inputs = keras.Input((8, 8, 3), name="image")
    normalization = layers.Normalization()
    normalization.adapt(rng.normal(3, 2, (10, 8, 8, 3)))
    x = conv(4, "first", kernel_regularizer="l2", trainable=False)(
        normalization(inputs)
    )
    model = keras.Model(inputs, conv(2, "second", strides=2)(x), name="mine")
    model.compile("sgd", "mse")
    weights, config = model.get_weights(), model.get_config()
    smaller = remove_channels(model, {"first": np.array([0, 2], np.uint8)})
    assert model.get_config() == config
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert smaller.name == "mine"
    assert [layer.name for layer in smaller.layers] == [
        layer.name for layer in model.layers
    ]
    first = smaller.get_layer("first")
    expected = {**model.get_layer("first").get_config(), "filters": 2}
    assert first.get_config() == expected
    np.testing.assert_array_equal(
        first.kernel, np.asarray(model.get_layer("first").kernel)[..., [0, 2]]
    )


def test_removal_of_no_channels_copies_the_model(rng):
    model = make(inverted_residual, rng)
    call = call_on_random(model, rng)
    assert difference(call(model), call(remove_channels(model, {}))) == 0


@pytest.mark.parametrize(
    "keep, message",
    [
        ({"none": [0]}, "'second', 'head'. Received: 'none'"),
        ({"re_lu": [0]}, "Received: 're_lu'"),
        ({"head": [0]}, "of 'head', which stay: the model returns them"),
        ({"first": []}, "from 0 to 5, in ascending.*Received: \\[\\].*at least one"),
        ({"first": np.array([], int)}, "at least one"),
        ({"first": [0, 6]}, "Received: \\[0, 6\\]"),
        ({"first": [-1, 2]}, "Received: \\[-1, 2\\]"),
        ({"first": [1, 1]}, "Received: \\[1, 1\\]"),
        ({"first": np.array([2, 1], "uint8")}, "ascending order"),
        ({"first": [True] * 6}, "different integers"),
        ({"first": 3}, "is a list of"),
        (
            {"stem": [0, 1], "second": [0, 2]},
            "`keep\\['stem'\\]`.*Received: \\[0, 1\\], of which \\[1\\] are tied",
        ),
    ],
)
def test_remove_channels_rejects_wrong_names_and_indices(keep, message, rng):
    with pytest.raises(ValueError, match=message):
        remove_channels(make(basic_block, rng), keep)


def test_remove_groups_rejects_wrong_shapes_and_emptied_tensors(rng):
    model = make(slices, rng)
    channels = Channels(Graph(model))
    with pytest.raises(
        ValueError, match="one for each dependency group.*Received: shape \\(2,\\)"
    ):
        remove_groups(model, channels, [True, False])
    dropped = np.zeros(len(channels.frozen), bool)
    dropped[next(iter(channels.written.values()))[:4]] = True
    with pytest.raises(ValueError, match="At least one.*'split' makes.*none"):
        remove_groups(model, channels, dropped)


def test_remove_channels_rejects_models_in_training():
    inputs = keras.Input((4,))
    x = QuantDense(3, kernel_quantizer=Ternary(), name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match="'hidden'.*Call `tfcompress.finalize` first"):
        remove_channels(model, {"hidden": [0]})
