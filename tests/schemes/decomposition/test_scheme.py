import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import litert
from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.graph import Graph
from tfcompress.layers import FactorizedKernel
from tfcompress.litert import predict
from tfcompress.schemes.decomposition.latency import slower_in_two
from tfcompress.schemes.decomposition.selection import Cut


def fit(student, mnist, epochs, **kwargs):
    images, labels = mnist[0]
    return student.fit(
        images, labels, batch_size=100, epochs=epochs, verbose=0, **kwargs
    )


def macs(model):
    return total_cost(layer_costs(model)).macs


@pytest.fixture(scope="module", params=["behind", "between"])
def searched(request, trained_weights, mnist, compile_for_digits):
    """A student after shrinking, cut and fine-tuning, with its float model."""
    from tests.small_net import small_net

    keras.utils.set_random_seed(0)
    model = small_net()
    model.set_weights(trained_weights)
    start = "svd" if request.param == "behind" else "identity"
    scheme = tfc.Decomposition(macs="1/2", start=start, batch_norm=request.param)
    student = tfc.compress(model, scheme)
    compile_for_digits(student, keras.optimizers.SGD(0.02, momentum=0.9))
    fit(student, mnist, epochs=5)
    return model, student


def test_a_new_student_predicts_as_the_model(trained, mnist):
    images = mnist[1][0][:20]
    for start, batch_norm in (
        ("svd", "behind"),
        ("identity", "behind"),
        ("identity", "between"),
    ):
        scheme = tfc.Decomposition(macs="1/2", start=start, batch_norm=batch_norm)
        student = tfc.compress(trained, scheme)
        np.testing.assert_allclose(student(images), trained(images), atol=1e-4)
        np.testing.assert_allclose(
            tfc.finalize(student)(images), trained(images), atol=1e-4
        )


def test_the_finished_model_takes_at_most_the_budget_and_nearly_all_of_it(searched):
    model, student = searched
    tiny = tfc.finalize(student)
    # One channel of the first layer is 7 % of the network's MACs.
    assert 0.92 * macs(model) / 2 <= macs(tiny) <= macs(model) / 2


def test_it_predicts_as_the_student_with_plain_layers_alone(searched, mnist):
    _, student = searched
    images, labels = mnist[1]
    tiny = tfc.finalize(student)
    assert {type(x).__module__.split(".")[0] for x in tiny.layers} == {"keras"}
    expected = student.predict(images, verbose=0)
    received = tiny.predict(images, verbose=0)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(received, expected, atol=tolerance)
    accuracy, before = (
        np.mean(x.argmax(axis=1) == labels)
        for x in (received, searched[0].predict(images, verbose=0))
    )
    assert accuracy >= before - 0.01


def test_saved_students_and_models_predict_the_same(searched, mnist, tmp_path):
    images = mnist[1][0][:100]
    for model in (searched[1], tfc.finalize(searched[1])):
        model.save(tmp_path / "model.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as an optimizer that is not loaded
            loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(images, verbose=0), model.predict(images, verbose=0)
        )


def test_export_proves_itself(searched, mnist, tmp_path):
    tiny = tfc.finalize(searched[1])
    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=mnist[1][0][:200])
    assert report["agreement"]["top1"] == 1.0
    with pytest.raises(ValueError, match="still in training.*tfcompress.finalize"):
        tfc.export(searched[1], tmp_path / "student.tflite")


def test_half_the_macs_are_faster_and_need_less_memory(searched):
    models = (searched[0], tfc.finalize(searched[1]))
    # Many images at once: with one, calls cost as much as products.
    inputs = keras.Input((28, 28, 1), batch_size=64)
    files = [litert.float_tflite(keras.Model(inputs, m(inputs))) for m in models]
    before, after = litert.latency(files)
    assert after < before
    before, after = map(litert.peak_memory, files)
    assert after < before


def test_a_second_fit_keeps_the_cut(searched, mnist, tmp_path):
    searched[1].save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    before = masks(student)
    fit(student, mnist, epochs=1)
    for a, b in zip(before, masks(student), strict=True):
        np.testing.assert_array_equal(a, b)
    assert macs(tfc.finalize(student)) == macs(tfc.finalize(searched[1]))


def masks(student):
    return [
        np.array(mask)
        for layer in student.layers
        if isinstance(layer, FactorizedKernel)
        for mask in (layer.rank_mask, layer.input_mask)
    ]


def test_another_scheme_takes_the_result(searched):
    tiny = tfc.finalize(searched[1])
    student = tfc.compress(tiny, tfc.PrunedTernary())
    packed = tfc.finalize(student)
    names = set(Graph(packed).layers())
    assert {"conv0", "conv1", "conv2", "head"} <= names


def residual_net():
    """A stage of two blocks on one sum, and a depthwise convolution behind it."""
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(12, 3, strides=2, padding="same", name="stem")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    for i in range(2):
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name=f"a{i}")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(12, 3, padding="same", use_bias=False, name=f"b{i}")(y)
        y = layers.BatchNormalization()(y)
        x = layers.ReLU()(layers.Add(name=f"sum{i}")([x, y]))
    x = layers.DepthwiseConv2D(3, strides=2, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="head")(x))


