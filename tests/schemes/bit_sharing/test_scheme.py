"""Bit sharing from `compress` to the `.tflite`: budgets, searches, plans."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.backends import curves
from tests.small_net import small_net
from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.graph import Graph
from tfcompress.schemes.bit_sharing.search_space import SearchSpace

STEPS, BATCH = 10, 64


def fit(student, mnist, epochs, **kwargs):
    images, labels = mnist[0]
    size = STEPS * BATCH
    return student.fit(
        images[:size], labels[:size], batch_size=BATCH, epochs=epochs, verbose=0,
        **kwargs,
    )  # fmt: skip


def allocation(student):
    """`{name: (weight bits, activation bits)}` and `{name: open channels}`."""
    space = SearchSpace(student)
    bits = {
        name: (layer.kernel_quantizer.bits, layer.input_quantizer.bits)
        for name, layer in space.layers.items()
    }
    gates = space.filter_gates.items()
    return bits, {name: gate.open_channels().tolist() for name, gate in gates}


def bops(model):
    return total_cost(layer_costs(model)).bops


@pytest.fixture(scope="module")
def searched(trained_weights, mnist, compile_for_digits):
    """`(float model, student)` after a search and fine-tuning in one fit."""
    keras.utils.set_random_seed(0)
    model = small_net()
    model.set_weights(trained_weights)
    student = tfc.compress(
        model, tfc.BitSharing(bops="1/50", search_fraction=0.5, group_size=2)
    )
    compile_for_digits(student, keras.optimizers.SGD(0.05, momentum=0.9))
    fit(student, mnist, epochs=3)
    return model, student


@pytest.fixture(scope="module")
def finished(searched):
    """The final form of the searched student."""
    return tfc.finalize(searched[1])


def test_final_form_takes_at_most_the_budget_and_nearly_all_of_it(searched, finished):
    model, student = searched
    budget = bops(model) / 50
    assert 0.98 * budget <= bops(finished) <= budget
    space = SearchSpace(student)
    np.testing.assert_allclose(float(space.expected_bops()), bops(finished), rtol=1e-5)


def test_final_form_has_the_bits_and_filters_of_the_student(searched, finished):
    named = Graph(finished).layers()
    bits, channels = allocation(searched[1])
    costs = {cost.name: cost for cost in layer_costs(finished)}
    for name, pair in bits.items():
        assert (costs[name].weight_bits, costs[name].activation_bits) == pair
    for name, kept in channels.items():
        assert costs[name].channels == len(kept)
    filters = {name: searched[0].get_layer(name).filters for name in channels}
    assert any(len(kept) < filters[name] for name, kept in channels.items())
    assert not any(isinstance(x, tfc.layers.FilterGate) for x in named.values())
    assert bits["conv0"] == bits["head"] == (8, 8)


def test_final_form_predicts_like_the_student(searched, finished, mnist):
    images, labels = mnist[1]
    expected = searched[1].predict(images, verbose=0)
    received = finished.predict(images, verbose=0)
    # The last bit before a rounding may differ, and move one activation by a level.
    close = np.abs(received - expected).max(axis=1) < 1e-4 * np.abs(expected).max()
    assert close.mean() > 0.9
    assert (received.argmax(1) == expected.argmax(1)).mean() > 0.995
    assert (expected.argmax(1) == labels).mean() > 0.8


def test_loaded_students_and_final_forms_predict_as_before(
    searched, finished, mnist, tmp_path
):
    images = mnist[1][0][:100]
    for model in (searched[1], finished):
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(images, verbose=0), model.predict(images, verbose=0)
        )


def test_exported_file_has_the_bits_of_the_student(searched, finished, mnist, tmp_path):
    report = tfc.export(finished, tmp_path / "tiny.tflite", verify=mnist[1][0][:200])
    assert report["agreement"]["top1"] > 0.99
    types = {row["layer"]: row["type"] for row in report["tensors"]}
    for name, (weight_bits, _) in allocation(searched[1])[0].items():
        assert types[name] == f"INT{weight_bits}"


def test_second_fit_keeps_bits_and_filters(searched, mnist, tmp_path):
    searched[1].save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    before = allocation(student)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Gradients do not exist")
        fit(student, mnist, epochs=1)
    assert allocation(student) == before


def fit_without_learning_rate(model, mnist, penalty, *callbacks):
    """Student after a search in which the optimizer moves thresholds alone."""
    scheme = tfc.BitSharing(penalty=penalty, search_fraction=1.0, group_size=None)
    student = tfc.compress(model, scheme)
    student.compile(
        keras.optimizers.SGD(1e-6),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fit(student, mnist, epochs=1, callbacks=list(callbacks))
    return student


class WatchThresholds(keras.callbacks.Callback):
    """Records which thresholds move: of weights, of activations."""

    def on_train_begin(self, logs=None):
        self.moved = []

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self.values()

    def on_train_batch_end(self, batch, logs=None):
        pairs = zip(self.before, self.values(), strict=True)
        self.moved.append([a != b for a, b in pairs])

    def values(self):
        space = SearchSpace(self.model)
        groups = space.weight_thresholds(), space.activation_thresholds()
        return [[t.raw.numpy().tolist() for t in group] for group in groups]


def test_large_penalty_closes_gates_of_activations_and_weights_in_turns(trained, mnist):
    watch = WatchThresholds()
    bits, _ = allocation(fit_without_learning_rate(trained, mnist, 1e4, watch))
    assert watch.moved[:2] == [[False, True], [True, False]]
    assert {bits["conv1"], bits["conv2"]} == {(2, 2)}


@pytest.mark.slow
def test_gates_stay_open_without_a_penalty(trained, mnist):
    bits, _ = allocation(fit_without_learning_rate(trained, mnist, 0.0))
    assert {bits["conv1"], bits["conv2"]} == {(8, 8)}


@pytest.mark.parametrize("budget", [0, "0", -5, "1/0", "a lot", float("nan"), None])
def test_budget_in_no_valid_form_is_refused(budget):
    with pytest.raises(ValueError, match="bops"):
        tfc.BitSharing(bops=budget)


@pytest.mark.parametrize("budget", ["1/2", "1/100000", 10.0, 1e15])
def test_budget_that_cannot_be_met_is_refused_with_the_bounds(trained, budget):
    scheme = tfc.BitSharing(bops=budget)
    for refuse in (tfc.plan, tfc.compress):
        with pytest.raises(ValueError, match=r"can be met: 1/[\d.]+ to 1/[\d.]+"):
            refuse(trained, scheme)


def test_bounds_that_the_error_names_can_be_met(trained):
    with pytest.raises(ValueError) as error:
        tfc.plan(trained, tfc.BitSharing(bops=1))
    numbers = re.search(r"from (\S+) .* to (\S+) \(highest", str(error.value))
    lowest, highest = map(float, numbers.groups())
    shares = re.search(r"met: (1/\S+) to (1/\S+) of", str(error.value)).groups()
    for budget in (lowest, highest, *shares):
        tfc.plan(trained, tfc.BitSharing(bops=budget))
    for budget in (0.998 * lowest, 1.002 * highest):
        with pytest.raises(ValueError, match="can be met"):
            tfc.plan(trained, tfc.BitSharing(bops=budget))


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 4:
            raise KeyboardInterrupt


def interrupted(model):
    student = tfc.compress(model, tfc.BitSharing(bops="1/30", group_size=1))
    student.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    images, labels = curves.digits()
    with pytest.raises(KeyboardInterrupt):
        student.fit(images, labels, epochs=2, verbose=0, callbacks=[Interrupt()])
    return student


def test_student_of_an_interrupted_search_has_a_final_form():
    student = interrupted(curves.small_net())
    with pytest.warns(UserWarning, match="its bits has not ended"):
        tiny = tfc.finalize(student)
    assert np.isfinite(tiny.predict(curves.digits()[0][:10], verbose=0)).all()


@pytest.mark.slow
def test_next_fit_after_an_interrupted_search_searches_on():
    model = curves.small_net()
    student = interrupted(model)
    student.fit(*curves.digits(), epochs=2, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert bops(tfc.finalize(student)) <= bops(model) / 30


@pytest.mark.slow
def test_search_in_a_network_without_batch_norm_or_relu_in_batches_of_one(mnist):
    """Inputs after a linear bottleneck or a tanh are signed."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(4, 3, strides=2, activation="tanh", name="first")(inputs)
    x = layers.Conv2D(6, 1, activation="relu6", name="expand")(x)
    x = layers.DepthwiseConv2D(3, strides=2, activation="relu6", name="depthwise")(x)
    x = layers.Conv2D(4, 1, name="project")(x)
    x = layers.Conv2D(6, 3, activation="relu", name="after")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(10, activation="softmax", name="last")(x))
    student = tfc.compress(model, tfc.BitSharing(bops="1/40", group_size=1))
    signed = {
        name: layer.input_quantizer.signed
        for name, layer in SearchSpace(student).layers.items()
    }
    assert signed == {
        "first": True, "expand": True, "depthwise": False, "project": False,
        "after": True, "last": False,
    }  # fmt: skip
    student.compile("adam", "sparse_categorical_crossentropy")
    images, labels = mnist[0]
    student.fit(images[:12], labels[:12], batch_size=1, epochs=1, verbose=0)
    tiny = tfc.finalize(student)
    assert bops(tiny) <= bops(model) / 40
    assert np.isfinite(tiny.predict(images[:5], verbose=0)).all()


