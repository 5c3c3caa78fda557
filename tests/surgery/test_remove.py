import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from recipes.common.models import BUILDERS
from tests.litert.packed_models import make_packed
from tfcompress.layers import PackedKernel, QuantDense
from tfcompress.quantizers import Ternary
from tfcompress.surgery.channels import channel_spaces
from tfcompress.surgery.graph import Graph
from tfcompress.surgery.remove import remove_channels

RNG = np.random.default_rng(0)


def conv(filters, name, size=3, **config):
    return layers.Conv2D(filters, size, padding="same", name=name, **config)


def norm_relu(x):
    return layers.ReLU()(layers.BatchNormalization()(x))


def chain(x):
    x = norm_relu(conv(6, "first", use_bias=False)(x))
    x = norm_relu(conv(5, "second")(x))
    return conv(2, "head")(x)


def basic_block(x):
    x = conv(4, "stem")(x)
    y = norm_relu(conv(6, "first")(x))
    return layers.Add()([x, conv(4, "second")(y)])


def bottleneck(x):
    x = conv(8, "stem")(x)
    y = norm_relu(conv(3, "reduce", 1)(x))
    y = norm_relu(conv(4, "middle")(y))
    return layers.Add()([x, conv(8, "expand", 1)(y)])


def inverted_residual(x):
    x = conv(3, "stem")(x)
    y = norm_relu(conv(7, "expand", 1)(x))
    y = norm_relu(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y))
    return layers.Add()([x, conv(3, "project", 1)(y)])


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


def pooled(x):
    x = layers.GlobalAveragePooling2D()(norm_relu(conv(6, "first")(x)))
    return layers.Dense(3, name="head")(x)


def two_consumers(x):
    x = norm_relu(conv(6, "first")(x))
    return layers.Add()([conv(3, "left")(x), conv(3, "right", 1)(ops.relu6(x))])


def nested(x):
    inputs = keras.Input(x.shape[1:])
    y = conv(4, "second")(norm_relu(conv(5, "first")(inputs)))
    x = keras.Model(inputs, y, name="body")(x)
    x = layers.BatchNormalization()(x)
    tail = [keras.Input((8, 8, 3)), conv(4, "first"), layers.ReLU(), conv(2, "last")]
    return keras.Sequential(tail, name="tail")(conv(3, "between")(x))


GRAPHS = {
    chain: ["first", "second"],
    basic_block: ["first"],
    bottleneck: ["reduce", "middle"],
    inverted_residual: ["expand"],
    depth_multiplier: ["first"],
    lenet: ["first", "second", "third"],
    one_dimensional: ["first", "second"],
    pooled: ["first"],
    two_consumers: ["first"],
    nested: ["body/first", "body/second", "tail/first"],
}


def make(graph):
    """A model with random weights, statistics, biases and slopes."""
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, graph(inputs))
    return randomize(model)


def randomize(model):
    for layer in Graph(model).layers().values():
        if not isinstance(layer, PackedKernel):
            layer.set_weights(
                [RNG.uniform(-1, 1, w.shape) ** (2 if "variance" in w.name else 1)
                 for w in layer.weights]
            )  # fmt: skip
    return model


def choose(model, share=0.5):
    """Some channels to keep of every layer that can lose any."""
    keep = {}
    for name, space in channel_spaces(Graph(model)).items():
        if not space.tied:
            count = max(1, int(space.channels * share))
            keep[name] = sorted(RNG.permutation(space.channels)[:count].tolist())
    return keep


def silence(model, keep):
    """Zeroes what the consumers' kernels multiply the other channels by."""
    graph = Graph(model)
    named_layers, spaces = graph.layers(), channel_spaces(graph)
    for name, kept in keep.items():
        space = spaces[name]
        removed = np.setdiff1d(np.arange(space.channels), kept)
        multiplier = 1
        for carrier in space.carriers:
            multiplier *= getattr(named_layers[carrier], "depth_multiplier", 1)
        for consumer in space.consumers:
            layer = named_layers[consumer]
            packed = isinstance(layer, PackedKernel)
            kernel = np.array(layer.codes if packed else layer.kernel)
            # (kernel size and positions, channels, multiplier, filters)
            rows = kernel.reshape(-1, space.channels, multiplier, kernel.shape[-1])
            rows[:, removed] = 0
            if packed:
                layer.set_kernel(kernel, layer.kernel_scale)
            else:
                layer.kernel.assign(kernel)


