"""Removed channels: against the whole model in which nothing reads them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from recipes.common.models import BUILDERS
from tests.litert.packed_models import make_packed
from tests.surgery.removal import (
    call_on_random,
    difference,
    mask_reads,
    randomize,
    remove_some,
    some_classes,
)
from tfcompress.layers import PackedKernel, QuantDense
from tfcompress.quantizers import Ternary
from tfcompress.surgery.channels import Channels
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.remove import remove_channels, remove_classes, round_up


def conv(filters, name=None, size=3, **config):
    return layers.Conv2D(filters, size, padding="same", name=name, **config)


def norm_relu(x, **config):
    return layers.ReLU()(layers.BatchNormalization(**config)(x))


def chain(x):
    x = norm_relu(conv(6, "first", use_bias=False)(x))
    x = norm_relu(conv(5, "second")(x))
    return conv(2, "head")(x)


def basic_block(x):
    x = conv(4, "stem")(x)
    y = norm_relu(conv(6, "first")(x))
    return conv(3, "head")(layers.Add()([x, conv(4, "second")(y)]))


def merges(x):
    x = conv(6)(x)
    for layer in (layers.Subtract(), layers.Maximum(), layers.Average()):
        x = layer([conv(6)(x), x])
    x = ops.minimum(x, 2 * conv(6)(x) + 1.0) / (1.5 + ops.square(x))
    return layers.Dense(2)(layers.Multiply()([x, x]))


def inverted_residual(x):
    x = conv(3, "stem")(x)
    y = norm_relu(conv(7, "expand", 1)(x))
    y = norm_relu(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y))
    return layers.GlobalMaxPooling2D()(layers.Add()([x, conv(3, "project", 1)(y)]))


def depth_multiplier(x):
    x = conv(5, "first", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization()(x)
    return layers.Dense(2, name="head")(layers.Flatten()(x))


def lenet(x):
    x = layers.MaxPooling2D()(conv(5, "first", activation="relu")(x))
    x = layers.MaxPooling2D()(conv(6, "second", activation="relu")(x))
    x = layers.BatchNormalization()(layers.Flatten()(x))
    x = layers.Dense(7, "tanh", name="third")(x)
    return layers.Dense(3, "softmax", name="head")(x)


def one_dimensional(x):
    x = layers.Reshape((16, 12))(x)
    x = layers.PReLU(shared_axes=[1])(layers.Conv1D(6, 3, name="first")(x))
    x = layers.PReLU()(layers.Dense(5, name="second")(x))
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.DepthwiseConv1D(3, use_bias=False)(x)
    return layers.Dense(2, name="head")(layers.GlobalMaxPooling1D()(x))


def three_dimensional(x):
    x = layers.Reshape((4, 4, 4, 3))(x)
    x = norm_relu(layers.Conv3D(6, 3, padding="same")(x))
    x = layers.Conv3DTranspose(4, 2, 2)(layers.MaxPooling3D()(x))
    return layers.Dense(2)(layers.GlobalAveragePooling3D()(x))


def two_consumers(x):
    x = norm_relu(conv(6, "first")(x))
    return layers.Add()([conv(3, "left")(x), conv(3, "right", 1)(ops.relu6(x))])


def concatenation(x):
    for _ in range(3):
        x = layers.Concatenate()([x, norm_relu(conv(4)(x))])
    x = ops.concatenate([x, conv(5)(x)], -1)
    y = ops.concatenate([conv(3)(x), conv(3, activation="tanh")(x)], 1)
    return conv(2)(layers.BatchNormalization()(y))


def grouped(x):
    x = norm_relu(conv(8, groups=1)(x))
    x = norm_relu(conv(12, groups=2)(x))
    return conv(2)(conv(12, groups=12, activation="relu")(x))


def depthwise_by_groups(x):
    x = norm_relu(conv(6)(x))
    return conv(2)(norm_relu(conv(12, groups=6)(x)))


def separable(x):
    x = norm_relu(layers.SeparableConv2D(6, 3, depth_multiplier=2)(x))
    x = layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu")(x)
    x = layers.SeparableConv1D(4, 3, use_bias=False)(layers.Reshape((-1, 5))(x))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def transposed(x):
    x = norm_relu(layers.Conv2DTranspose(6, 3, 2, padding="same")(x))
    x = layers.Conv2DTranspose(5, 2, 2, use_bias=False)(layers.UpSampling2D()(x))
    x = layers.Conv1DTranspose(4, 3)(layers.Reshape((-1, 5))(x))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def einsum(x):
    x = layers.EinsumDense("abcd,de->abce", (None, 8, 6), bias_axes="e")(x)
    x = layers.EinsumDense("...x,xy->...y", 5, activation="gelu")(x)
    return layers.Dense(2)(x)


def embedding(x):
    x = layers.Flatten()(layers.Rescaling(0.0)(x))[:, :7]
    x = layers.Embedding(5, 6)(ops.cast(ops.abs(x), "int32"))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def squeeze_excite(x):
    x = norm_relu(conv(8)(x))
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Reshape((1, 1, 8))(y)
    y = conv(8, size=1, activation="sigmoid")(conv(3, size=1, activation="relu")(y))
    z = layers.Dense(8, "sigmoid")(ops.mean(x, (1, 2)))
    return conv(2)(layers.Multiply()([x, y]) * ops.reshape(z, (-1, 1, 1, 8)))


def spatial_attention(x):
    x = conv(6)(x)
    return conv(2)(x * conv(1, activation="sigmoid")(x))


def channels_first(x):
    config = {"data_format": "channels_first"}
    x = layers.Permute((3, 1, 2))(x)
    x = norm_relu(conv(6, **config)(x), axis=1)
    x = layers.PReLU(shared_axes=[2, 3])(conv(5, **config)(x))
    y = layers.SeparableConv2D(4, 3, **config)(x)
    y = layers.Flatten(**config)(layers.MaxPooling2D(**config)(y))
    z = layers.DepthwiseConv2D(3, **config)(x)
    z = layers.Reshape((5, 9))(layers.AveragePooling2D(2, **config)(z))
    return [layers.Dense(2)(y), layers.Dense(2)(layers.Flatten()(z))]


def moved(x):
    x = layers.Permute((2, 3, 1))(conv(6)(x))
    x = ops.transpose(x, (0, 3, 1, 2))
    x = norm_relu(ops.expand_dims(ops.max(x, 1), 1))
    return layers.Dense(2)(ops.squeeze(x, 1))


def padded_shortcut(x):
    x = conv(6)(x)
    y = norm_relu(conv(10)(x))
    x = ops.pad(layers.AveragePooling2D(1)(x), [[0, 0], [0, 0], [0, 0], [1, 3]])
    z = ops.pad(x, [[0, 0], [1, 1], [1, 1], [2, 0]])
    return [conv(2)(layers.Add()([x, y])), conv(2)(z)]


def slices(x):
    x = norm_relu(conv(12)(x))
    left, middle, right = ops.split(x, [4, 8], axis=-1)
    a, b = ops.split(x[..., 2:-2], 2, axis=3)
    c = conv(4)(left) + middle
    return [conv(2)(c), conv(2)(right[:, 1:]), conv(2)(a[:, ::2]), conv(2)(b)]


def instance_norm(x):
    x = layers.GroupNormalization(-1)(conv(6)(x))
    return conv(2)(layers.Resizing(4, 4)(layers.ReLU()(x)))


def shared_layers(x):
    layer, norm = conv(6, "shared"), layers.BatchNormalization()
    x = conv(6)(x)
    x = layers.Add()([norm(layer(x)), layers.ReLU()(norm(layer(layer(x))))])
    return conv(2, "head")(x)


def nested(x):
    inputs = keras.Input((None, None, 6))
    y = conv(4, "second")(norm_relu(conv(5, "first")(layers.ReLU()(inputs))))
    body = keras.Model(inputs, [y, layers.MaxPooling2D()(inputs)], name="body")
    first, second = body(conv(6, "stem")(x))
    third, _ = body(conv(6, "other")(second))
    x = layers.BatchNormalization()(first)
    x = layers.Concatenate()([conv(3, "between")(x), layers.UpSampling2D()(third)])
    tail = [keras.Input((8, 8, 7)), conv(4, "first"), layers.ReLU(), conv(2, "last")]
    return keras.Sequential(tail, name="tail")(x)


GRAPHS = [
    chain, basic_block, merges, inverted_residual, depth_multiplier, lenet,
    one_dimensional, three_dimensional, two_consumers, concatenation, grouped,
    depthwise_by_groups, separable, transposed, einsum, embedding, squeeze_excite,
    spatial_attention, channels_first, moved, padded_shortcut, slices,
    instance_norm, shared_layers, nested,
]  # fmt: skip


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
def test_channels_that_nothing_reads_are_not_missed(graph, rng, tmp_path):
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


def test_only_these_channels_stay():
    """All others of the graphs above can be removed."""
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
def test_packed_layers(graph, rng):
    model = make_packed(make(graph, rng))
    assert any(isinstance(x, PackedKernel) for x in Graph(model).layers().values())
    assert remove_some(model, rng)[-1] < 1e-5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_other_precisions(policy, rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = make(basic_block, rng)
        smaller, _, _, error = remove_some(model, rng)
    finally:
        keras.config.set_dtype_policy(before)
    assert error < 0.05  # sums are rounded to 16 bits
    assert {x.dtype_policy.name for x in smaller.layers} == {policy}


def test_what_is_read_is_missed(rng):
    """The comparison would see a channel taken for another."""
    model = make(chain, rng)
    channels = Channels(Graph(model))
    dropped = some_classes(channels, rng)
    call = call_on_random(model, rng)
    expected = call(model)
    smaller = remove_classes(model, channels, dropped)
    assert difference(expected, call(smaller)) > 1e-3
    mask_reads(model, channels, dropped)
    assert difference(call(model), call(smaller)) < 1e-5


def silence(model, channels, dropped):
    """Zeroes what makes the dropped channels, and gammas and betas behind it."""
    for name, layer in Graph(model).layers().items():
        if isinstance(layer, layers.BatchNormalization):
            lost = dropped[channels.read[name]]
            variables = [layer.gamma, layer.beta]
        elif name in channels.written:
            lost = dropped[channels.written[name]]
            variables = layer.weights
        else:
            continue
        for variable in variables:
            if variable is None or variable.name == "depthwise_kernel":
                continue
            values = ops.convert_to_numpy(variable).copy()
            rows = "Transpose" in type(layer).__name__ and values.ndim > 1
            values[(..., lost, slice(None)) if rows else (..., lost)] = 0
            variable.assign(values)


@pytest.mark.parametrize(
    "graph",
    [merges, inverted_residual, concatenation, grouped, separable, transposed,
     squeeze_excite, channels_first, padded_shortcut, shared_layers, nested],
    ids=lambda graph: graph.__name__,
)  # fmt: skip
def test_silent_channels_are_not_missed_either(graph, rng):
    model = make(graph, rng)
    channels = Channels(Graph(model))
    dropped = some_classes(channels, rng, 0.5) & channels.silent
    smaller = remove_classes(model, channels, dropped)
    silence(model, channels, dropped)
    call = call_on_random(model, rng)
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
def test_networks(name, size, rng):
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
    assert channels.silent[channels.removable()].all()


def test_finalized_models(rng):
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
def test_parameters_left(graph, keep, params, rng):
    assert remove_channels(make(graph, rng), keep).count_params() == params


def test_the_model_and_everything_else_is_left_as_it_is(rng):
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


def test_nothing_to_remove_copies_the_model(rng):
    model = make(inverted_residual, rng)
    call = call_on_random(model, rng)
    assert difference(call(model), call(remove_channels(model, {}))) == 0


def test_round_up_takes_the_most_important_back(rng):
    channels = Channels(Graph(make(lenet, rng)))
    first, second = channels.written["first"], channels.written["second"]
    dropped = np.zeros(len(channels.frozen), bool)
    dropped[first[[0, 1, 2]]] = dropped[second[[0, 5]]] = True
    importances = np.zeros(len(dropped))
    importances[first] = [3, 1, 2, 0, 0]
    rounded = round_up(channels, dropped, importances, 4)
    # Of the first, 2 of 5 were to stay; of the second, 4 of 6 may.
    assert rounded[first].tolist() == [False, True, False, False, False]
    np.testing.assert_array_equal(rounded[second], dropped[second])
    assert not round_up(channels, dropped, importances, 8).any()


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
def test_wrong_arguments(keep, message, rng):
    with pytest.raises(ValueError, match=message):
        remove_channels(make(basic_block, rng), keep)


def test_wrong_classes(rng):
    model = make(slices, rng)
    channels = Channels(Graph(model))
    with pytest.raises(
        ValueError, match="one for each class.*Received: shape \\(2,\\)"
    ):
        remove_classes(model, channels, [True, False])
    dropped = np.zeros(len(channels.frozen), bool)
    dropped[next(iter(channels.written.values()))[:4]] = True
    with pytest.raises(ValueError, match="At least one.*what 'split' makes.*none"):
        remove_classes(model, channels, dropped)


def test_models_in_training_are_refused():
    inputs = keras.Input((4,))
    x = QuantDense(3, kernel_quantizer=Ternary(), name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match="'hidden'.*Call `tfcompress.finalize` first"):
        remove_channels(model, {"hidden": [0]})