def test_plan_lists_bits_and_removable_filters(trained):
    rows = {
        row.name: row.treatment
        for row in tfc.plan(trained, tfc.BitSharing(bops="1/40", group_size=4)).rows
    }
    assert rows["conv1"] == (
        "2/4/8-bit weights, 2/4/8-bit inputs; up to 3 of 4 groups of 4 filters may go"
    )
    assert rows["head"].endswith("filters stay: the model returns them")


def test_any_candidates_are_searched_in_all_layers(
    trained, mnist, compile_for_digits, tmp_path
):
    bits = (2, 3, 5)
    scheme = tfc.BitSharing(
        bops="1/90",
        weight_bits=bits,
        activation_bits=bits,
        first_last="searched",
        search_fraction=0.5,
        group_size=None,
    )
    student = tfc.compress(trained, tfc.BitSharing.from_config(scheme.get_config()))
    compile_for_digits(student, keras.optimizers.SGD(0.05, momentum=0.9))
    fit(student, mnist, epochs=2)
    chosen, _ = allocation(student)
    assert chosen["conv0"][1] == 8  # the input of the model
    others = {name: pair for name, pair in chosen.items() if name != "conv0"}
    assert set(np.ravel([*others.values()])) <= set(bits)
    assert chosen["conv0"][0] in bits and len(set(chosen.values())) > 1
    tiny = tfc.finalize(student)
    assert 0.95 * bops(trained) / 90 <= bops(tiny) <= bops(trained) / 90
    images = mnist[1][0][:200]
    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=images)
    assert report["agreement"]["top1"] > 0.99