def test_tied_channels_go_together(mnist):
    model = residual_net()
    scheme = tfc.Decomposition(params="1/10", round_to=4, search_fraction=1.0)
    rows = {row.name: row.treatment for row in tfc.plan(model, scheme).rows}
    assert "channels may go with those of" in rows["stem"]
    assert "channels stay" in rows["head"]
    student = tfc.compress(model, scheme)
    student.compile(keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy")
    fit(student, (tuple(x[:600] for x in mnist[0]),), epochs=1)
    tiny = tfc.finalize(student)
    params = total_cost(layer_costs(tiny)).params
    assert params <= total_cost(layer_costs(model)).params / 10
    widths = {
        name: layer.filters
        for name, layer in Graph(tiny).layers().items()
        if name in ("stem", "a0", "b0", "a1", "b1")
    }
    assert widths["stem"] == widths["b0"] == widths["b1"] < 12
    assert all(width % 4 == 0 for width in widths.values())
    images = mnist[1][0][:50]
    np.testing.assert_allclose(tiny(images), student(images), atol=1e-5)


def test_what_is_left_alone_keeps_its_channels_and_those_it_reads(trained):
    scheme = tfc.Decomposition(macs="0.9", overrides={"conv1": tfc.KeepFloat()})
    rows = {row.name: row.treatment for row in tfc.plan(trained, scheme).rows}
    assert rows["conv0"].endswith("channels stay: 'conv1' is left alone")
    assert rows["conv1"] == "left alone: kept float on request"
    assert rows["conv2"].endswith("channels may go")


def test_a_measured_margin_keeps_what_is_faster(trained, monkeypatch):
    """Two layers of half the rank save MACs; LiteRT says whether time as well."""
    student = tfc.compress(trained, tfc.Decomposition(macs="1/2", margin="measured"))
    space = student.rank_space
    ranks = {
        name: np.arange(len(x.rank_mask.numpy())) for name, x in space.layers.items()
    }
    few = {name: (index < 1) for name, index in ranks.items()}
    cut = Cut(np.ones(len(space.removable), bool), few, 0.0)
    timed = []

    def latency(files, runs):
        assert [predict(file, np.zeros((1, *shape_of[len(timed)]), "float32")).ndim
                for file in files]  # fmt: skip
        timed.append(runs)
        return [1.0, 0.5 + len(timed) % 2]

    shape_of = [space.input_shape(name)[1:] for name in space.layers]
    monkeypatch.setattr(litert, "latency", latency)
    names = list(space.layers)
    assert slower_in_two(space, cut) == names[::2]
    assert len(timed) == len(names)


def test_a_penalty_takes_what_has_become_zero(trained, mnist, compile_for_digits):
    """As much as may go, at a huge one."""
    scheme = tfc.Decomposition(penalty=1e4, search_fraction=1.0)
    student = tfc.compress(trained, scheme)
    compile_for_digits(student, keras.optimizers.SGD(1e-3))
    fit(student, mnist, epochs=1)
    assert macs(tfc.finalize(student)) < macs(trained) / 10


def test_what_stays_does_not_shrink(trained, mnist, compile_for_digits):
    """No learning rate to speak of: coefficients are what they were, or nothing.

    A channel that fits the budget only later on may have begun to shrink.
    """
    student = tfc.compress(trained, tfc.Decomposition(macs="1/2", search_fraction=1.0))
    compile_for_digits(student, keras.optimizers.SGD(1e-6))
    factorized = student.rank_space.layers.values()
    before = []

    def remember(batch, logs):
        if not before:  # they have been turned to their principal axes
            before.extend(np.array(layer.coefficients) for layer in factorized)

    remember = keras.callbacks.LambdaCallback(on_train_batch_begin=remember)
    fit(student, mnist, epochs=2, callbacks=[remember])
    ratios = np.concatenate(
        [
            (np.array(layer.coefficients) / old).ravel()
            for layer, old in zip(factorized, before, strict=True)
        ]
    )
    gone, kept = np.abs(ratios) < 1e-6, np.abs(ratios - 1) < 0.02
    assert (gone | kept).mean() > 0.93
    assert 0.2 < gone.mean() < 0.8


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            raise KeyboardInterrupt


def test_an_interrupted_search_leaves_a_usable_student(
    trained, mnist, compile_for_digits
):
    student = tfc.compress(trained, tfc.Decomposition(macs="1/2"))
    compile_for_digits(student)
    with pytest.raises(KeyboardInterrupt):
        fit(student, mnist, epochs=2, callbacks=[Interrupt()])
    images = mnist[1][0][:20]
    with pytest.warns(UserWarning, match="'conv0': channels and ranks are not cut"):
        tiny = tfc.finalize(student)
    assert macs(tiny) == macs(trained)
    np.testing.assert_allclose(tiny(images), student(images), atol=1e-4)


@pytest.mark.parametrize("budget", ["1/1000", "2", 10])
def test_a_budget_that_cannot_be_met_is_refused_with_the_bounds(trained, budget):
    scheme = tfc.Decomposition(macs=budget)
    for refuse in (tfc.plan, tfc.compress):
        with pytest.raises(ValueError, match=r"1/[\d.]+ to 1/1 .* can be met"):
            refuse(trained, scheme)


def test_a_model_in_which_nothing_can_be_cut():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(2, name="only")(inputs))
    with pytest.raises(ValueError, match="can be met"):
        tfc.plan(model, tfc.Decomposition(macs="1/2", margin=0.1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"macs": None},
        {"params": "1/2"},
        {"penalty": 1.0},
        {"macs": None, "penalty": -1.0},
        {"macs": 0},
        {"macs": "half"},
        {"start": "random"},
        {"margin": 0.0},
        {"margin": 1.5},
        {"round_to": 0},
        {"search_fraction": 0.0},
        {"overrides": {"conv1": tfc.QuantizeConfig(tfc.quantizers.Ternary())}},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises((ValueError, TypeError), match="Received"):
        tfc.Decomposition(**{"macs": "1/2", **arguments})
