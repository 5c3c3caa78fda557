"""Pruned ternary quantization, from `compress` to `finalize`."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from tfcompress.schemes.ternary.schedule import ternary_layers


def test_discrepancy_turns_filters_towards_their_ternary_values(
    trained, mnist, compile_for_digits
):
    images, labels = mnist[0]

    def mean_cosine(discrepancy):
        keras.utils.set_random_seed(0)
        scheme = tfc.PrunedTernary(discrepancy=discrepancy, weight_decay=0.0)
        student = tfc.compress(trained, scheme)
        compile_for_digits(student, keras.optimizers.SGD(0.05))
        student.fit(images[:320], labels[:320], batch_size=32, epochs=4, verbose=0)
        cosines = []
        for layer in ternary_layers(student):
            w = np.asarray(layer.latent_kernel).reshape(-1, layer.filters)
            q = np.asarray(layer.kernel).reshape(-1, layer.filters)
            lengths = np.linalg.norm(w, axis=0) * np.linalg.norm(q, axis=0)
            cosines.append(np.mean(np.sum(w * q, axis=0) / lengths))
        return np.mean(cosines)

    assert mean_cosine(5.0) > mean_cosine(0.0) + 0.01


def test_student_is_accurate_and_its_saved_and_final_forms_predict_alike(
    trained, mnist, tmp_path, compile_for_digits
):
    images, labels = mnist[0]
    student = tfc.compress(trained, tfc.PrunedTernary(first_last="ternary"))
    compile_for_digits(student, keras.optimizers.Adam(1e-3))
    history = student.fit(
        images[:1000],
        labels[:1000],
        batch_size=64,
        epochs=3,
        validation_data=mnist[1],
        verbose=0,
    ).history
    # Statistics that lagged would cost half of the validation accuracy.
    gaps = np.subtract(history["accuracy"], history["val_accuracy"])
    assert (gaps < 0.05).all()
    assert history["val_accuracy"][-1] > 0.88

    expected = student.predict(mnist[1][0], verbose=0)
    student.save(tmp_path / "student.keras")
    restored = keras.models.load_model(tmp_path / "student.keras")
    assert restored.scheme.get_config() == student.scheme.get_config()
    np.testing.assert_array_equal(restored.predict(mnist[1][0], verbose=0), expected)

    tiny = tfc.finalize(restored)
    found = tiny.predict(mnist[1][0], verbose=0)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert not any(
        isinstance(layer, keras.layers.BatchNormalization) for layer in tiny.layers
    )


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"sparsity": 0.0}, r"in \(0, 1\).*sparsity=0.0"),
        ({"sparsity": 1.0}, r"in \(0, 1\).*sparsity=1.0"),
        ({"sparsity": -0.1}, r"in \(0, 1\)"),
        ({"sparsity": float("nan")}, r"in \(0, 1\)"),
        ({"first_last": "int8"}, "'8bit', 'ternary' or 'float'.*'int8'"),
        ({"weight_decay": -1.0}, "`weight_decay`.*-1.0"),
        ({"discrepancy": float("inf")}, "`discrepancy`"),
    ],
)
def test_out_of_range_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tfc.PrunedTernary(**kwargs)


def test_config_round_trip():
    scheme = tfc.PrunedTernary(
        0.8,
        first_last="float",
        weight_decay=1e-3,
        discrepancy=0.1,
        overrides={
            "a": tfc.KeepFloat("why"),
            "b": tfc.QuantizeConfig(tfc.quantizers.Uniform(4)),
        },
    )
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(scheme)
    )
    assert restored.get_config() == scheme.get_config()
    assert restored.overrides["a"] == tfc.KeepFloat("why")


def test_budget_counts_whole_weights():
    """Of 35 weights 24 become zero: 24.5 is rounded half to even."""
    inputs = keras.Input((7,))
    model = keras.Model(inputs, keras.layers.Dense(5)(inputs))
    student = tfc.compress(model, tfc.PrunedTernary(0.7, first_last="ternary"))
    student.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(64, 7))
    history = student.fit(x, np.ones((64, 5)), batch_size=4, verbose=0)
    assert history.history["budget_ratio"] == [1.0]