@pytest.mark.parametrize("weight_bits, activation_bits", [(4, 4), (3, 5), (2, 8)])
def test_uniform_has_the_same_bits_in_all_inner_layers(
    trained, weight_bits, activation_bits
):
    student = tfc.compress(trained, tfc.Uniform(weight_bits, activation_bits))
    # The name of an output goes to the layer that rounds it, with 8 bits.
    costs = {
        cost.name.removesuffix("_unrounded"): cost
        for cost in layer_costs(tfc.finalize(student))
    }
    for name, expected in (
        ("conv0", (8, 8)),
        ("conv1", (weight_bits, activation_bits)),
        ("head", (8, 8)),
    ):
        cost = costs[name]
        assert (cost.weight_bits, cost.activation_bits) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"bops": None},
        {"bops": "1/40", "penalty": 1.0},
        {"penalty": -1.0, "bops": None},
        {"search_fraction": 0.0, "penalty": 1.0, "bops": None},
        {"search_fraction": 1.5},
        {"group_size": 0},
        {"max_pruned": 1.0},
        {"max_pruned": 1.0, "group_size": None},
        {"weight_bits": (1, 2)},
        {"weight_bits": 4},
        {"weight_bits": "48"},
        {"activation_bits": ()},
        {"activation_bits": None},
        {"grid": "hexagonal"},
        {"first_last": "4bit"},
    ],
)
def test_out_of_range_arguments_are_refused(arguments):
    name = list(arguments)[0]
    with pytest.raises(ValueError, match=f"`{name}`.*Received.*{name}="):
        tfc.BitSharing(**{"bops": "1/40", **arguments})


def test_filters_are_searched_where_no_bits_are():
    """The first and the last layer have 8 bits, and filters between them may go."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3),
        ]
    )
    student = tfc.compress(model, tfc.BitSharing(bops="1/17"))
    student.compile("adam", "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4))
    history = student.fit(x, np.zeros((16, 3)), epochs=3, verbose=0).history
    assert (history["phase"][0], history["phase"][-1]) == (0.0, 1.0)
    assert bops(tfc.finalize(student)) <= bops(model) / 17
