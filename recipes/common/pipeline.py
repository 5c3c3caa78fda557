"""Augmentation and the input pipeline of training.

A batch is gathered, augmented and scaled as a whole.
"""

import keras
import tensorflow as tf

# Batches that are made at the same time, while another is trained on.
PARALLEL_BATCHES = 4
# Data sets of characters in color: a mirrored character is another one.
NEVER_FLIPPED = ("cmaterdb", "omniglot", "svhn_cropped")


def choose_augmentation(data, max_shift=None):
    """Returns `(max_shift, flip)`: the largest shift in pixels, and whether to mirror.

    Photographs are shifted by up to an eighth (4 pixels of 32) and mirrored, as in He
    et al. (2016), section 4.2. Grayscale sets hold characters and silhouettes: they are
    shifted by up to a fourteenth (2 pixels of 28) and never mirrored.

    Args:
        data: an `ImageData`.
        max_shift: int or None. Largest shift in pixels; None takes the default above.

    Raises:
        ValueError: if a shift could push an image out of its frame.
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


def augment(images, seed, max_shift, flip):
    """Shifts each image by up to `max_shift` pixels and mirrors half of them.

    Pixels that a shift uncovers are 0.

    Args:
        images: uint8 tensor (batch, height, width, channels).
        seed: int tensor (2,). The same seed gives the same images.
        max_shift: int. Largest shift in pixels, in each direction.
        flip: bool. Whether to mirror left and right.

    Returns:
        A uint8 tensor of the same shape.
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    seeds = tf.unstack(tf.random.split(seed, 2))
    offsets = tf.random.stateless_uniform(
        (2, batch, 1), seeds[0], 0, 2 * max_shift + 1, tf.int32
    )
    rows = offsets[0] + tf.range(height)
    columns = offsets[1] + tf.range(width)
    if flip:
        mirrored = tf.random.stateless_uniform((batch, 1), seeds[1]) < 0.5
        columns = tf.where(mirrored, columns[:, ::-1], columns)
    border = [max_shift, max_shift]
    images = tf.pad(images, [[0, 0], border, border, [0, 0]])
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def train_pipeline(data, scaling, batch_size, seed, augmentation):
    """Returns shuffled, augmented and scaled batches of the training images.

    The batches of an epoch depend on the seed and the epoch's number alone: an
    interrupted training continues with the batches that it would have had.

    Args:
        data: an `ImageData`.
        scaling: a `Scaling`.
        batch_size: int. Images in each batch.
        seed: int. Seed of order and augmentation.
        augmentation: `(max_shift, flip)`, see `augment`.

    Returns:
        `(batches, follow_epochs)`. The first is a `tf.data.Dataset` of (float32 (batch,
        height, width, channels), int64 (batch,)), without an incomplete last batch.
        The second is the Keras callback that tells it the epoch.
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
    # The tuning thread would delay the end of each epoch by 5 s and more (TensorFlow
    # 2.21).
    options.autotune.enabled = False
    # Each worker makes the same batches and takes its part of each.
    sharding = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharding
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))
    return batches.with_options(options), FollowEpochs(epoch)


class FollowEpochs(keras.callbacks.Callback):
    """Callback that sets a variable to the epoch's number, and to 0 at the end."""

    def __init__(self, variable):
        super().__init__()
        self.variable = variable

    def on_epoch_begin(self, epoch, logs=None):
        self.variable.assign(epoch)

    def on_train_end(self, logs=None):
        self.variable.assign(0)