def assert_equal_predictions(new, old, shape=(8, 8, 3)):
    x = RNG.normal(size=(3, *shape)).astype("float32")
    expected = ops.convert_to_numpy(old(x, training=False))
    found = ops.convert_to_numpy(new(x, training=False))
    assert np.abs(expected).max() > 0
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_channels_that_nothing_reads_are_not_missed(graph, packed, tmp_path):
    model = make(graph)
    if packed:
        model = make_packed(model)
    keep = choose(model)
    assert list(keep) == GRAPHS[graph]
    silence(model, keep)
    smaller = remove_channels(model, keep)
    assert_equal_predictions(smaller, model)
    for name, space in channel_spaces(Graph(smaller)).items():
        before = channel_spaces(Graph(model))[name].channels
        assert space.channels == len(keep.get(name, range(before)))

    smaller.save(tmp_path / "smaller.keras")
    restored = keras.models.load_model(tmp_path / "smaller.keras")
    assert_equal_predictions(restored, smaller)


def test_what_is_read_is_missed():
    """The check above would see a channel taken for another."""
    model = make(chain)
    keep = {"first": [0, 1, 2, 4]}
    with pytest.raises(AssertionError):
        assert_equal_predictions(remove_channels(model, keep), model)


@pytest.mark.parametrize(
    "name", ["resnet20", pytest.param("mobilenetv2", marks=pytest.mark.slow)]
)
def test_builtin_networks(name):
    shape = (16, 16, 3)
    model = BUILDERS[name](shape, 10)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(RNG.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(RNG.normal(size=layer.beta.shape))
    keep = choose(model)
    silence(model, keep)
    smaller = remove_channels(model, keep)
    assert smaller.count_params() < model.count_params()
    assert_equal_predictions(smaller, model, shape)


def test_finalized_models():
    model = make(lenet)
    tiny = tfc.finalize(tfc.compress(model, tfc.PrunedTernary()))
    keep = choose(tiny)
    assert list(keep) == GRAPHS[lenet]
    silence(tiny, keep)
    smaller = remove_channels(tiny, keep)
    assert_equal_predictions(smaller, tiny)
    codes = Graph(tiny).layers()["second"].codes
    np.testing.assert_array_equal(
        Graph(smaller).layers()["second"].codes,
        codes[:, :, keep["first"]][..., keep["second"]],
    )


def test_parameters_left():
    smaller = remove_channels(make(chain), {"first": [1, 3], "second": [0, 2, 4]})
    first, second, head = 3 * 3 * 3 * 2, 3 * 3 * 2 * 3 + 3, 3 * 3 * 3 * 2 + 2
    assert smaller.count_params() == first + 4 * 2 + second + 4 * 3 + head


def test_the_model_and_everything_else_is_left_as_it_is():
    inputs = keras.Input((8, 8, 3), name="image")
    normalization = layers.Normalization()
    normalization.adapt(RNG.normal(3, 2, (10, 8, 8, 3)))
    x = conv(4, "first", kernel_regularizer="l2", trainable=False)(
        normalization(inputs)
    )
    model = keras.Model(inputs, conv(2, "second", strides=2)(x), name="mine")
    model.compile("sgd", "mse")
    silence(model, {"first": [0, 2]})
    weights, config = model.get_weights(), model.get_config()
    smaller = remove_channels(model, {"first": np.array([0, 2], np.uint8)})
    assert_equal_predictions(smaller, model)
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


def test_nothing_to_remove_copies_the_model():
    model = make(inverted_residual)
    assert_equal_predictions(remove_channels(model, {}), model)


@pytest.mark.parametrize(
    "keep, message",
    [
        ({"none": [0]}, "here of: 'stem', 'first', 'second'. Received: 'none'"),
        ({"re_lu": [0]}, "Received: 're_lu'"),
        ({"second": [0]}, "'second' cannot be removed: merged with others by 'add'"),
        ({"first": []}, "from 0 to 5, in ascending.*Received: \\[\\].*at least one"),
        ({"first": np.array([], int)}, "at least one"),
        ({"first": [0, 6]}, "Received: \\[0, 6\\]"),
        ({"first": [-1, 2]}, "Received: \\[-1, 2\\]"),
        ({"first": [1, 1]}, "Received: \\[1, 1\\]"),
        ({"first": np.array([2, 1], "uint8")}, "ascending order"),
        ({"first": [True] * 6}, "different integers"),
        ({"first": 3}, "is a list of"),
    ],
)
def test_wrong_arguments(keep, message):
    with pytest.raises(ValueError, match=message):
        remove_channels(make(basic_block), keep)


def test_models_in_training_are_refused():
    inputs = keras.Input((4,))
    x = QuantDense(3, kernel_quantizer=Ternary(), name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match="'hidden'.*Call `tfcompress.finalize` first"):
        remove_channels(model, {"hidden": [0]})
