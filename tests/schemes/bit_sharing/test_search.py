"""End of a search: gates that decide, and ranges that are calibrated again."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.core.training.calibration import (
    calibrate_activations,
    calibrate_weights,
)
from tfcompress.core.training.penalty import PenaltyMultiplier
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.quantizers.gates import BitGates
from tfcompress.quantizers.threshold import MAX_THRESHOLD


def three_convolutions(batch_norm=True):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((14, 14, 1))
    x = inputs
    for name in ("first", "second", "third"):
        x = layers.Conv2D(4, 3, strides=2, padding="same", name=name)(x)
        x = layers.BatchNormalization()(x) if batch_norm else x
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="last")(x))


def started_search(mnist, batch_norm=True, **budget):
    """Search in a student of two inner layers whose gates are all open."""
    model = three_convolutions(batch_norm)
    scheme = tfc.BitSharing(**(budget or {"penalty": 0.0}), group_size=None)
    student = tfc.compress(model, scheme)
    batches = [mnist[0][0][i : i + 64, ::2, ::2] for i in (0, 64)]
    recalibrate = Recalibration(student, batches)
    calibrate_activations(recalibrate)
    _, search = student.scheme.callbacks(student, recalibrate)
    search.set_model(student)
    search.margins = []
    for gates in search.space.bit_gates():
        if gates.threshold is not None:
            gates.set_costs([5.0, 5.0])
    return search


def set_thresholds(thresholds, value):
    for threshold in thresholds:
        threshold.raw.assign([value] * threshold.size)


def ranges(search):
    return [
        float(quantizer.clip)
        for layer in search.space.layers.values()
        for quantizer in (layer.kernel_quantizer, layer.input_quantizer)
    ]


def batch_norms(student):
    return [x for x in student.layers if isinstance(x, layers.BatchNormalization)]


def test_frozen_bits_follow_the_average_margins_of_the_search(mnist):
    search = started_search(mnist)
    second = search.space.layers["second"].kernel_quantizer
    third = search.space.layers["third"].input_quantizer
    set_thresholds([second.gates.threshold], MAX_THRESHOLD)
    for _ in range(9):
        search.advance(share=0.9)
    set_thresholds([second.gates.threshold], 0.0)
    set_thresholds([third.gates.threshold], MAX_THRESHOLD)
    assert (second.bits, third.bits) == (8, 2)
    search.freeze()
    assert (second.bits, third.bits) == (2, 8)


@pytest.fixture
def search_of_one_dear_layer(mnist):
    """Search with a budget for 8 bits in one of two layers that take as many BOPs."""
    search = started_search(mnist, bops="1/28")
    for gates in search.space.bit_gates():
        if gates.threshold is not None:
            gates.set_costs([0.1, 0.1])
    search.space.layers["third"].kernel_quantizer.gates.set_costs([3.0, 2.0])
    search.costs = search.space.costs()
    return search


def bits_of_weights(search):
    return {n: q.bits for n, q in search.space.searched_weights().items()}


def test_with_a_budget_costs_decide_and_not_where_thresholds_are(
    search_of_one_dear_layer,
):
    search = search_of_one_dear_layer
    third = search.space.layers["third"].kernel_quantizer.gates
    set_thresholds([third.threshold], MAX_THRESHOLD)
    search.freeze()
    assert bits_of_weights(search) == {"second": 2, "third": 8}
    assert 0.98 * search.budget <= search.space.expected_bops() <= search.budget


def test_a_gate_of_no_cost_hides_no_others(search_of_one_dear_layer):
    """Two and four bits may be as bad, such as where both make outputs overflow."""
    search = search_of_one_dear_layer
    search.costs["weights"]["third"] = np.array([0.0, 5.0])
    search.freeze()
    assert bits_of_weights(search) == {"second": 2, "third": 8}


def test_costs_are_those_of_the_start_of_the_search(search_of_one_dear_layer):
    search = search_of_one_dear_layer
    for gates in search.space.bit_gates():
        if gates.threshold is not None:
            gates.errors.assign([0.0, 0.0])
    search.freeze()
    assert bits_of_weights(search) == {"second": 2, "third": 8}


@pytest.mark.parametrize("has_costs", [True, False], ids=["saved", "version 0.1.0"])
def test_costs_of_a_restored_search_are_those_of_its_start(
    search_of_one_dear_layer, has_costs
):
    search = search_of_one_dear_layer
    search.penalty_multiplier = PenaltyMultiplier(1.0, 1.0)
    state = search.search_state()
    if has_costs:
        search.space.layers["second"].kernel_quantizer.gates.set_costs([9.0, 9.0])
    else:
        del state["costs"]
    search.model.compile("sgd", "mse")
    search.resume(state)
    search.freeze()
    assert bits_of_weights(search) == {"second": 2, "third": 8}


def test_margins_from_before_the_budget_is_reached_do_not_count(mnist):
    search = started_search(mnist)
    set_thresholds(search.space.thresholds(), MAX_THRESHOLD)
    for _ in range(9):
        search.advance(share=0.7)
    set_thresholds(search.space.thresholds(), 0.0)
    search.freeze()
    assert {gates.bits() for gates in search.space.bit_gates()} == {8}


def test_ranges_are_calibrated_for_the_frozen_bits(mnist):
    search = started_search(mnist, batch_norm=False)
    set_thresholds(search.space.thresholds(), MAX_THRESHOLD)
    for layer in search.space.layers.values():  # as if training had moved them
        layer.latent_kernel.assign(layer.latent_kernel**3)
    in_search = ranges(search)
    search.freeze()
    frozen = ranges(search)
    # Weights and inputs of the inner layers have 2 bits now.
    assert all(a != b for a, b in zip(frozen[2:6], in_search[2:6], strict=True))
    calibrate_weights(search.model)
    calibrate_activations(search.recalibrate)
    assert ranges(search) == frozen


def test_frozen_ranges_do_not_depend_on_stale_batch_norm_statistics(mnist):
    ends = []
    for stale in (0.0, 3.0):
        search = started_search(mnist)
        for layer in batch_norms(search.model):
            layer.moving_mean.assign(layer.moving_mean + stale)
        search.freeze()
        ends.append(ranges(search))
    assert ends[0] == ends[1]


def test_frozen_ranges_do_not_depend_on_those_of_the_search(mnist):
    """Ranges that round all to zero would leave statistics without a variance."""
    ends = []
    for factor in (1.0, 1e3):
        search = started_search(mnist)
        for layer in search.space.layers.values():
            clip = layer.input_quantizer.clip
            clip.assign(factor * clip)
        search.freeze()
        ends.append(ranges(search))
    assert ends[0] == ends[1]


def test_batch_norm_statistics_belong_to_the_frozen_ranges(mnist):
    search = started_search(mnist)
    set_thresholds(search.space.thresholds(), MAX_THRESHOLD)
    search.freeze()
    norms = batch_norms(search.model)
    frozen = [np.array(norm.moving_mean) for norm in norms]
    search.recalibrate()
    for norm, expected in zip(norms, frozen, strict=True):
        np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-4, atol=1e-5)


def test_search_that_diverged_says_so_before_its_end():
    """Filters of NaN are not kept, so that the BOPs are zero."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.Conv2D(16, 3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2)(x))

    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for layer in self.model.layers:
                kernel = getattr(layer, "latent_kernel", None)
                if kernel is not None:
                    kernel.assign(np.full(kernel.shape, np.nan))

    student = tfc.compress(model, tfc.BitSharing(bops="1/60"))
    student.compile("sgd", "mse")
    data = np.zeros((64, 8, 8, 1)), np.zeros((64, 2))
    with pytest.raises(ValueError, match="Received NaN.*Its training diverged"):
        student.fit(*data, batch_size=8, epochs=4, verbose=0, callbacks=[Poison()])


