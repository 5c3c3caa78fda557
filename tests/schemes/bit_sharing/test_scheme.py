import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.cost import layer_costs, total_cost
from tfcompress.graph.graph import Graph
from tfcompress.schemes.bit_sharing.search_space import SearchSpace

STEPS, BATCH = 10, 100


def fit(student, mnist, epochs, **kwargs):
    images, labels = mnist[0]
    size = STEPS * BATCH
    return student.fit(
        images[:size], labels[:size], batch_size=BATCH, epochs=epochs, verbose=0,
        **kwargs,
    )  # fmt: skip


def chosen(student):
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
    """A student after search and fine-tuning in one fit, with its float model."""
    from tests.small_net import small_net

    keras.utils.set_random_seed(0)
    model = small_net()
    model.set_weights(trained_weights)
    student = tfc.compress(
        model, tfc.BitSharing(bops="1/50", search_fraction=0.6, group_size=2)
    )
    compile_for_digits(student, keras.optimizers.SGD(0.02, momentum=0.9))
    fit(student, mnist, epochs=6)
    return model, student


def test_the_finished_model_takes_at_most_the_budget_and_nearly_all_of_it(searched):
    model, student = searched
    tiny = tfc.finalize(student)
    budget = bops(model) / 50
    assert 0.98 * budget <= bops(tiny) <= budget
    space = SearchSpace(student)
    np.testing.assert_allclose(float(space.expected_bops()), bops(tiny), rtol=1e-5)


def test_the_choice_is_what_the_finished_model_has(searched):
    _, student = searched
    tiny = tfc.finalize(student)
    named = Graph(tiny).layers()
    bits, channels = chosen(student)
    costs = {cost.name: cost for cost in layer_costs(tiny)}
    for name, pair in bits.items():
        assert (costs[name].weight_bits, costs[name].activation_bits) == pair
    for name, kept in channels.items():
        assert costs[name].channels == len(kept)
    assert not any(isinstance(x, tfc.layers.FilterGate) for x in named.values())
    assert bits["conv0"] == bits["head"] == (8, 8)


def test_the_finished_model_predicts_like_the_student(searched, mnist):
    _, student = searched
    images, labels = mnist[1]
    expected = student.predict(images, verbose=0)
    received = tfc.finalize(student).predict(images, verbose=0)
    # The last bit before a rounding may differ, and move one activation by a level.
    close = np.abs(received - expected).max(axis=1) < 1e-4 * np.abs(expected).max()
    assert close.mean() > 0.9
    assert (received.argmax(1) == expected.argmax(1)).mean() > 0.995
    assert (expected.argmax(1) == labels).mean() > 0.8


def test_saved_students_and_models_predict_the_same(searched, mnist, tmp_path):
    _, student = searched
    images = mnist[1][0][:100]
    for model in (student, tfc.finalize(student)):
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(
            loaded.predict(images, verbose=0), model.predict(images, verbose=0)
        )


def test_export_proves_itself(searched, mnist, tmp_path):
    _, student = searched
    tiny = tfc.finalize(student)
    report = tfc.export(tiny, tmp_path / "tiny.tflite", verify=mnist[1][0][:200])
    assert report["agreement"]["top1"] > 0.99
    types = {row["layer"]: row["type"] for row in report["tensors"]}
    for name, (weight_bits, _) in chosen(student)[0].items():
        assert types[name] == f"INT{weight_bits}"


def test_a_second_fit_keeps_the_choice(searched, mnist, compile_for_digits, tmp_path):
    searched[1].save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    before = chosen(student)
    fit(student, mnist, epochs=1)
    assert chosen(student) == before


def test_a_large_penalty_closes_all_gates_in_turns(trained, mnist, compile_for_digits):
    """Weight gates move in one step, activation gates in the next."""
    scheme = tfc.BitSharing(penalty=1e4, search_fraction=1.0, group_size=None)
    student = tfc.compress(trained, scheme)
    # No learning rate to speak of: the cross-entropy moves nothing.
    compile_for_digits(student, keras.optimizers.SGD(1e-6))
    space = SearchSpace(student)
    groups = space.weight_thresholds(), space.activation_thresholds()
    moved = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.before = self.values()

        def on_train_batch_end(self, batch, logs=None):
            pairs = zip(self.before, self.values(), strict=True)
            moved.append([a != b for a, b in pairs])

        def values(self):
            return [[t.raw.numpy().tolist() for t in group] for group in groups]

    fit(student, mnist, epochs=1, callbacks=[Watch()])
    assert moved[:2] == [[False, True], [True, False]]
    inner = chosen(student)[0]
    assert {inner["conv1"], inner["conv2"]} == {(2, 2)}


