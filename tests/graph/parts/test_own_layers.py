import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tests.graph.parts import blocks
from tfcompress.graph.graph import Graph
from tfcompress.graph.parts.replacement import replace_by_parts


def given_conv():
    return layers.Conv2D(4, 3, padding="same", name="given")


ENTERED = {
    "block": lambda: blocks.net(blocks.Block(4, name="block")),
    "model": lambda: blocks.net(blocks.SubclassedModel(4, name="block")),
    "several": lambda: blocks.net(blocks.SeveralInputs(4, name="block"), several=True),
    "twice": lambda: blocks.net(blocks.Twice(given_conv(), name="block")),
    "swish": lambda: blocks.net(blocks.WithSwish(4, name="block")),
    "resizing": lambda: blocks.net(blocks.WithResizing(name="block")),
    "own_weight": lambda: blocks.net(blocks.OwnWeight(name="block")),
    "read_weight": lambda: blocks.net(blocks.ReadWeight(name="block")),
    "sequential": lambda: blocks.net(
        keras.Sequential([blocks.Block(4, name="block")], name="outer")
    ),
}


def same(model, other, x=None):
    x = blocks.images() if x is None else x
    outputs = [m.predict(x, verbose=0) for m in (model, other)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", ENTERED.values(), ids=ENTERED)
def test_own_layer_is_entered_and_computes_the_same(make):
    model = make()
    before = [v.numpy() for v in model.variables]
    nodes = [len(x._inbound_nodes) for x in model._flatten_layers()]
    replaced = replace_by_parts(model)
    assert any(name.endswith("block") for name in replaced.nested)
    assert replaced.reasons == {}
    same(model, replaced.model)
    assert [len(x._inbound_nodes) for x in model._flatten_layers()] == nodes
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    assert not {id(v) for v in model.variables} & {
        id(v) for v in replaced.model.variables
    }
    assert replaced.model.count_params() == model.count_params()


@pytest.mark.parametrize("cls", blocks.WHOLE, ids=lambda cls: cls.__name__)
def test_own_layer_that_is_more_than_its_parts_stays_whole(cls):
    model = blocks.net(cls(name="block"))
    replaced = replace_by_parts(model)
    assert list(replaced.reasons) == ["block"]
    assert blocks.WHOLE[cls] in replaced.reasons["block"]
    assert type(replaced.model.get_layer("block")) is cls
    if cls not in blocks.UNEQUAL:
        same(model, replaced.model)


def test_plan_and_warning_say_why_a_layer_stays_whole():
    model = blocks.net(blocks.Branch(name="block"))
    plan = tfc.plan(model, tfc.PrunedTernary())
    rows = {row.name: row.treatment for row in plan.rows}
    assert rows["block"] == "left alone: computes differently in training"
    with pytest.warns(UserWarning, match="of type Branch: computes differently"):
        tfc.compress(model, tfc.PrunedTernary())


def test_layer_that_can_be_neither_entered_nor_copied_is_an_error_with_both_reasons():
    class Odd(blocks.Branch):
        def __init__(self, size, **kwargs):
            super().__init__(**kwargs)
            self.size = size

    model = blocks.net(Odd(object(), name="block"))
    with pytest.raises(ValueError, match="get_config.*differently in training"):
        tfc.plan(model, tfc.PrunedTernary())


def test_layer_stays_whole_if_a_part_can_be_neither_entered_nor_copied():
    class Part(blocks.Branch):
        def __init__(self, size):
            super().__init__()

    class Holder(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.part = Part(object())

        def call(self, inputs):
            return self.part(inputs)

    model = blocks.net(Holder(name="block"))
    replaced = replace_by_parts(model)
    assert "holds 'part" in replaced.reasons["block"]
    same(model, replaced.model)


def test_layer_that_two_blocks_hold_stays_shared():
    conv = given_conv()
    inputs = keras.Input((8, 8, 4))
    x = blocks.Twice(conv, name="one")(inputs)
    x = conv(blocks.Twice(conv, name="two")(x))
    model = keras.Model(inputs, x)
    replaced = replace_by_parts(model)
    assert replaced.model.count_params() == model.count_params()
    assert len([x for x in Graph(replaced.model).layers() if "given" in x]) == 1
    same(model, replaced.model)


def test_block_that_is_called_twice_stays_shared():
    block = blocks.Block(4, name="block")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, block(block(inputs)))
    replaced = replace_by_parts(model)
    assert "block" in replaced.nested
    assert replaced.model.count_params() == model.count_params()
    same(model, replaced.model)


def test_block_that_is_called_on_several_shapes_computes_the_same():
    block = blocks.WithSwish(4, name="block")
    inputs = keras.Input((8, 8, 4))
    x = block(layers.AveragePooling2D(2)(inputs))
    model = keras.Model(inputs, layers.UpSampling2D()(x) + block(inputs))
    replaced = replace_by_parts(model)
    assert replaced.nested == {"block"} and replaced.reasons == {}
    assert replaced.model.count_params() == model.count_params()
    same(model, replaced.model)


def test_frozen_block_is_left_alone_unless_it_is_unfrozen():
    model = blocks.net(blocks.Block(4, name="block"))
    model.get_layer("block").trainable = False
    for unfreeze in (False, True):
        plan = tfc.plan(model, tfc.PrunedTernary(), unfreeze)
        row = next(x for x in plan.rows if x.name.startswith("block/conv2d"))
        assert (row.config is None) is not unfreeze
        assert row.unfrozen is unfreeze


def test_override_of_a_block_holds_for_its_parts():
    model = blocks.net(blocks.Block(4, name="block"))
    scheme = tfc.PrunedTernary(overrides={"block": tfc.KeepFloat()})
    treated = [row.name for row in tfc.plan(model, scheme).treated()]
    assert treated == ["head"]


class Sequences(layers.Layer):
    """Layer of masked sequences, with a `compute_mask` of its own."""

    def __init__(self, passes, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = passes
        self.dense = layers.Dense(4)

    def call(self, inputs, mask=None):
        x = self.dense(inputs)
        return x if mask is None else x * ops.cast(mask, x.dtype)[..., None]

    def compute_mask(self, inputs, previous=None):
        return None if previous is None else ops.logical_not(previous)


@pytest.mark.parametrize("passes", [True, False])
def test_masks_pass_a_block_as_before(passes):
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(5, 4, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(Sequences(passes, name="block")(x))
    model = keras.Model(inputs, x)
    replaced = replace_by_parts(model)
    assert "block" in replaced.nested
    same(model, replaced.model, np.array([[1, 2, 3, 0], [1, 0, 0, 0]]))


def test_block_in_mixed_precision_computes_the_same():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = blocks.net(blocks.WithSwish(4, name="block"))
        replaced = replace_by_parts(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert "block" in replaced.nested
    outputs = [m(blocks.images()) for m in (model, replaced.model)]
    assert outputs[0].dtype == "bfloat16"
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, outputs))


def test_block_of_open_sizes_stays_open():
    block = blocks.WithSwish(4, name="block")
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, block(inputs))
    replaced = replace_by_parts(model)
    assert replaced.model.output_shape == (None, None, None, 4)
    same(model, replaced.model, np.ones((2, 5, 7, 4), "float32"))
