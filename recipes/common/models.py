"""Built-in networks for small images (28 x 28 and up), and model files.

Each built-in network ends in logits. The parameter counts are those of the papers, for
the published input size and number of classes.
"""

import functools
import pathlib

import keras
import numpy as np
from keras import layers

MODEL_SUFFIXES = (".keras", ".h5")

_conv = functools.partial(
    layers.Conv2D, padding="same", use_bias=False, kernel_initializer="he_normal"
)
# Small data sets have few steps: the moving statistics have to follow faster than with
# Keras's default of 0.99.
_norm = functools.partial(layers.BatchNormalization, momentum=0.9, epsilon=1e-5)


def lenet5(input_shape, num_classes):
    """LeNet-5 as the compression literature uses it: 20-50-500 units, 431 080 weights.

    The network of the Caffe examples, with ReLU after each convolution.
    """
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(20, 5, activation="relu", name="conv1")(inputs)
    x = layers.MaxPooling2D(name="pool1")(x)
    x = layers.Conv2D(50, 5, activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, activation="relu", name="fc1")(x)
    outputs = layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(inputs, outputs, name="lenet5")


def resnet8(input_shape, num_classes):
    """The ResNet of MLPerf Tiny's image classification, 78 666 parameters.

    One block per stage, convolutions with bias, 1x1 convolution shortcuts.
    """
    conv = functools.partial(_conv, use_bias=True)
    inputs = keras.Input(input_shape)
    x = conv(16, 3, name="stem_conv")(inputs)
    x = layers.ReLU(name="stem_relu")(_norm(name="stem_bn")(x))
    for stage, (filters, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        name = f"stage{stage}"
        y = conv(filters, 3, stride, name=f"{name}_conv1")(x)
        y = layers.ReLU(name=f"{name}_relu1")(_norm(name=f"{name}_bn1")(y))
        y = conv(filters, 3, name=f"{name}_conv2")(y)
        y = _norm(name=f"{name}_bn2")(y)
        if stride > 1:
            x = conv(filters, 1, stride, name=f"{name}_shortcut")(x)
        x = layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, y]))
    return _classify(inputs, x, num_classes, "resnet8")


def resnet20(input_shape, num_classes):
    """ResNet-20 for CIFAR, 0.27 M parameters (He et al. 2016, section 4.2)."""
    return _cifar_resnet(input_shape, num_classes, blocks=3, name="resnet20")


def resnet56(input_shape, num_classes):
    """ResNet-56 for CIFAR, 0.85 M parameters (He et al. 2016, section 4.2)."""
    return _cifar_resnet(input_shape, num_classes, blocks=9, name="resnet56")


def _cifar_resnet(input_shape, num_classes, blocks, name):
    """Network of 6 * blocks + 2 layers with parameter-free shortcuts (option A)."""
    inputs = keras.Input(input_shape)
    x = _norm(name="stem_bn")(_conv(16, 3, name="stem_conv")(inputs))
    x = layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            downsample = stage > 1 and block == 1
            y = _conv(filters, 3, 2 if downsample else 1, name=f"{prefix}_conv1")(x)
            y = layers.ReLU(name=f"{prefix}_relu1")(_norm(name=f"{prefix}_bn1")(y))
            y = _conv(filters, 3, name=f"{prefix}_conv2")(y)
            y = _norm(name=f"{prefix}_bn2")(y)
            if downsample:
                x = _subsample(x, filters)
            x = layers.ReLU(name=f"{prefix}_relu2")(
                layers.Add(name=f"{prefix}_add")([x, y])
            )
    return _classify(inputs, x, num_classes, name)


def _subsample(x, filters):
    """Returns every second pixel of `x`, padded with zeros to `filters` channels."""
    x = layers.AveragePooling2D(1, 2)(x)
    added = filters - x.shape[-1]
    padding = ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2))
    return keras.ops.pad(x, padding)


def vgg16(input_shape, num_classes):
    """VGG-16 for CIFAR: 13 convolutions with BN and one classifier, 14.7 M parameters.

    The usual CIFAR variant of configuration D (Simonyan and Zisserman 2015).
    """
    inputs = x = keras.Input(input_shape)
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for stage, (filters, depth) in enumerate(stages, start=1):
        for index in range(1, depth + 1):
            suffix = f"{stage}_{index}"
            x = _norm(name=f"bn{suffix}")(_conv(filters, 3, name=f"conv{suffix}")(x))
            x = layers.ReLU(name=f"relu{suffix}")(x)
        # With "valid" nothing would be left of images below 32 x 32.
        x = layers.MaxPooling2D(padding="same", name=f"pool{stage}")(x)
    return _classify(inputs, x, num_classes, "vgg16")


