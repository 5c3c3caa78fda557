import keras
import numpy as np

from tests.graph.graphs import nested_residual
from tfcompress.graph.graph import Graph
from tfcompress.graph.rebuild import clone_layer, rebuild


def test_rebuild_copies_the_graph_and_leaves_the_model_untouched():
    model = nested_residual()
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


def test_rebuild_needs_no_loss_that_can_be_serialized():
    model = nested_residual()
    model.compile("sgd", lambda y_true, y_pred: keras.ops.mean(y_pred))
    new_model, _ = rebuild(model, clone_layer)
    assert not new_model.compiled
    assert new_model.name == model.name


def test_rebuild_removes_a_layer_replaced_by_none():
    model = nested_residual()
    new_model, pairs = rebuild(
        model, lambda layer: None if layer.name == "relu" else clone_layer(layer)
    )
    for old, new in pairs:
        new.set_weights(old.get_weights())
    assert "tail/relu" not in Graph(new_model).layers()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    assert np.abs(model(x) - new_model(x)).max() > 1e-3


def test_rebuild_puts_a_layer_before_another():
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, use_bias=False, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))

    def replace(layer):
        if layer.name != "shared":
            return clone_layer(layer)
        return [keras.layers.Rescaling(2.0, name="before"), clone_layer(layer)]

    new_model, pairs = rebuild(model, replace)
    assert ("shared", "shared") in [(old.name, new.name) for old, new in pairs]
    new_model.set_weights(model.get_weights())
    x = np.ones((2, 4), "float32")
    expected = 4 * keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(new_model(x), expected, rtol=1e-6)
    assert [call.name for call in Graph(new_model).calls if call.inputs] == [
        "before",
        "shared",
    ] * 2


def test_rebuild_keeps_the_names_of_outputs_whose_layers_are_removed():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="dense")(inputs)
    relu = keras.layers.ReLU(name="score")
    outputs = {"b": relu(x), "a": x, "c": relu(keras.layers.Dense(3, name="other")(x))}
    model = keras.Model(inputs, outputs)
    new_model, _ = rebuild(
        model, lambda layer: None if layer.name == "score" else clone_layer(layer)
    )
    assert new_model.output_names == model.output_names == ["dense", "score", "score"]
    assert list(new_model.output) == ["b", "a", "c"]
    kinds = [type(layer).__name__ for layer in new_model.layers]
    assert kinds.count("Identity") == 1
    new_model.set_weights(model.get_weights())
    found = new_model(np.ones((2, 4), "float32"))
    np.testing.assert_array_equal(found["a"], found["b"])
