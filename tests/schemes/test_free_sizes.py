"""Models whose inputs have free sizes, from their budget to their file."""

import keras
import numpy as np
import pytest
from keras import layers as kl

import tfcompress as tfc
from tests.free_sizes import KINDS, TwoSizes, free_model, samples, shapes
from tfcompress.cost import layer_costs, total_cost
from tfcompress.litert import predict

# Schemes that count operations, by the measure that they lower to a half or less.
COUNTING = {
    "bops": lambda shape: tfc.BitSharing("1/40", group_size=8, input_shape=shape),
    "macs": lambda shape: tfc.Decomposition("1/2", input_shape=shape),
}
OTHERS = {
    "ternary": lambda: tfc.PrunedTernary(0.5),
    "uniform": lambda: tfc.Uniform(4, 4),
    "size": lambda: tfc.SizeConstrained(9000, compression="none"),
    "value_bits": lambda: tfc.SizeConstrained(value_bits="1/10"),
    "params": lambda: tfc.Decomposition(params="0.7"),
}
# A training of each other kind and scheme is among the long tests.
FAST = {
    *[("bops", "audio"), ("macs", "audio"), ("ternary", "images")],
    *[("ternary", "pixels"), ("uniform", "tokens"), ("size", "audio")],
}


def each_training(names):
    """Parameters `name` and `kind` of all trainings."""
    return pytest.mark.parametrize(
        ("name", "kind"),
        [
            pytest.param(n, k, marks=() if (n, k) in FAST else pytest.mark.slow)
            for n in names
            for k in KINDS
        ],
    )


each_kind = pytest.mark.parametrize("kind", KINDS)
each_counting = pytest.mark.parametrize("measure", COUNTING)


def trained(model, scheme, kind, epochs):
    student = tfc.compress(model, scheme)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("adam", loss)
    student.fit(TwoSizes(kind), epochs=epochs, verbose=0)
    return student


def check_file(tiny, kind, path):
    """The file computes what the model does, at both sizes."""
    for shape in shapes(kind):
        inputs, _ = samples(kind, shape)
        tfc.export(tiny, path, verify=inputs)
        outputs = predict(path, inputs)
        assert outputs.shape == tiny(inputs).shape and np.isfinite(outputs).all()


@each_training(COUNTING)
def test_budget_of_operations_is_met_at_the_input_shape(name, kind, tmp_path):
    model, shape = free_model(kind), shapes(kind)[0]
    student = trained(model, COUNTING[name](shape), kind, epochs=3)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    measured = loaded.scheme.measure(loaded)
    assert loaded.scheme.input_shape == shape
    assert measured == student.scheme.measure(student)
    assert 0.8 < measured["budget_ratio"] <= 1  # small nets have few allocations
    tiny = tfc.finalize(loaded)
    costs = [total_cost(layer_costs(x, shape)) for x in (model, tiny)]
    before, after = (getattr(cost, name) for cost in costs)
    assert after <= before * {"bops": 1 / 40, "macs": 1 / 2}[name]
    assert tiny.input_shape == model.input_shape
    if name == "bops":
        check_file(tiny, kind, tmp_path / "tiny.tflite")


@each_training(OTHERS)
def test_other_schemes_need_no_input_shape(name, kind, tmp_path):
    student = trained(free_model(kind), OTHERS[name](), kind, epochs=2)
    tiny = tfc.finalize(student)
    if name == "params":
        assert tiny.count_params() <= 0.7 * free_model(kind).count_params()
    else:
        check_file(tiny, kind, tmp_path / "tiny.tflite")


@each_kind
@each_counting
def test_budget_of_operations_without_input_shape_names_the_layers(kind, measure):
    _, sizes, _, rest = KINDS[kind]
    proposed = ((224, 224) if len(sizes) == 2 else (128,)) + rest
    for use in (tfc.plan, tfc.compress):
        with pytest.raises(ValueError, match="'conv0', 'conv1'") as raised:
            use(free_model(kind), COUNTING[measure](None))
        message = str(raised.value)
        assert f"such as input_shape={proposed}" in message
        assert "'head'" in message or kind != "pixels"
    # The proposal can be taken.
    tfc.compress(free_model(kind), COUNTING[measure](proposed))


@pytest.mark.parametrize(
    "scheme",
    [
        tfc.BitSharing(penalty=1.0),
        tfc.Decomposition(penalty=1.0),
        tfc.Decomposition(params="1/2", margin="measured"),
    ],
    ids=["penalty on BOPs", "penalty on MACs", "measured margin"],
)
def test_whatever_counts_operations_needs_an_input_shape(scheme):
    with pytest.raises(ValueError, match="needs the output size of every layer"):
        tfc.compress(free_model("images"), scheme)
    scheme.input_shape = (16, 16, 3)
    tfc.compress(free_model("images"), scheme)


@each_counting
def test_sizes_that_do_not_depend_on_the_inputs_need_no_input_shape(measure):
    x = inputs = keras.Input((None, None, 3))
    x = kl.Resizing(16, 16)(x)
    for i in range(3):
        x = kl.Conv2D(8, 3, activation="relu", name=f"conv{i}")(x)
    model = keras.Model(inputs, kl.Dense(4)(kl.Flatten()(x)))
    schemes = [COUNTING[measure](shape) for shape in (None, (30, 20, 3))]
    costs = [
        scheme.measure(tfc.compress(model, scheme))[scheme.cost_name()]
        for scheme in schemes
    ]
    assert costs[0] == costs[1] > 0


@each_counting
@pytest.mark.parametrize(("size", "given"), [(None, (16, 6)), (16, None)])
def test_budget_is_refused_where_sizes_depend_on_more_than_the_inputs(
    measure, size, given
):
    class Open(kl.Layer):
        def compute_output_shape(self, shape):
            return (shape[0], None, *shape[2:])

        def call(self, x):
            return x

    inputs = keras.Input((size, 6))
    x = kl.Conv1D(4, 3, name="after")(Open()(inputs))
    model = keras.Model(inputs, kl.GlobalAveragePooling1D()(x))
    with pytest.raises(ValueError, match=r"open for 'after'\. It depends on more"):
        tfc.plan(model, COUNTING[measure](given))


@pytest.mark.parametrize("name", [*COUNTING, *OTHERS])
@pytest.mark.parametrize("inner", [False, True], ids=["layer", "nested model"])
@pytest.mark.parametrize(
    "layer", [kl.Conv2D(4, 3), kl.Dense(4), kl.BatchNormalization()], ids=type
)
def test_layers_on_open_channels_are_refused(name, inner, layer):
    layer = type(layer).from_config({**layer.get_config(), "name": "conv"})
    layer.build((None, None, None, 3))
    if inner:
        layer = keras.Sequential([keras.Input((None, None, 3)), layer], name="inner")
    inputs = keras.Input((None, None, None))
    model = keras.Model(inputs, layer(inputs))
    scheme = COUNTING[name]((8, 8, 3)) if name in COUNTING else OTHERS[name]()
    with pytest.raises(ValueError, match=r"known number of channels.*conv'.*3 chan"):
        tfc.compress(model, scheme)
