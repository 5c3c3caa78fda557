"""Search of decomposition in `fit`: rotation, shrinkage, freezing."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tests.small_net import small_net
from tfcompress.core.training.data import take_inputs
from tfcompress.core.training.recalibration import Recalibration
from tfcompress.cost import layer_costs, total_cost
from tfcompress.schemes.decomposition import search
from tfcompress.schemes.decomposition.activation_statistics import MeasureActivations
from tfcompress.schemes.decomposition.scoring import compute_scores
from tfcompress.schemes.decomposition.selection import select


def macs(model):
    return total_cost(layer_costs(model)).macs


@pytest.fixture
def student_of(trained, compile_for_digits):
    """Function from arguments of the scheme to a compiled student."""

    def make(optimizer=None, **arguments):
        student = tfc.compress(trained, tfc.Decomposition(**arguments))
        compile_for_digits(student, optimizer or keras.optimizers.SGD(0.02))
        return student

    return make


def covariance_of_ranks(space, name, statistics):
    """Largest covariance between two ranks' parts of a layer's scaled outputs.

    As a share of the largest variance.
    """
    _, coefficients = space.factors(name)
    scaled = coefficients * space.output_scales(name, coefficients, statistics)
    axes = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    covariance = axes @ scaled.T @ statistics.hidden_covariance @ scaled @ axes.T
    variances = np.diag(covariance)
    return np.abs(covariance - np.diag(variances)).max() / variances.max()


@pytest.fixture(scope="module")
def still(trained_weights, mnist, fit_digits, compile_for_digits):
    """A student after a search with a learning rate of nearly zero, and its start.

    Returns:
        `(student, new, first)`; the last two are `{layer name: (covariance of ranks,
        kernel, coefficients)}`, before `fit` and at its first step.
    """
    keras.utils.set_random_seed(0)
    model = small_net()
    model.set_weights(trained_weights)
    student = tfc.compress(model, tfc.Decomposition(macs="1/2", search_fraction=1.0))
    compile_for_digits(student, keras.optimizers.SGD(1e-6))

    space = student.rank_space
    batches = take_inputs(mnist[0][0][:600], batch_size=50).batches
    recalibrate = Recalibration(student, batches)
    measure = MeasureActivations(recalibrate, space.layers)

    def state():
        statistics = measure()
        return {
            name: (
                covariance_of_ranks(space, name, statistics[name]),
                np.array(layer.kernel),
                np.array(layer.coefficients),
            )
            for name, layer in space.layers.items()
        }

    def remember(batch, logs):
        if not first:
            first.update(state())

    new, first = state(), {}
    remember = keras.callbacks.LambdaCallback(on_train_batch_begin=remember)
    fit_digits(student, epochs=2, callbacks=[remember])
    return student, new, first


@pytest.mark.parametrize("name", ["conv0", "conv1", "conv2", "head"])
def test_fit_begins_with_a_rotation_to_the_principal_axes_of_outputs(still, name):
    _, new, first = still
    assert first[name][0] < 1e-3 < 0.1 < new[name][0]
    np.testing.assert_allclose(first[name][1], new[name][1], atol=1e-5)


def test_kept_groups_do_not_shrink(still):
    """Without a learning rate coefficients are those of the start, or zero.

    A channel that fits the budget only later may have begun to shrink.
    """
    student, _, first = still
    ratios = np.concatenate(
        [
            (np.array(layer.coefficients) / first[name][2]).ravel()
            for name, layer in student.rank_space.layers.items()
        ]
    )
    removed, kept = np.abs(ratios) < 1e-6, np.abs(ratios - 1) < 0.02
    assert (removed | kept).mean() > 0.8
    assert 0.2 < removed.mean() < 0.8


def test_fit_ends_with_the_batch_norm_statistics_of_the_frozen_model(
    student_of, fit_digits, mnist
):
    student = student_of(macs="1/2", search_fraction=1.0)
    fit_digits(student, digits=200)
    assert macs(tfc.finalize(student)) < 0.6 * macs(student)
    batches = take_inputs(mnist[0][0][:200], batch_size=50).batches
    received = [np.array(x) for x in student.non_trainable_variables]
    Recalibration(student, batches)()
    for a, b in zip(received, student.non_trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_network_before_the_search_decides_which_channels_go(
    student_of, fit_digits, mnist
):
    """Also at a learning rate at which the importances change much."""
    student = student_of(keras.optimizers.SGD(0.2, clipnorm=1.0), macs="1/2")
    space = student.rank_space
    batches = take_inputs(mnist[0][0][:200], batch_size=50).batches
    measure = MeasureActivations(Recalibration(student, batches), space.layers)
    selections = []

    def remember(batch, logs):
        scores = compute_scores(space, measure())
        budget = space.width_model.full_cost() / 2
        selections.append(select(space.width_model, scores, budget))

    remember = keras.callbacks.LambdaCallback(on_train_batch_begin=remember)
    fit_digits(student, digits=200, callbacks=[remember])
    before, after = selections[:2]
    for name in ("conv1", "conv2"):
        received = np.array(space.layers[name].input_mask)
        expected = before.keep_groups[space.channels.read[name]]
        np.testing.assert_array_equal(received, expected)
    assert (before.keep_groups != after.keep_groups).any()


def test_a_search_that_was_saved_without_scores_goes_on_to_the_budget(
    student_of, fit_digits, monkeypatch, tmp_path
):
    """Files of version 0.1.0 have none."""
    state = search.RankSearch.search_state

    def without_scores(self):
        return {name: x for name, x in state(self).items() if name != "scores"}

    monkeypatch.setattr(search.RankSearch, "search_state", without_scores)
    student = student_of(macs="1/2", search_fraction=1.0)
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    fit_digits(student, epochs=2, digits=200, callbacks=[save])
    student = keras.models.load_model(tmp_path / "1.keras")
    fit_digits(student, epochs=2, digits=200, initial_epoch=1)
    assert 0.9 * macs(student) / 2 <= macs(tfc.finalize(student)) <= macs(student) / 2


def test_a_penalty_removes_the_channels_and_ranks_that_it_makes_zero(
    student_of, fit_digits, mnist
):
    """Zero ranks have no coefficients, zero channels do not vary."""
    student = student_of(penalty=0.8, search_fraction=1.0)
    fit_digits(student, digits=200)
    layers = student.rank_space.layers
    recalibrate = Recalibration(student, [mnist[0][0][:200]])
    statistics = MeasureActivations(recalibrate, layers)()
    norms = np.linalg.norm(layers["conv2"].coefficients, axis=1)
    for values, mask in (
        (norms, layers["conv2"].rank_mask),
        (statistics["conv2"].input_variances, layers["conv2"].input_mask),
    ):
        keep = np.array(mask) > 0
        assert 0 < keep.sum() < len(keep)
        assert values[~keep].max() < 1e-2 * values[keep].max()
    assert macs(tfc.finalize(student)) < 0.7 * macs(student)


def test_a_penalty_of_zero_removes_nothing(fit_digits, compile_for_digits):
    x = inputs = keras.Input((28, 28, 1))
    x = keras.layers.Dense(8, activation="relu")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    scheme = tfc.Decomposition(penalty=0.0, search_fraction=1.0)
    student = tfc.compress(model, scheme)
    compile_for_digits(student)
    fit_digits(student, digits=100)
    assert student.rank_space.is_frozen()
    assert macs(tfc.finalize(student)) == macs(model)


def test_a_measured_margin_decomposes_no_layer_that_is_slower(
    student_of, fit_digits, monkeypatch
):
    """Every decomposed layer is said to be slower: the budget is met without any."""
    student = student_of(macs="1/2", margin="measured", search_fraction=1.0)
    asked = []

    def slower(space, selection):
        asked.append([n for n, keep in selection.keep_ranks.items() if not keep.all()])
        return asked[-1]

    monkeypatch.setattr(search, "slower_when_decomposed", slower)
    fit_digits(student, digits=100)
    assert asked[0] and not asked[-1]
    layers = student.rank_space.layers.values()
    assert not any(layer.is_decomposed() for layer in layers)
    assert 0.9 * macs(student) / 2 <= macs(tfc.finalize(student)) <= macs(student) / 2


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Layer .* not cut")
def test_an_interrupted_search_leaves_a_student_with_all_channels(
    student_of, fit_digits, trained, mnist
):
    student = student_of(macs="1/2")
    with pytest.raises(KeyboardInterrupt):
        fit_digits(student, callbacks=[Interrupt()])
    images = mnist[1][0][:20]
    with pytest.warns(UserWarning, match="'conv0': channels and ranks are not"):
        small = tfc.finalize(student)
    assert macs(small) == macs(trained)
    np.testing.assert_allclose(small(images), student(images), atol=1e-4)
