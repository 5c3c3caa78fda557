"""Data sets, their split and their scaling."""

import numpy as np
import pytest
import tensorflow as tf

from recipes.common import data as data_lib


def test_mnist5k_is_uint8_images_with_labels(mnist5k):
    assert mnist5k.train_images.shape == (4000, 28, 28, 1)
    assert mnist5k.test_images.shape == (1000, 28, 28, 1)
    assert mnist5k.train_images.dtype == mnist5k.test_images.dtype == np.uint8
    assert mnist5k.train_images.min() == 0
    assert mnist5k.train_images.max() == 255
    assert mnist5k.image_shape == (28, 28, 1)


def test_mnist5k_classes_are_balanced_and_mixed(mnist5k):
    assert np.bincount(mnist5k.train_labels).tolist() == [400] * 10
    assert np.bincount(mnist5k.test_labels).tolist() == [100] * 10
    assert len(set(mnist5k.train_labels[:50])) == 10
    assert len(set(mnist5k.test_labels[:50])) == 10


def test_mnist5k_shares_no_image_between_train_and_test(mnist5k):
    train = {image.tobytes() for image in mnist5k.train_images}
    test = {image.tobytes() for image in mnist5k.test_images}
    assert len(train) == 4000
    assert len(test) == 1000
    assert not train & test


def test_stratified_split_covers_everything_once():
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    train, test = data_lib.stratified_split(labels, 0.2, seed=1)
    assert sorted([*train, *test]) == list(range(35))
    assert np.bincount(labels[test]).tolist() == [2, 4, 1]
    again = data_lib.stratified_split(labels, 0.2, seed=1)
    np.testing.assert_array_equal(again[1], test)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pixels", [0.0, 51.0, 255.0]),
        ("unit", [0.0, 0.2, 1.0]),
        ("signed", [-1.0, -0.6, 1.0]),
    ],
)
def test_scalings_map_pixels_to_their_ranges(name, expected):
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    scaled = data_lib.make_scaling(name, images)(images)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.ravel(), expected, rtol=1e-6)


def test_imagenet_scaling_has_the_constants_of_torchvision(photographs):
    images = photographs.train_images
    scaled = data_lib.make_scaling("imagenet", images)(images)
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_standardize_gives_mean_0_and_deviation_1(photographs):
    images = photographs.train_images
    scaled = data_lib.make_scaling("standardize", images)(images)
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, atol=1e-4)


def test_standardize_of_a_constant_channel_is_finite():
    images = np.full((2, 4, 4, 1), 7, np.uint8)
    scaled = data_lib.make_scaling("standardize", images)(images)
    np.testing.assert_array_equal(scaled, 0)


def test_scaling_is_the_same_for_arrays_and_tensors(photographs):
    images = photographs.train_images
    scaling = data_lib.make_scaling("imagenet", images)
    tensor = scaling(tf.constant(images))
    assert tensor.dtype == tf.float32
    np.testing.assert_allclose(tensor, scaling(images), atol=1e-6)


def test_imagenet_scaling_refuses_grayscale(mnist5k):
    with pytest.raises(ValueError, match=r"3 channels.*\(28, 28, 1\)"):
        data_lib.make_scaling("imagenet", mnist5k.train_images)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="mnist5k.*catalog.*Received: 'cifar1O'"):
        data_lib.load("cifar1O")


def test_a_data_set_of_texts_is_refused():
    with pytest.raises(ValueError, match="image-classification.*imdb_reviews.*text"):
        data_lib.load("imdb_reviews")


def test_images_of_several_sizes_without_a_size_are_refused():
    with pytest.raises(ValueError, match="tf_flowers.*differ in size"):
        data_lib.load("tf_flowers", image_size=(None, None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "Expected 'cifar10' to be prepared in --data_dir"),
        ("cifar10:9.9.9", "Expected --dataset to name a version"),
        ("cifar10/no_such_configuration", "Expected --dataset to name a version"),
    ],
)
def test_a_data_set_that_cannot_be_prepared_is_refused_in_one_line(
    tmp_path, name, message
):
    # A file in the folder's place fails like a network that is down, but at once.
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    with pytest.raises(ValueError, match=message) as raised:
        data_lib.load(name, str(not_a_folder))
    assert "\n" not in str(raised.value)
    assert "ModuleNotFoundError" not in str(raised.value)
