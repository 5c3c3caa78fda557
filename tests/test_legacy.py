"""Models of Keras 2, written by tf_keras, as models of Keras 3."""

import json

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import tfcompress as tfc

K2 = tf_keras.layers


def mobilenet():
    shape = (96, 96, 3)
    return tf_keras.applications.MobileNet(
        shape, alpha=0.25, weights=None, classes=5, dropout=0.1
    )


def mobilenet_v2():
    return tf_keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=5
    )


def ds_cnn():
    """The layers of the keyword spotting model of MLPerf Tiny."""
    decay = tf_keras.regularizers.l2(1e-4)
    x = inputs = K2.Input((49, 10, 1))
    x = K2.Conv2D(16, (10, 4), (2, 2), "same", kernel_regularizer=decay)(x)
    x = K2.Dropout(0.2)(K2.Activation("relu")(K2.BatchNormalization()(x)))
    for _ in range(2):
        x = K2.DepthwiseConv2D(3, padding="same", depthwise_regularizer=decay)(x)
        x = K2.Activation("relu")(K2.BatchNormalization()(x))
        x = K2.Conv2D(16, 1, kernel_regularizer=decay)(x)
        x = K2.Activation("relu")(K2.BatchNormalization()(x))
    x = K2.Flatten()(K2.AveragePooling2D((25, 5))(x))
    return tf_keras.Model(inputs, K2.Dense(12, activation="softmax")(x))


def resnet8():
    x = inputs = K2.Input((16, 16, 3))
    x = K2.Activation("relu")(K2.BatchNormalization()(K2.Conv2D(8, 3)(x)))
    for filters in (8, 16):
        y = K2.Conv2D(filters, 3, 2, "same", kernel_initializer="he_normal")(x)
        y = K2.Activation("relu")(K2.BatchNormalization(axis=-1)(y))
        y = K2.BatchNormalization()(K2.Conv2D(filters, 3, padding="same")(y))
        x = K2.Activation("relu")(K2.add([K2.Conv2D(filters, 1, 2)(x), y]))
    return tf_keras.Model(inputs, K2.Dense(4)(K2.GlobalAveragePooling2D()(x)))


def autoencoder():
    sizes = (16, 8, 16)
    hidden = [
        layer
        for size in sizes
        for layer in (K2.Dense(size), K2.BatchNormalization(), K2.Activation("relu"))
    ]
    return tf_keras.Sequential([K2.Input((40,)), *hidden, K2.Dense(40)])


def recurrent():
    x = inputs = K2.Input((12, 5))
    x = K2.Bidirectional(K2.LSTM(4, return_sequences=True))(x)
    x = K2.GRU(6, return_sequences=True)(x)
    x = K2.TimeDistributed(K2.Dense(3, activation="tanh"))(x)
    x = K2.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True)(x)
    return tf_keras.Model(inputs, K2.SimpleRNN(3)(x))


def activations():
    inputs = K2.Input((8, 8, 3))
    x = K2.Conv2D(4, 3)(K2.LayerNormalization()(inputs))
    x = K2.PReLU(shared_axes=[1, 2])(x)
    x = K2.LeakyReLU(alpha=0.1)(K2.UpSampling2D(2, interpolation="bilinear")(x))
    x = K2.ReLU(max_value=6.0)(K2.Conv2DTranspose(4, 3, strides=2)(x))
    x = K2.Activation("hard_sigmoid")(K2.SeparableConv2D(4, 3)(x))
    x = K2.Dense(3, activation="swish")(K2.Flatten()(x))
    return tf_keras.Model(inputs, K2.Dense(3, activation=squash)(K2.ELU(0.5)(x)))


def squash(x):
    return x / (1.0 + abs(x))


def nested():
    inner = tf_keras.Sequential(
        [K2.Input((6, 6, 3)), K2.DepthwiseConv2D(3), K2.BatchNormalization()]
    )
    inputs = K2.Input((6, 6, 3))
    x = tf_keras.Model(inner.input, inner.output)(inputs)
    return tf_keras.Model(inputs, [K2.Flatten()(x), K2.GlobalMaxPooling2D()(x)])


def nested_twice():
    """Shared models of both kinds, which make the outputs too."""
    shape = (6, 6, 3)
    first = tf_keras.Sequential([K2.Input(shape), K2.Conv2D(3, 3, padding="same")])
    inner = tf_keras.Sequential([K2.Input(shape), K2.Conv2D(3, 1)])
    x = K2.Input(shape)
    second = tf_keras.Model(x, K2.BatchNormalization()(inner(x)))
    inputs = K2.Input(shape)
    x = second(K2.ReLU()(first(second(inputs))))
    return tf_keras.Model(inputs, [first(x), x])


def embedding():
    layers = [K2.Embedding(50, 8, input_length=6), K2.Conv1D(4, 3), K2.Flatten()]
    return tf_keras.Sequential([*layers, K2.Dense(2)])


MODELS = [
    *(mobilenet, mobilenet_v2, ds_cnn, resnet8, autoencoder, recurrent, activations),
    *(nested, nested_twice, embedding),
]


def varied(model):
    """The model with random weights in place of its zeros and ones."""
    rng, weights = np.random.default_rng(0), model.get_weights()
    model.set_weights([w + rng.uniform(0, 0.1, w.shape) for w in weights])
    return model


