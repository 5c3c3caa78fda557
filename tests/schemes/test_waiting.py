"""Progress bars of each phase, from `plan` to the proof of the file, by scheme."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tests.core.scheme_table import each_scheme
from tfcompress import progress_bar

if keras.backend.backend() != "tensorflow":
    pytest.skip("files need TensorFlow", allow_module_level=True)

from tfcompress.inspect import inspect, main
from tfcompress.litert import check, latency, predict

SCHEMES = {
    "ternary": lambda: tfc.PrunedTernary(sparsity=0.5),
    "bits": lambda: tfc.BitSharing(bops="1/20", group_size=2),
    "size": lambda: tfc.SizeConstrained(size="20 kB"),
    "ranks": lambda: tfc.Decomposition(macs="0.7"),
}
# Titles of progress bars of all schemes by phase, and of one scheme.
TITLES = {
    "plan": ["Plan of 'net'"],
    "compress": ["Compression of 'net'", "Plan of 'net'", "Weights of the student"],
    "fit": [
        "Reading training samples",
        "Batch normalization statistics",
        "Measurements of the student",
    ],
    "finalize": ["Finalization of 'net'", "Layers of the finalized model"],
    "export": ["Export of '", "Conversion to .tflite", "Comparison with Keras"],
    "check": ["Check of '", "Comparison with Keras"],
}
SEARCH = ["Preparation of the search", "End of the search"]
FILE = ["Conversion to .tflite", "Kernels in the file", "Size after xz"]
OWN_TITLES = {
    ("fit", "bits"): [
        *SEARCH,
        "Ranges of weights",
        "Ranges of activations",
        "Sensitivities to bits and filters",
    ],
    ("fit", "size"): [
        *SEARCH,
        *FILE,
        "Allocation of the size",
        "Zeros and bits of each layer",
        "Codebooks",
        "Size of the file",
    ],
    ("fit", "ranks"): [
        *SEARCH,
        "Statistics of activations",
        "Principal axes of outputs",
        "Selection of channels and ranks",
    ],
}
for _scheme in ("ternary", "bits", "size"):
    OWN_TITLES["export", _scheme] = [*FILE, "Comparison of kernels"]
    OWN_TITLES["check", _scheme] = ["Comparison of kernels"]


def net():
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for filters in (8, 8):
        x = layers.Conv2D(filters, 3, strides=2)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)), name="net")


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")


@pytest.fixture
def long(monkeypatch):
    """Makes all work long."""
    monkeypatch.setattr(progress_bar, "DELAY", 0.0)


@pytest.fixture
def quiet():
    """Turns interactive logging off, as a user does outside of `fit`."""
    keras.config.disable_interactive_logging()
    yield
    keras.config.enable_interactive_logging()


def run_phases(scheme, x, folder, read, verbose):
    """Runs all phases, and returns the output of each."""
    y = np.zeros((len(x), 2), "float32")
    path = folder / "net.tflite"
    texts = {}

    def phase(name, function):
        read()
        result = function()
        texts[name] = read()
        return result

    phase("plan", lambda: tfc.plan(net(), scheme))
    student = phase("compress", lambda: tfc.compress(net(), scheme))
    student.compile("sgd", "mse")
    fit = {"batch_size": 16, "epochs": 1, "verbose": verbose}
    phase("fit", lambda: student.fit(x, y, **fit))
    tiny = phase("finalize", lambda: tfc.finalize(student))
    phase("export", lambda: tfc.export(tiny, path, verify=x))
    phase("check", lambda: check(path, tiny, x))
    return texts


@each_scheme("bits", "size")
def test_each_long_phase_shows_its_titles_and_ends_its_bars(
    name, x, tmp_path, capsys, long
):
    texts = run_phases(
        SCHEMES[name](), x, tmp_path, lambda: capsys.readouterr().out, verbose=2
    )
    for phase, text in texts.items():
        for title in TITLES[phase] + OWN_TITLES.get((phase, name), []):
            assert f"\n{title}" in text, (phase, title)
        assert text.endswith("\n")


@each_scheme("bits", "size")
def test_short_phases_show_nothing(name, x, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress_bar, "DELAY", 3600.0)
    texts = run_phases(
        SCHEMES[name](), x, tmp_path, lambda: capsys.readouterr().out, verbose=0
    )
    assert set(texts.values()) == {""}


@each_scheme(*(set(SCHEMES) - {"size"}))  # it has the most phases
def test_long_phases_show_nothing_without_interactive_logging(
    name, x, tmp_path, capsys, long, quiet
):
    texts = run_phases(
        SCHEMES[name](), x, tmp_path, lambda: capsys.readouterr().out, verbose=2
    )
    texts.pop("fit")  # Keras's own bars
    assert set(texts.values()) == {""}


@pytest.mark.parametrize("own_fit", [True, False])
@each_scheme("bits", "size")
def test_verbose_of_fit_silences_its_phases_in_other_models_too(
    name, own_fit, x, capsys, long
):
    student = tfc.compress(net(), SCHEMES[name]())
    student.compile("sgd", "mse")
    outer, callbacks = student, []
    if not own_fit:
        outer = keras.Sequential([student])
        outer.compile("sgd", "mse")
        callbacks = tfc.callbacks(student, x)
    y = np.zeros((len(x), 2), "float32")
    fit = {"batch_size": 16, "epochs": 1, "callbacks": callbacks}
    capsys.readouterr()
    outer.fit(x, y, verbose=0, **fit)
    assert capsys.readouterr().out == ""
    outer.fit(x, y, verbose=1, **fit)
    assert "\nBatch normalization statistics\n" in capsys.readouterr().out


@pytest.fixture
def finalized(x):
    """Model of packed layers, without a training."""
    student = tfc.compress(net(), tfc.Uniform(4))
    return tfc.finalize(student)


def test_integer_files_show_their_calibration(finalized, x, tmp_path, capsys, long):
    pytest.importorskip("litert_quantizer")
    tfc.export(
        finalized,
        tmp_path / "net.tflite",
        optimize="latency",
        activations="int8",
        representative_data=x,
    )
    assert "\nRanges of tensors\n" in capsys.readouterr().out


def test_work_on_files_shows_bars_but_not_in_the_output_of_a_program(
    finalized, x, tmp_path, capsys, long
):
    path = str(tmp_path / "net.tflite")
    tfc.export(finalized, path)
    capsys.readouterr()
    inspect(path)
    predict(path, x)
    latency([path], runs=2)
    text = capsys.readouterr().out
    for title in (
        f"Contents of '{path}'",
        "Predictions of LiteRT",
        "Latencies in LiteRT",
    ):
        assert f"\n{title}\n" in text
    main([path])
    assert "Contents of" not in capsys.readouterr().out


def test_dequantize_shows_its_layers(x, capsys, long):
    student = tfc.compress(net(), tfc.PrunedTernary(sparsity=0.5))
    tfc.dequantize(student)
    assert "\nPlain layers of 'net'\n" in capsys.readouterr().out