@pytest.mark.parametrize(
    "scheme", [tfc.BitSharing(bops="1/60"), tfc.PrunedTernary(activation_bits=8)]
)
def test_ranges_of_data_with_nan_are_refused(scheme):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, name="first", activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    student = tfc.compress(keras.Model(inputs, layers.Dense(2)(x)), scheme)
    student.compile("sgd", "mse")
    x = np.zeros((64, 8, 8, 1))
    x[::8] = np.nan
    with pytest.raises(ValueError, match="Finite activations.*'first'.*or the data"):
        student.fit(x, np.zeros((64, 2)), verbose=0)


def fitted(mnist, monkeypatch, **kwargs):
    """A student that trained without a search, its history, and what its gates did."""
    scheme = tfc.BitSharing("1/28", group_size=None, search_fraction=0.0)
    student = tfc.compress(three_convolutions(), scheme)
    learned, learn = [], BitGates.learn
    passes, own_pass = [], student.training_run.own_pass

    @contextlib.contextmanager
    def noted_pass():
        passes.append(True)
        with own_pass():
            yield
        passes.pop()

    def noted(*args):
        learns = learn(*args)
        if not passes:  # these undo what is learned in them
            learned.append(learns)
        return learns

    monkeypatch.setattr(student.training_run, "own_pass", noted_pass)
    monkeypatch.setattr(BitGates, "learn", noted)
    student.compile("sgd", "sparse_categorical_crossentropy")
    x, y = mnist[0]
    history = student.fit(
        x[:64, ::2, ::2], y[:64], batch_size=16, epochs=2, verbose=0, **kwargs
    )
    return student, history.history, learned


def test_without_a_search_the_least_cost_is_trained_from_the_first_step(
    mnist, monkeypatch
):
    student, history, learned = fitted(mnist, monkeypatch)
    assert learned and not any(learned)
    assert history["phase"] == [1.0, 1.0]
    assert 0.98 <= history["budget_ratio"][0] == history["budget_ratio"][1] <= 1.0
    for threshold in student.bit_space.thresholds():
        assert not threshold.raw.numpy().any()
    assert tfc.finalize(student)(mnist[0][0][:2, ::2, ::2]).shape == (2, 10)


def test_costs_are_measured_in_a_fit_that_begins_at_a_later_epoch(mnist, monkeypatch):
    student, *_ = fitted(mnist, monkeypatch, initial_epoch=1)
    assert student.bit_space.is_frozen() and student.bit_space.is_measured()


def test_a_constant_penalty_needs_a_search():
    with pytest.raises(ValueError, match=r"first fit that searches, in \(0, 1\]\. Rec"):
        tfc.BitSharing(penalty=0.1, search_fraction=0.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\]\. Received: search_fraction=-1"):
        tfc.BitSharing("1/28", search_fraction=-1)
