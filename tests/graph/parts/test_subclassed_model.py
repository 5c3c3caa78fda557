import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.graph.parts import blocks
from tfcompress.cost import layer_costs
from tfcompress.graph.parts.subclassed_model import with_graph


class OwnModel(keras.Model):
    """Classifier of images, with an attribute and a method of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = blocks.Block(4, name="block")
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(3, name="head")
        self.rate = 0.5

    def call(self, inputs, training=None):
        return self.head(self.pool(self.block(inputs, training=training)))

    def helper(self):
        return self.rate


class OfDicts(keras.Model):
    def __init__(self):
        super().__init__()
        self.words, self.head = layers.Embedding(5, 4), layers.Dense(3)

    def call(self, inputs):
        x = ops.mean(self.words(inputs["words"]), axis=1)
        return {"out": self.head(ops.concatenate([x, *inputs["others"]], axis=-1))}


def built(model=None):
    model = OwnModel(name="own") if model is None else model
    model(blocks.images(2))
    return model


def loaded(tmp_path):
    model = built()
    model.save(tmp_path / "model.keras")
    path = tmp_path / "model.keras"
    return keras.models.load_model(path, custom_objects={"OwnModel": OwnModel})


def trained(tmp_path):
    model = OwnModel(name="own")
    model.compile("sgd", "mse")
    model.fit(blocks.images(), np.zeros((8, 3)), verbose=0)
    return model


def called(tmp_path):
    model = OwnModel(name="own")
    model(keras.Input((8, 8, 4)))
    return model


@pytest.mark.parametrize(
    "make", [lambda path: built(), loaded, trained, called], ids=lambda x: x.__name__
)
def test_subclassed_model_is_traced_and_computes_the_same(make, tmp_path):
    model = make(tmp_path)
    traced = with_graph(model)
    assert isinstance(traced, keras.Function)
    assert traced.name == model.name
    assert traced.input_shape == (None, 8, 8, 4)
    outputs = [m.predict(blocks.images(), verbose=0) for m in (model, traced)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    names = [row.name for row in tfc.plan(model, tfc.PrunedTernary()).treated()]
    assert "head" in names and any(name.startswith("block/") for name in names)


def test_subclassed_model_of_a_dict_keeps_its_structure_and_integer_inputs():
    data = {
        "words": np.array([[1, 2, 3], [4, 0, 1]]),
        "others": [np.ones((2, 2), "float32"), np.ones((2, 1), "float32")],
    }
    model = OfDicts()
    model(data)
    traced = with_graph(model)
    assert traced.input["words"].dtype == "int32"
    assert [x.shape for x in traced.input["others"]] == [(None, 2), (None, 1)]
    np.testing.assert_allclose(traced(data)["out"], model(data)["out"], rtol=1e-5)


def test_models_with_a_graph_and_other_objects_stay_as_they_are():
    model = blocks.net(blocks.Block(4))
    for given in (model, keras.Sequential([layers.Dense(2)]), "model"):
        assert with_graph(given) is given


class OwnStep(OwnModel):
    def train_step(self, data):
        return super().train_step(data)


class OwnLoss(OwnModel):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


class OwnMetrics(OwnModel):
    @property
    def metrics(self):
        return super().metrics


class OwnBranch(OwnModel):
    def call(self, inputs, training=None):
        x = inputs + 1.0 if training else inputs
        return super().call(x, training=training)


class TwoArguments(OwnModel):
    def call(self, inputs, other):
        return super().call(inputs + other)


REFUSED = {
    OwnStep: "overrides train_step",
    OwnLoss: "overrides compute_loss",
    OwnMetrics: "overrides metrics",
    OwnBranch: "computes differently in training",
    TwoArguments: "missing a required argument: 'other'",
}


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_subclassed_model_that_is_more_than_a_graph_is_refused(cls):
    model = cls(name="own")
    inputs = [blocks.images(2)] * (2 if cls is TwoArguments else 1)
    model(*inputs)
    with pytest.raises(ValueError, match=f"'own' of {cls.__name__}") as info:
        tfc.compress(model, tfc.PrunedTernary())
    assert REFUSED[cls] in str(info.value)
    assert "keras.Model(inputs, model.call(inputs))" in str(info.value)


def test_subclassed_model_is_a_teacher_and_is_counted():
    model = built()
    student = tfc.compress(model, tfc.PrunedTernary(), distill=True)
    student.compile("sgd", "mse")
    history = student.fit(blocks.images(), np.zeros((8, 3)), verbose=0).history
    assert "distillation_loss" in history
    student.set_teacher(built())
    costs = {cost.name: cost for cost in layer_costs(model)}
    assert costs["head"].macs == 4 * 3
    assert "head" in tfc.summary(model)