@pytest.mark.slow
def test_without_a_penalty_gates_stay_open(trained, mnist, compile_for_digits):
    scheme = tfc.BitSharing(penalty=0.0, search_fraction=1.0, group_size=None)
    student = tfc.compress(trained, scheme)
    compile_for_digits(student, keras.optimizers.SGD(1e-6))
    fit(student, mnist, epochs=1)
    inner = chosen(student)[0]
    assert {inner["conv1"], inner["conv2"]} == {(8, 8)}


@pytest.mark.parametrize("budget", [0, "0", -5, "1/0", "a lot", float("nan"), None])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ValueError, match="bops"):
        tfc.BitSharing(bops=budget)


@pytest.mark.parametrize("budget", ["1/2", "1/100000", 10.0, 1e15])
def test_a_budget_that_cannot_be_met_is_refused_with_the_bounds(trained, budget):
    scheme = tfc.BitSharing(bops=budget)
    for refuse in (tfc.plan, tfc.compress):
        with pytest.raises(ValueError, match=r"can be met: 1/[\d.]+ to 1/[\d.]+"):
            refuse(trained, scheme)


def test_the_bounds_that_an_error_names_can_be_met(trained):
    with pytest.raises(ValueError) as error:
        tfc.plan(trained, tfc.BitSharing(bops=1))
    numbers = re.search(r"from (\S+) .* to (\S+) \(highest", str(error.value))
    lowest, highest = map(float, numbers.groups())
    tfc.plan(trained, tfc.BitSharing(bops=lowest * 1.01))
    tfc.plan(trained, tfc.BitSharing(bops=highest * 0.99))


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 4:
            raise KeyboardInterrupt


def interrupted(model, mnist, compile_for_digits):
    student = tfc.compress(model, tfc.BitSharing(bops="1/40", group_size=1))
    compile_for_digits(student)
    with pytest.raises(KeyboardInterrupt):
        fit(student, mnist, epochs=2, callbacks=[Interrupt()])
    return student


def test_an_interrupted_search_leaves_a_usable_student(
    trained, mnist, compile_for_digits
):
    student = interrupted(trained, mnist, compile_for_digits)
    with pytest.warns(UserWarning, match="its bits has not ended"):
        tiny = tfc.finalize(student)
    assert np.isfinite(tiny.predict(mnist[1][0][:10], verbose=0)).all()


@pytest.mark.slow
def test_the_next_fit_searches_on(trained, mnist, compile_for_digits):
    student = interrupted(trained, mnist, compile_for_digits)
    fit(student, mnist, epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert 0.98 <= bops(tfc.finalize(student)) / (bops(trained) / 40) <= 1


@pytest.mark.slow
def test_networks_without_batch_norm_or_relu_and_batches_of_one(mnist):
    """A linear bottleneck needs a signed input, and a tanh too."""
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


def test_the_plan_says_which_filters_may_go(trained):
    rows = {
        row.name: row.treatment
        for row in tfc.plan(trained, tfc.BitSharing(bops="1/40", group_size=4)).rows
    }
    assert rows["conv1"] == (
        "2/4/8-bit weights, 2/4/8-bit inputs; up to 3 of 4 groups of 4 filters may go"
    )
    assert rows["head"].endswith("filters stay: the model returns them")


@pytest.mark.parametrize("weight_bits, activation_bits", [(4, 4), (3, 5), (2, 8)])
def test_uniform(trained, weight_bits, activation_bits):
    student = tfc.compress(trained, tfc.Uniform(weight_bits, activation_bits))
    costs = {cost.name: cost for cost in layer_costs(tfc.finalize(student))}
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
        {"bops": None, "penalty": -1.0},
        {"search_fraction": 0.0},
        {"search_fraction": 1.5},
        {"group_size": 0},
        {"max_pruned": 1.0},
        {"weight_bits": (2, 3)},
        {"activation_bits": ()},
        {"grid": "hexagonal"},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="Received"):
        tfc.BitSharing(**{"bops": "1/40", **arguments})
