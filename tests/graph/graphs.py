"""Small graphs that together have all operations that channels are followed through."""

import keras
from keras import layers, ops

from tfcompress.layers.tensors.masking import AttachMask, DetachMask, ReadMask
from tfcompress.layers.tensors.steps import MergeSteps, SplitSteps


def conv(filters, name=None, size=3, **config):
    return layers.Conv2D(filters, size, padding="same", name=name, **config)


def norm_relu(x, **config):
    return layers.ReLU()(layers.BatchNormalization(**config)(x))


def chain(x):
    x = norm_relu(conv(6, "first", use_bias=False)(x))
    x = norm_relu(conv(5, "second")(x))
    return conv(2, "head")(x)


def basic_block(x):
    x = conv(4, "stem")(x)
    y = norm_relu(conv(6, "first")(x))
    return conv(3, "head")(layers.Add()([x, conv(4, "second")(y)]))


def merges(x):
    x = conv(6)(x)
    for layer in (layers.Subtract(), layers.Maximum(), layers.Average()):
        x = layer([conv(6)(x), x])
    x = ops.minimum(x, 2 * conv(6)(x) + 1.0) / (1.5 + ops.square(x))
    return layers.Dense(2)(layers.Multiply()([x, x]))


def inverted_residual(x):
    x = conv(3, "stem")(x)
    y = norm_relu(conv(7, "expand", 1)(x))
    y = norm_relu(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y))
    return layers.GlobalMaxPooling2D()(layers.Add()([x, conv(3, "project", 1)(y)]))


def depth_multiplier(x):
    x = conv(5, "first", activation="relu")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization()(x)
    return layers.Dense(2, name="head")(layers.Flatten()(x))


def lenet(x):
    x = layers.MaxPooling2D()(conv(5, "first", activation="relu")(x))
    x = layers.MaxPooling2D()(conv(6, "second", activation="relu")(x))
    x = layers.BatchNormalization()(layers.Flatten()(x))
    x = layers.Dense(7, "tanh", name="third")(x)
    return layers.Dense(3, "softmax", name="head")(x)


def one_dimensional(x):
    x = layers.Reshape((16, 12))(x)
    x = layers.PReLU(shared_axes=[1])(layers.Conv1D(6, 3, name="first")(x))
    x = layers.PReLU()(layers.Dense(5, name="second")(x))
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.DepthwiseConv1D(3, use_bias=False)(x)
    return layers.Dense(2, name="head")(layers.GlobalMaxPooling1D()(x))


def three_dimensional(x):
    x = layers.Reshape((4, 4, 4, 3))(x)
    x = norm_relu(layers.Conv3D(6, 3, padding="same")(x))
    x = layers.Conv3DTranspose(4, 2, 2)(layers.MaxPooling3D()(x))
    return layers.Dense(2)(layers.GlobalAveragePooling3D()(x))


def two_consumers(x):
    x = norm_relu(conv(6, "first")(x))
    return layers.Add()([conv(3, "left")(x), conv(3, "right", 1)(ops.relu6(x))])


def concatenation(x):
    for _ in range(3):
        x = layers.Concatenate()([x, norm_relu(conv(4)(x))])
    x = ops.concatenate([x, conv(5)(x)], -1)
    y = ops.concatenate([conv(3)(x), conv(3, activation="tanh")(x)], 1)
    return conv(2)(layers.BatchNormalization()(y))


def grouped(x):
    x = norm_relu(conv(8, groups=1)(x))
    x = norm_relu(conv(12, groups=2)(x))
    return conv(2)(conv(12, groups=12, activation="relu")(x))


def depthwise_by_groups(x):
    x = norm_relu(conv(6)(x))
    return conv(2)(norm_relu(conv(12, groups=6)(x)))


def separable(x):
    x = norm_relu(layers.SeparableConv2D(6, 3, depth_multiplier=2)(x))
    x = layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu")(x)
    x = layers.SeparableConv1D(4, 3, use_bias=False)(layers.Reshape((-1, 5))(x))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def transposed(x):
    x = norm_relu(layers.Conv2DTranspose(6, 3, 2, padding="same")(x))
    x = layers.Conv2DTranspose(5, 2, 2, use_bias=False)(layers.UpSampling2D()(x))
    x = layers.Conv1DTranspose(4, 3)(layers.Reshape((-1, 5))(x))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def einsum(x):
    x = layers.EinsumDense("abcd,de->abce", (None, 8, 6), bias_axes="e")(x)
    x = layers.EinsumDense("...x,xy->...y", 5, activation="gelu")(x)
    return layers.Dense(2)(x)


def embedding(x):
    x = layers.Flatten()(layers.Rescaling(0.0)(x))[:, :7]
    x = layers.Embedding(5, 6)(ops.cast(ops.abs(x), "int32"))
    return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))