@pytest.mark.parametrize("make", MODELS)
def test_loaded_model_predicts_as_it_did_in_keras_2(make, tmp_path):
    tf_keras.utils.set_random_seed(0)
    old = varied(make())
    if make is ds_cnn:  # its optimizer is saved too
        old.compile("adam", "sparse_categorical_crossentropy")
    path = tmp_path / "old.h5"
    old.save(path, save_format="h5")
    content = path.read_bytes()
    new = tfc.load_legacy(path, {"squash": squash})
    assert path.read_bytes() == content
    assert isinstance(new, keras.Model) and new.count_params() == old.count_params()
    shape = (4, *old.inputs[0].shape[1:])
    inputs = np.random.default_rng(1).uniform(0, 1, shape).astype("float32")
    if make is embedding:
        inputs = (50 * inputs).astype("int32")
    received = keras.tree.flatten(new.predict(inputs, verbose=0))
    expected = keras.tree.flatten(old.predict(inputs, verbose=0))
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_loaded_model_is_saved_and_compressed(tmp_path):
    varied(activations()).save(tmp_path / "old.h5")
    model = tfc.load_legacy(tmp_path / "old.h5", {"squash": squash})
    model.save(tmp_path / "new.keras")
    objects = {"squash": squash}
    loaded = keras.models.load_model(tmp_path / "new.keras", custom_objects=objects)
    with keras.saving.custom_object_scope(objects):
        assert tfc.compress(loaded, tfc.PrunedTernary()).count_params()


def saved(model, tmp_path, change=None):
    """Path of a saved model, whose configuration a function has changed."""
    path = tmp_path / "old.h5"
    model.save(path)
    if change is not None:
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config["config"]["layers"])
            file.attrs["model_config"] = json.dumps(config)
    return path


@pytest.mark.parametrize("name, value", [
    ("groups", 2), ("time_major", True), ("renorm", True), ("speed", 3),
])  # fmt: skip
def test_argument_with_an_effect_that_keras_3_lacks_is_refused(name, value, tmp_path):
    model = tf_keras.Sequential([K2.Input((6, 6, 4)), K2.DepthwiseConv2D(3, name="x")])
    path = saved(model, tmp_path, lambda x: x[-1]["config"].update({name: value}))
    with pytest.raises(ValueError, match=f"{name}={value} of 'x', of type Depthwise"):
        tfc.load_legacy(path)


def test_normalization_of_several_axes_is_refused(tmp_path):
    norm = K2.LayerNormalization(axis=[1, 2], name="norm")
    path = saved(tf_keras.Sequential([K2.Input((4, 5)), norm]), tmp_path)
    with pytest.raises(ValueError, match=r"axis=\[1, 2\] of 'norm'"):
        tfc.load_legacy(path)


def test_operations_between_layers_are_refused_by_name(tmp_path):
    inputs = K2.Input((4,))
    path = saved(tf_keras.Model(inputs, K2.Dense(2)(inputs * 2.0)), tmp_path)
    with pytest.raises(ValueError, match=r"TFOpLambda \('tf.math.multiply'\)"):
        tfc.load_legacy(path)


def test_tensors_as_keyword_arguments_are_refused(tmp_path):
    inputs = K2.Input((4, 6))
    x = K2.MultiHeadAttention(2, 3, name="mha")(inputs, value=inputs)
    with pytest.raises(ValueError, match="'mha' of type MultiHeadAttention.*`value`"):
        tfc.load_legacy(saved(tf_keras.Model(inputs, x), tmp_path))


@pytest.mark.parametrize("is_sequential", [True, False])
def test_unknown_classes_are_refused_by_name(is_sequential, tmp_path):
    class Own(K2.Layer):
        pass

    inputs = K2.Input((4,))
    model = tf_keras.Model(inputs, Own(name="mine")(inputs))
    if is_sequential:
        model = tf_keras.Sequential([K2.Input((4,)), Own(name="mine")])
    with pytest.raises(ValueError, match=r"Own \('mine'\).*custom_objects"):
        tfc.load_legacy(saved(model, tmp_path))


def test_files_of_other_kinds_are_refused_with_the_reason(tmp_path):
    model = tf_keras.Sequential([K2.Input((4,)), K2.Dense(2)])
    model.save(tmp_path / "folder", save_format="tf")
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "weights.h5")
    for name, reason in (
        ("folder", "a SavedModel"), ("model.keras", "which is none.*load_model"),
        ("weights.h5", "its weights alone"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            tfc.load_legacy(tmp_path / name)
    with pytest.raises(TypeError, match="path of an `.h5` file.*Received: 3"):
        tfc.load_legacy(3)
    with pytest.raises(FileNotFoundError, match=r"absent\.h5"):
        tfc.load_legacy(bytes(tmp_path / "absent.h5"))
    with pytest.raises(FileNotFoundError, match=r"absent\.h5"):
        tfc.load_legacy(tmp_path / "absent.h5")


def test_file_of_keras_3_is_loaded_too(tmp_path):
    """Its `hard_sigmoid` is that of Keras 3."""
    layers = [keras.layers.Dense(2), keras.layers.Activation("hard_sigmoid")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.save(tmp_path / "new.h5")
    loaded, inputs = tfc.load_legacy(tmp_path / "new.h5"), np.eye(4)
    np.testing.assert_array_equal(loaded.predict(inputs), model.predict(inputs))
