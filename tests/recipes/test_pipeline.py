"""Augmentation and the input pipeline of training."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from recipes.common import pipeline
from recipes.common.data import make_scaling


@pytest.mark.parametrize("flip", [False, True])
def test_augment_shifts_whole_images_and_mirrors_half(photographs, flip):
    images = photographs.train_images
    result = pipeline.augment(tf.constant(images), tf.constant([1, 2]), 4, flip).numpy()
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


def test_choose_augmentation_mirrors_photographs_but_no_characters(
    mnist5k, photographs
):
    assert pipeline.choose_augmentation(photographs) == (4, True)
    assert pipeline.choose_augmentation(mnist5k) == (2, False)
    digits = dataclasses.replace(photographs, name="svhn_cropped")
    assert pipeline.choose_augmentation(digits) == (4, False)


def test_choose_augmentation_takes_a_shift_below_the_image_size(mnist5k, photographs):
    assert pipeline.choose_augmentation(photographs, max_shift=0) == (0, True)
    assert pipeline.choose_augmentation(mnist5k, max_shift=1) == (1, False)
    with pytest.raises(ValueError, match="--max_shift below 28.* Received: 28"):
        pipeline.choose_augmentation(mnist5k, max_shift=28)


def _epochs(data, seed, epochs=(0, 1), augmentation=(4, True)):
    scaling = make_scaling("unit", data.train_images)
    train, follow = pipeline.train_pipeline(data, scaling, 16, seed, augmentation)
    batches = []
    for epoch in epochs:
        follow.on_epoch_begin(epoch)
        batches.append(list(train.as_numpy_iterator()))
    return batches


def test_train_pipeline_gives_full_scaled_batches(mnist5k):
    scaling = make_scaling("unit", mnist5k.train_images)
    train, _ = pipeline.train_pipeline(mnist5k, scaling, 128, 0, (2, False))
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


def test_train_pipeline_without_augmentation_only_scales(photographs):
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