def squeeze_excite(x):
    x = norm_relu(conv(8)(x))
    y = layers.GlobalAveragePooling2D()(x)
    y = layers.Reshape((1, 1, 8))(y)
    y = conv(8, size=1, activation="sigmoid")(conv(3, size=1, activation="relu")(y))
    z = layers.Dense(8, "sigmoid")(ops.mean(x, (1, 2)))
    return conv(2)(layers.Multiply()([x, y]) * ops.reshape(z, (-1, 1, 1, 8)))


def spatial_attention(x):
    x = conv(6)(x)
    return conv(2)(x * conv(1, activation="sigmoid")(x))


def channels_first(x):
    config = {"data_format": "channels_first"}
    x = layers.Permute((3, 1, 2))(x)
    x = norm_relu(conv(6, **config)(x), axis=1)
    x = layers.PReLU(shared_axes=[2, 3])(conv(5, **config)(x))
    y = layers.SeparableConv2D(4, 3, **config)(x)
    y = layers.Flatten(**config)(layers.MaxPooling2D(**config)(y))
    z = layers.DepthwiseConv2D(3, **config)(x)
    z = layers.Reshape((5, 9))(layers.AveragePooling2D(2, **config)(z))
    return [layers.Dense(2)(y), layers.Dense(2)(layers.Flatten()(z))]


def moved(x):
    x = layers.Permute((2, 3, 1))(conv(6)(x))
    x = ops.transpose(x, (0, 3, 1, 2))
    x = norm_relu(ops.expand_dims(ops.max(x, 1), 1))
    return layers.Dense(2)(ops.squeeze(x, 1))


def padded_shortcut(x):
    x = conv(6)(x)
    y = norm_relu(conv(10)(x))
    x = ops.pad(layers.AveragePooling2D(1)(x), [[0, 0], [0, 0], [0, 0], [1, 3]])
    z = ops.pad(x, [[0, 0], [1, 1], [1, 1], [2, 0]])
    return [conv(2)(layers.Add()([x, y])), conv(2)(z)]


def slices(x):
    x = norm_relu(conv(12)(x))
    left, middle, right = ops.split(x, [4, 8], axis=-1)
    a, b = ops.split(x[..., 2:-2], 2, axis=3)
    c = conv(4)(left) + middle
    return [conv(2)(c), conv(2)(right[:, 1:]), conv(2)(a[:, ::2]), conv(2)(b)]


def instance_norm(x):
    x = layers.GroupNormalization(-1)(conv(6)(x))
    return conv(2)(layers.Resizing(4, 4)(layers.ReLU()(x)))


def shared_layers(x):
    layer, norm = conv(6, "shared"), layers.BatchNormalization()
    x = conv(6)(x)
    x = layers.Add()([norm(layer(x)), layers.ReLU()(norm(layer(layer(x))))])
    return conv(2, "head")(x)


def nested(x):
    inputs = keras.Input((None, None, 6))
    y = conv(4, "second")(norm_relu(conv(5, "first")(layers.ReLU()(inputs))))
    body = keras.Model(inputs, [y, layers.MaxPooling2D()(inputs)], name="body")
    first, second = body(conv(6, "stem")(x))
    third, _ = body(conv(6, "other")(second))
    x = layers.BatchNormalization()(first)
    x = layers.Concatenate()([conv(3, "between")(x), layers.UpSampling2D()(third)])
    tail = [keras.Input((8, 8, 7)), conv(4, "first"), layers.ReLU(), conv(2, "last")]
    return keras.Sequential(tail, name="tail")(x)


def rows_as_samples(x):
    x = conv(6, "first")(x)
    y = layers.Conv1D(5, 3, padding="same", name="rows")(MergeSteps()(x))
    y = DetachMask()(AttachMask()(SplitSteps()(y, x), ReadMask(2)(x)))
    return conv(3, "head")(y)


GRAPHS = [
    chain, basic_block, merges, inverted_residual, depth_multiplier, lenet,
    one_dimensional, three_dimensional, two_consumers, concatenation, grouped,
    depthwise_by_groups, separable, transposed, einsum, embedding, squeeze_excite,
    spatial_attention, channels_first, moved, padded_shortcut, slices,
    instance_norm, shared_layers, nested, rows_as_samples,
]  # fmt: skip


def nested_residual():
    """Model with a nested model that is called twice, and a nested Sequential one."""
    inner_in = keras.Input((8, 8, 4), name="inner_in")
    inner = keras.Model(
        inner_in,
        layers.Conv2D(4, 3, padding="same", name="conv")(inner_in),
        name="inner",
    )
    tail = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.ReLU(name="relu"), layers.Flatten(name="flat")],
        name="tail",
    )
    inputs = keras.Input((8, 8, 4), name="image")
    x = inner(inputs)
    x = layers.Add(name="add")([inner(x), inputs])
    x = keras.ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]])
    x = layers.Cropping2D(((1, 1), (0, 0)), name="crop")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(tail(x)), name="outer")
