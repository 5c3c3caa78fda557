"""Recipe for sizes: a chain of two small runs, and refused budgets."""

import keras
import pytest
from absl import flags

from recipes import size_constrained
from recipes.common.history import SizeHistory
from tfcompress.litert import check


@pytest.mark.slow
def test_a_chain_of_two_sizes_meets_both_and_writes_all_files(
    tmp_path, run_recipe, few_images, check_report, capsys
):
    run_recipe(
        size_constrained,
        tmp_path,
        model="small",
        size="4 kB,3 kB",
        admm_epochs=1,
        finetune_epochs=1,
        float_epochs=2,
        batch_size=256,
    )
    first = check_report(tmp_path / "chain_1")
    assert 3_000 < first["budget"]["achieved"] <= 4_000
    report = check_report(tmp_path)
    assert report["accuracy"]["float"] == first["accuracy"]["float"]
    assert (report["recipe"], report["scheme"]) == (
        "size_constrained",
        "SizeConstrained",
    )
    budget = report["budget"]
    assert (budget["kind"], budget["requested"]) == ("xz_bytes", 3_000)
    assert budget["achieved"] == report["size"]["tflite_xz_bytes"] <= 3_000
    assert report["agreement"]["top1"] == 1.0
    check(tmp_path / "model.tflite", keras.models.load_model(tmp_path / "model.keras"))
    for folder in (tmp_path, tmp_path / "chain_1"):
        assert (folder / "sizes.png").read_bytes().startswith(b"\x89PNG")
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("bits: ")]
    assert len(lines) == 4 and "of 3,000" in lines[-1]
    assert not (tmp_path / "unfinished_run").exists()


def test_size_history_describes_a_state_in_one_line(tmp_path):
    history = SizeHistory(tmp_path / "sizes.json")
    state = {
        "bits": {"a": 3, "b": 2},
        "sparsity": {"a": 0.5, "b": 0.994},
        "size": 12345.6,
        "budget": 10000.0,
        "residual": None,
    }
    line = "bits: 3 2  zeros %: 50 99  size: 12,346 of 10,000"
    assert history.describe(state) == line
    with_admm = state | {"residual": 0.25}
    assert history.describe(with_admm) == line + "  |W-V|/|W|: 0.250"


@pytest.mark.parametrize(
    "budget", [{"size": "2 kB"}, {"size": "1/1000"}, {"value_bits": "1/1e9"}]
)
def test_an_impossible_size_is_refused(refuses, budget):
    refuses(size_constrained, "^size_constrained: .*at least", **budget)


def test_two_budgets_are_refused(tmp_path, run_recipe):
    with pytest.raises(flags.IllegalFlagValueError, match="one of --size"):
        run_recipe(size_constrained, tmp_path, size="30 kB", value_bits="1/500")


def test_two_budgets_with_quantized_activations_are_refused(tmp_path, run_recipe):
    with pytest.raises(flags.IllegalFlagValueError, match="one budget"):
        run_recipe(size_constrained, tmp_path, size="30 kB,20 kB", activation_bits=8)
