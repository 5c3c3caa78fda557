import keras
import pytest
from keras import layers

from tests.graph.graphs import nested_residual
from tfcompress.graph.graph import Graph


def test_graph_lists_calls_of_nested_models_in_running_order():
    graph = Graph(nested_residual())
    names = [call.name for call in graph.calls if "pad" not in call.name]
    assert names == [
        "inner/conv", "inner/conv", "add", "crop", "tail/relu", "tail/flat", "head"
    ]  # fmt: skip
    assert list(graph.layers()) == [
        "inner/conv", "add", "crop", "tail/relu", "tail/flat", "head"
    ]  # fmt: skip


def test_consumers_include_layers_of_nested_models():
    graph = Graph(nested_residual())
    conv = graph.layers()["inner/conv"]
    first, second = graph.calls_of(conv)
    assert [call.name for call in graph.consumers(first.outputs[0])] == ["inner/conv"]
    assert [call.name for call in graph.consumers(second.outputs[0])] == ["add"]
    (head,) = graph.calls_of(graph.layers()["head"])
    assert graph.is_output(head.outputs[0])
    assert not graph.is_output(first.outputs[0])


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
def test_graph_rejects_models_without_a_graph(model, hint):
    with pytest.raises(ValueError, match=f"Received.*{hint}"):
        Graph(model)


def test_a_graph_derives_each_result_once():
    graph = Graph(nested_residual())
    calls = []

    def count(graph):
        calls.append(graph)
        return len(graph.calls)

    assert graph.derived(count) == graph.derived(count) == len(graph.calls)
    assert calls == [graph]
