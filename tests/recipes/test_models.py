"""Built-in networks against the literature, and checks of model files."""

import keras
import numpy as np
import pytest

from recipes.common import data as data_lib
from recipes.common import models


def _trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)


def _conv_bn(*convs):
    """Parameters of bias-free convolutions (size, in, out), each followed by BN."""
    return sum(size**2 * i * o + 2 * o for size, i, o in convs)


def _resnet(n):
    """Parameters of 6n + 2 layers with parameter-free shortcuts."""
    return (
        _conv_bn((3, 3, 16), *[(3, 16, 16)] * 2 * n)
        + _conv_bn((3, 16, 32), *[(3, 32, 32)] * (2 * n - 1))
        + _conv_bn((3, 32, 64), *[(3, 64, 64)] * (2 * n - 1))
        + 64 * 10
        + 10
    )


def test_lenet5_has_the_431080_parameters_of_the_literature():
    convolutions = (5 * 5 * 1 * 20 + 20) + (5 * 5 * 20 * 50 + 50)
    dense = (4 * 4 * 50 * 500 + 500) + (500 * 10 + 10)
    assert convolutions + dense == 431_080
    assert models.lenet5((28, 28, 1), 10).count_params() == 431_080


def test_resnet8_has_the_78666_parameters_of_mlperf_tiny():
    # The reference counts the moving statistics of batch normalization, too.
    convolutions = sum(
        size**2 * i * o + o
        for size, i, o in [
            (3, 3, 16),
            *[(3, 16, 16)] * 2,
            *[(3, 16, 32), (3, 32, 32), (1, 16, 32)],
            *[(3, 32, 64), (3, 64, 64), (1, 32, 64)],
        ]
    )
    normalization = 4 * (3 * 16 + 2 * 32 + 2 * 64)
    assert convolutions + normalization + 64 * 10 + 10 == 78_666
    assert models.resnet8((32, 32, 3), 10).count_params() == 78_666


@pytest.mark.parametrize(
    ("name", "n", "paper"), [("resnet20", 3, 0.27e6), ("resnet56", 9, 0.85e6)]
)
def test_cifar_resnets_have_the_parameters_of_he_et_al(name, n, paper):
    model = models.BUILDERS[name]((32, 32, 3), 10)
    assert _trainable(model) == _resnet(n)
    assert _trainable(model) == pytest.approx(paper, rel=0.01)
    kernels = [w for w in model.weights if w.name == "kernel"]
    assert len(kernels) == 6 * n + 2


def test_vgg16_has_14_7_million_parameters():
    widths = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = [(3, i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True)]
    expected = _conv_bn(*convolutions) + 512 * 10 + 10
    assert _trainable(models.vgg16((32, 32, 3), 10)) == expected
    assert expected == pytest.approx(14.7e6, rel=0.01)


def test_mobilenetv2_has_the_parameters_of_sandler_et_al():
    # torchvision's mobilenet_v2(num_classes=10), counted independently.
    assert _trainable(models.mobilenetv2((32, 32, 3), 10)) == 2_236_682


@pytest.mark.parametrize("name", models.BUILDERS)
def test_built_in_networks_take_small_images(name):
    model = models.BUILDERS[name]((28, 28, 1), 7)
    images = np.random.default_rng(0).normal(size=(4, 28, 28, 1)).astype("float32")
    outputs = np.asarray(model(images))
    assert outputs.shape == (4, 7)
    assert np.isfinite(outputs).all()
    assert models.outputs_logits(model, images)


def test_option_a_shortcut_subsamples_and_adds_zero_channels():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype("float32")
    inputs = keras.Input(x.shape[1:])
    y = np.array(keras.Model(inputs, models._subsample(inputs, 32))(x))
    np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
    assert not y[..., :8].any()
    assert not y[..., 24:].any()


def test_outputs_logits_is_false_after_a_softmax():
    inputs = keras.Input((4, 4, 1))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    images = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype("float32")
    assert models.outputs_logits(keras.Model(inputs, logits), images)
    softmax = keras.Model(inputs, keras.layers.Softmax()(logits))
    assert not models.outputs_logits(softmax, images)
    # Nested, where the model's last layer is no softmax.
    nested = keras.Sequential([keras.Input((4, 4, 1)), softmax])
    assert not models.outputs_logits(nested, images)


@pytest.mark.parametrize("suffix", models.MODEL_SUFFIXES)
def test_load_file_returns_a_model_with_equal_outputs(tmp_path, suffix):
    model = models.lenet5((28, 28, 1), 10)
    model.compile("adam", "sparse_categorical_crossentropy")
    path = tmp_path / f"trained{suffix}"
    model.save(path)
    images = np.ones((2, 28, 28, 1), "float32")
    np.testing.assert_array_equal(models.load_file(path)(images), model(images))


def test_load_file_refuses_what_keras_cannot_read(tmp_path):
    path = tmp_path / "broken.keras"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match="cannot load --model=.*broken.keras"):
        models.load_file(path)


def test_load_file_refuses_models_that_classify_no_images(tmp_path):
    inputs = keras.Input((16,))
    path = tmp_path / "vectors.keras"
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    with pytest.raises(
        ValueError, match=r"one image input.*vectors.keras.*\(None, 16\)"
    ):
        models.load_file(path)


def _images(shape, classes):
    images, labels = np.zeros((10, *shape), np.uint8), np.arange(10)
    return data_lib.ImageData("toy", classes, images, labels, images, labels)


def test_check_fits_refuses_other_shapes_and_other_numbers_of_classes():
    model = models.lenet5((28, 28, 1), 10)
    models.check_fits(model, _images((28, 28, 1), 10))
    with pytest.raises(ValueError, match=r"\(None, 32, 32, 3\).*\(None, 28, 28, 1\)"):
        models.check_fits(model, _images((32, 32, 3), 10))
    with pytest.raises(ValueError, match="100 classes.*10 classes"):
        models.check_fits(model, _images((28, 28, 1), 100))


def test_check_fits_accepts_any_size_of_a_model_without_fixed_size():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    models.check_fits(model, _images((32, 32, 3), 10))
