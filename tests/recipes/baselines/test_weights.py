"""Baselines of weights: their codes against the papers' formulas, and the recipe."""

import keras
import numpy as np
import pytest

import tfcompress as tfc
from recipes import baseline
from recipes.common.baselines import MagnitudePruning, TernaryWeightNetwork
from recipes.common.baselines.weights import TernaryWeights
from tests.small_net import small_net
from tfcompress.litert import check

SMALL = {"model": "small", "epochs": 2, "float_epochs": 1, "batch_size": 64}


def test_ternary_weight_network_has_the_codes_and_scales_of_the_paper():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    codes, scale = TernaryWeights().encode(kernel)
    for channel in range(5):
        w = kernel[..., channel]
        kept = abs(w) > 0.7 * abs(w).mean()
        np.testing.assert_array_equal(codes[..., channel], np.sign(w) * kept)
        assert scale[..., channel] == pytest.approx(abs(w[kept]).mean())


@pytest.mark.parametrize(
    ("flags", "name", "sparsities"),
    [
        pytest.param(
            flags,
            name,
            sparsities,
            id="_".join(map(str, flags.values())),
            marks=() if flags["method"] in ("magnitude", "l1") else pytest.mark.slow,
        )
        for flags, name, sparsities in (
            ({"method": "twn"}, "TernaryWeightNetwork", (0.35, 0.65)),
            ({"method": "twn", "end_layers": "ternary"}, "TernaryWeightNetwork", None),
            ({"method": "magnitude", "zeros": 0.8}, "MagnitudePruning", (0.8, 0.85)),
            ({"method": "uniform", "bits": 3}, "Uniform", None),
            ({"method": "uniform", "bits": 4, "input_bits": 4}, "Uniform", None),
            ({"method": "l1", "multiplications": "0.4"}, "L1 pruning", None),
            ({"method": "narrow", "multiplications": "0.4"}, "Narrow", None),
        )
    ],
)
def test_baseline_writes_a_proven_file_and_its_report(
    tmp_path, run_recipe, few_images, check_report, flags, name, sparsities
):
    run_recipe(baseline, tmp_path, **SMALL, **flags)
    report = check_report(tmp_path)
    assert (report["recipe"], report["scheme"]) == ("baseline", name)
    check(tmp_path / "model.tflite", keras.models.load_model(tmp_path / "model.keras"))
    assert report["accuracy"]["litert"] > 0.3  # of ten classes
    layers = {layer["name"]: layer for layer in report["layers"]}
    bits = flags.get("bits", 2)
    if name in ("L1 pruning", "Narrow"):
        assert report["cost"]["macs"] <= 0.4 * report["cost"]["float_macs"]
    else:
        assert layers["conv2"]["weight_bits"] == bits
        ends = 2 if "end_layers" in flags else 8
        assert layers["conv1"]["weight_bits"] == ends
        inputs = flags.get("input_bits", 32)
        assert layers["conv2"]["activation_bits"] == inputs
    if sparsities:
        least, most = sparsities
        assert least <= layers["conv2"]["sparsity"] <= most


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "Expected --method"),
        ({"method": "l1"}, "--multiplications=None"),
        ({"method": "narrow", "multiplications": "0"}, "multiplications='0'"),
        ({"method": "magnitude"}, "--zeros in .* Received: None"),
        ({"method": "magnitude", "zeros": 1.0}, "--zeros in .* Received: 1.0"),
        ({"method": "uniform", "bits": 9}, "9"),
    ],
)
def test_baseline_refuses_what_it_cannot_train(refuses, flags, message):
    refuses(baseline, f"^baseline: .*{message}", **flags)


@pytest.mark.parametrize(
    "scheme", [TernaryWeightNetwork("ternary"), MagnitudePruning(0.8, bits=3)]
)
def test_schemes_of_baselines_are_saved_with_their_students(scheme, tmp_path):
    student = tfc.compress(small_net(), scheme)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert loaded.scheme.get_config() == scheme.get_config()