def mobilenetv2(input_shape, num_classes):
    """MobileNetV2 1.0 for CIFAR, 2.24 M parameters (Sandler et al. 2018, table 2).

    The stem and the 24-channel stage keep their resolution, as usual for 32 x 32
    images, which are then downsampled by 8 instead of 32.
    """
    inputs = keras.Input(input_shape)
    x = _norm_relu6(_conv(32, 3, name="stem_conv")(inputs), "stem")
    # expansion, filters, blocks, stride of the first block
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for stage, (expansion, filters, blocks, stride) in enumerate(table, start=1):
        for block in range(1, blocks + 1):
            prefix = f"stage{stage}_block{block}"
            first_stride = stride if block == 1 else 1
            x = _inverted_residual(x, expansion, filters, first_stride, prefix)
    x = _norm_relu6(_conv(1280, 1, name="head_conv")(x), "head")
    return _classify(inputs, x, num_classes, "mobilenetv2")


def _inverted_residual(x, expansion, filters, stride, prefix):
    y, channels = x, x.shape[-1]
    if expansion > 1:
        y = _conv(channels * expansion, 1, name=f"{prefix}_expand")(y)
        y = _norm_relu6(y, f"{prefix}_expand")
    y = layers.DepthwiseConv2D(
        3,
        stride,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{prefix}_depthwise",
    )(y)
    y = _norm_relu6(y, f"{prefix}_depthwise")
    y = _norm(name=f"{prefix}_bn")(_conv(filters, 1, name=f"{prefix}_project")(y))
    if stride == 1 and channels == filters:
        y = layers.Add(name=f"{prefix}_add")([x, y])
    return y


def _norm_relu6(x, prefix):
    return layers.ReLU(6, name=f"{prefix}_relu")(_norm(name=f"{prefix}_bn")(x))


def _classify(inputs, x, num_classes, name):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(inputs, outputs, name=name)


BUILDERS = {
    "lenet5": lenet5,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vgg16": vgg16,
    "mobilenetv2": mobilenetv2,
}


def is_file(name):
    """Returns whether `name` is a path of a model file, not a built-in network."""
    return name not in BUILDERS


def load_file(path):
    """Loads the model of a file, uncompiled, with no layer frozen.

    Raises:
        ValueError: if Keras cannot load it, or if it is no image classifier with one
            input and one output.
    """
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"Keras cannot load --model={path}: {error}") from error
    # A subclassed model has no `inputs`.
    inputs, outputs = getattr(model, "inputs", []), getattr(model, "outputs", [])
    shapes = [tuple(tensor.shape) for tensor in (*inputs, *outputs)]
    if len(inputs) != 1 or [len(shape) for shape in shapes] != [4, 2]:
        raise ValueError(
            "Expected --model to have one image input (None, height, width, channels) "
            "and one output (None, classes). Received: "
            f"{pathlib.Path(path).name} with tensors {shapes}."
        )
    model.trainable = True  # frozen layers would be left alone
    return model


def check_fits(model, data):
    """Raises ValueError unless a model fits the images and classes of `ImageData`."""
    expected = (None, *data.image_shape)
    received = tuple(model.inputs[0].shape)
    fits = all(r in (None, e) for r, e in zip(received, expected, strict=True))
    classes = model.outputs[0].shape[-1]
    if not fits or classes != data.num_classes:
        raise ValueError(
            f"Expected a model for '{data.name}': input {expected}, "
            f"{data.num_classes} classes. Received: '{model.name}' with input "
            f"{received}, {classes} classes."
        )


def with_image_size(model, image_shape):
    """Returns a model for images of one size, at which costs and times are measured.

    Args:
        model: image classifier.
        image_shape: (height, width, channels).

    Returns:
        The model itself if its size is fixed, or else one around it.
    """
    if None not in model.inputs[0].shape[1:]:
        return model
    print(f"'{model.name}' takes images of any size; the written one of {image_shape}.")
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, model(inputs), name=f"{model.name}_of_one_size")


def outputs_logits(model, images):
    """Returns whether the outputs are logits rather than probabilities.

    Args:
        model: image classifier.
        images: float32 (samples, height, width, channels). Scaled images to try.
    """
    outputs = keras.ops.convert_to_numpy(model(images, training=False))
    return bool(outputs.min() < 0) or not np.allclose(outputs.sum(-1), 1, atol=1e-3)
