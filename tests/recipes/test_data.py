"""Data sets, their split, scaling and augmentation."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from recipes.common import data as data_lib


@pytest.fixture(scope="module")
def photographs():
    """64 images of noise: no crop looks like another."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = np.arange(64) % 10
    return data_lib.ImageData("cifar10", 10, pixels, labels, pixels[:8], labels[:8])


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
def test_scaling_values(name, expected):
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    scaled = data_lib.make_scaling(name, images)(images)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.ravel(), expected, rtol=1e-6)


def test_imagenet_scaling_is_that_of_torchvision(photographs):
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


def test_imagenet_scaling_refuses_greyscale(mnist5k):
    with pytest.raises(ValueError, match=r"3 channels.*\(28, 28, 1\)"):
        data_lib.make_scaling("imagenet", mnist5k.train_images)


@pytest.mark.parametrize("flip", [False, True])
def test_augment_shifts_whole_images_and_mirrors_half(photographs, flip):
    images = photographs.train_images
    result = data_lib.augment(tf.constant(images), tf.constant([1, 2]), 4, flip).numpy()
    mirrored = 0
    offsets = set()
    for image, augmented in zip(images, result, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        found = [
            (row, column, mirror)
            for row in range(9)
            for column in range(9)
            for mirror in (False, True)
            if np.array_equal(
                padded[row : row + 32, column : column + 32][:, :: -1 if mirror else 1],
                augmented,
            )
        ]
        assert len(found) == 1
        offsets.add(found[0][:2])
        mirrored += found[0][2]
    assert len(offsets) > 30
    assert 16 < mirrored < 48 if flip else mirrored == 0


def test_choose_augmentation(mnist5k, photographs):
    assert data_lib.choose_augmentation(photographs) == (4, True)
    assert data_lib.choose_augmentation(mnist5k) == (2, False)
    digits = dataclasses.replace(photographs, name="svhn_cropped")
    assert data_lib.choose_augmentation(digits) == (4, False)


def test_choose_augmentation_with_another_shift(mnist5k, photographs):
    assert data_lib.choose_augmentation(photographs, max_shift=0) == (0, True)
    assert data_lib.choose_augmentation(mnist5k, max_shift=1) == (1, False)
    with pytest.raises(ValueError, match="--max_shift below 28.* Received: 28"):
        data_lib.choose_augmentation(mnist5k, max_shift=28)


def _epochs(data, seed, epochs=(0, 1), augmentation=(4, True)):
    scaling = data_lib.make_scaling("unit", data.train_images)
    train, follow = data_lib.train_pipeline(data, scaling, 16, seed, augmentation)
    batches = []
    for epoch in epochs:
        follow.on_epoch_begin(epoch)
        batches.append(list(train.as_numpy_iterator()))
    return batches


def test_train_pipeline_gives_full_scaled_batches(mnist5k):
    scaling = data_lib.make_scaling("unit", mnist5k.train_images)
    train, _ = data_lib.train_pipeline(mnist5k, scaling, 128, 0, (2, False))
    assert len(train) == 4000 // 128
    images, labels = next(iter(train))
    assert images.shape == (128, 28, 28, 1)
    assert images.dtype == tf.float32
    assert labels.shape == (128,)
    assert 0 <= float(tf.reduce_min(images)) < float(tf.reduce_max(images)) <= 1


def test_train_pipeline_visits_every_image_once_an_epoch(photographs):
    unique = dataclasses.replace(photographs, train_labels=np.arange(64))
    for epoch in _epochs(unique, seed=0):
        labels = np.concatenate([labels for _, labels in epoch])
        assert sorted(labels) == list(range(64))
        assert sorted(labels) != list(labels)


def test_without_augmentation_images_are_what_they_are(photographs):
    unique = dataclasses.replace(photographs, train_labels=np.arange(64))
    (epoch,) = _epochs(unique, 0, [0], augmentation=(0, False))
    for images, labels in epoch:
        expected = photographs.train_images[labels] / np.float32(255)
        np.testing.assert_allclose(images, expected, rtol=1e-6)


def test_train_pipeline_follows_the_seed(photographs):
    first, second = (_epochs(photographs, seed=3) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for (images, labels), (images_again, labels_again) in zip(a, b, strict=True):
            np.testing.assert_array_equal(images, images_again)
            np.testing.assert_array_equal(labels, labels_again)
    other = _epochs(photographs, seed=4)
    assert not np.array_equal(first[0][0][0], other[0][0][0])
    assert not np.array_equal(first[0][0][0], first[1][0][0])
    (later,) = _epochs(photographs, seed=3, epochs=[1])
    np.testing.assert_array_equal(later[0][0], first[1][0][0])


def test_unknown_dataset():
    with pytest.raises(ValueError, match="mnist5k.*catalog.*Received: 'cifar1O'"):
        data_lib.load("cifar1O")


def test_dataset_that_is_no_image_classification():
    with pytest.raises(ValueError, match="image-classification.*imdb_reviews.*text"):
        data_lib.load("imdb_reviews")


def test_images_of_different_sizes_need_a_size():
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
def test_a_missing_data_set_is_one_clear_line(tmp_path, name, message):
    # A file in the folder's place fails like a network that is down, but at once.
    not_a_folder = tmp_path / "file"
    not_a_folder.touch()
    with pytest.raises(ValueError, match=message) as raised:
        data_lib.load(name, str(not_a_folder))
    assert "\n" not in str(raised.value)
    assert "ModuleNotFoundError" not in str(raised.value)
