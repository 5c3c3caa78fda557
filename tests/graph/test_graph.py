import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, rebuild


def nested_model():
    inner_in = keras.Input((8, 8, 4), name="inner_in")
    inner = keras.Model(
        inner_in,
        layers.Conv2D(4, 3, padding="same", name="conv")(inner_in),
        name="inner",
    )
    tail = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.ReLU(name="relu"), layers.Flatten(name="flat")],
        name="tail",
    )
    inputs = keras.Input((8, 8, 4), name="image")
    x = inner(inputs)
    x = layers.Add(name="add")([inner(x), inputs])
    x = keras.ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]])
    x = layers.Cropping2D(((1, 1), (0, 0)), name="crop")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(tail(x)), name="outer")


def test_calls_are_flat_and_in_running_order():
    graph = Graph(nested_model())
    names = [call.name for call in graph.calls if "pad" not in call.name]
    assert names == [
        "inner/conv", "inner/conv", "add", "crop", "tail/relu", "tail/flat", "head"
    ]  # fmt: skip
    assert list(graph.layers()) == [
        "inner/conv", "add", "crop", "tail/relu", "tail/flat", "head"
    ]  # fmt: skip


def test_consumers_are_found_across_the_borders_of_nested_models():
    graph = Graph(nested_model())
    conv = graph.layers()["inner/conv"]
    first, second = graph.calls_of(conv)
    assert [call.name for call in graph.consumers(first.outputs[0])] == ["inner/conv"]
    assert [call.name for call in graph.consumers(second.outputs[0])] == ["add"]
    (head,) = graph.calls_of(graph.layers()["head"])
    assert graph.is_output(head.outputs[0])
    assert not graph.is_output(first.outputs[0])


def test_rebuild_copies_the_graph_and_leaves_the_model_alone():
    model = nested_model()
    nodes = {layer: len(layer._inbound_nodes) for layer in model.layers}
    new_model, pairs = rebuild(model, clone_layer)
    for old, new in pairs:
        new.set_weights(old.get_weights())
    assert nodes == {layer: len(layer._inbound_nodes) for layer in model.layers}
    assert {new.name for _, new in pairs} >= {"conv", "add", "relu", "head"}
    assert all(old is not new for old, new in pairs)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    np.testing.assert_array_equal(model(x), new_model(x))
    assert [layer.name for layer in new_model.layers] == [
        layer.name for layer in model.layers
    ]


def test_rebuild_of_a_model_compiled_with_a_loss_that_cannot_be_serialized():
    model = nested_model()
    model.compile("sgd", lambda y_true, y_pred: keras.ops.mean(y_pred))
    new_model, _ = rebuild(model, clone_layer)
    assert not new_model.compiled
    assert new_model.name == model.name


def test_rebuild_takes_a_layer_out():
    model = nested_model()
    new_model, pairs = rebuild(
        model, lambda layer: None if layer.name == "relu" else clone_layer(layer)
    )
    for old, new in pairs:
        new.set_weights(old.get_weights())
    assert "tail/relu" not in Graph(new_model).layers()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    assert np.abs(model(x) - new_model(x)).max() > 1e-3


def subclassed():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    return Subclassed()


@pytest.mark.parametrize(
    "model, hint",
    [
        (keras.Sequential([layers.Dense(2)]), "keras.Input"),
        (subclassed(), "keras.Model\\(inputs, outputs\\)"),
    ],
)
def test_a_model_without_a_graph_is_refused(model, hint):
    with pytest.raises(ValueError, match=f"Received.*{hint}"):
        Graph(model)


def test_rebuild_puts_a_layer_in_front_of_another():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, use_bias=False, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))

    def replace(layer):
        if layer.name != "shared":
            return clone_layer(layer)
        return [keras.layers.Rescaling(2.0, name="front"), clone_layer(layer)]

    new_model, pairs = rebuild(model, replace)
    assert ("shared", "shared") in [(old.name, new.name) for old, new in pairs]
    new_model.set_weights(model.get_weights())
    x = np.ones((2, 4), "float32")
    expected = 4 * keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(new_model(x), expected, rtol=1e-6)
    assert [call.name for call in Graph(new_model).calls if call.inputs] == [
        "front",
        "shared",
    ] * 2
