"""Factorized layers, compared with the plain layers of the same kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from tfcompress.layers import FactorizedConv1D, FactorizedConv2D, FactorizedDense

PAIRS = {
    "conv2d": (
        lambda kind, **kw: kind(12, 3, strides=2, padding="same", **kw),
        (kl.Conv2D, FactorizedConv2D),
        (9, 9, 5),
    ),
    "conv1d": (
        lambda kind, **kw: kind(12, 3, dilation_rate=2, activation="relu", **kw),
        (kl.Conv1D, FactorizedConv1D),
        (9, 5),
    ),
    "dense": (
        lambda kind, **kw: kind(4, use_bias=False, **kw),
        (kl.Dense, FactorizedDense),
        (7,),
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    """A plain layer, the factorized one of the same arguments, and inputs."""
    make, (plain, factorized), shape = PAIRS[request.param]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    layers = make(plain), make(factorized)
    for layer in layers:
        layer.build(x.shape)
    return *layers, x


def copy(plain, factorized, start="svd"):
    factorized.set_kernel(keras.ops.convert_to_numpy(plain.kernel), start)
    if plain.use_bias:
        plain.bias.assign(np.linspace(-1, 1, plain.bias.shape[0]))
        factorized.bias.assign(plain.bias)


def test_svd_start_reproduces_the_kernel(pair):
    plain, factorized, x = pair
    copy(plain, factorized)
    np.testing.assert_allclose(factorized.kernel, plain.kernel, atol=1e-6)
    np.testing.assert_allclose(factorized(x), plain(x), atol=1e-5)
    # Norms of the coefficients' rows are the singular values of the kernel.
    matrix = np.reshape(plain.kernel, (-1, plain.kernel.shape[-1]))
    norms = np.linalg.norm(factorized.coefficients, axis=1)
    np.testing.assert_allclose(norms, np.linalg.svd(matrix)[1], rtol=1e-5)
    assert factorized.coefficients.shape[0] == min(matrix.shape)


def test_product_keeps_the_kernel_without_a_decomposition(pair):
    plain, factorized, _ = pair
    assert not factorized.is_product()
    factorized.set_product(np.array(plain.kernel))
    assert factorized.is_product()
    np.testing.assert_array_equal(factorized.kernel, plain.kernel)


def test_identity_start_keeps_the_kernel_as_the_basis():
    plain, factorized = kl.Dense(6), FactorizedDense(6, kernel_rank=6)
    for layer in (plain, factorized):
        layer.build((None, 4))
    factorized.set_kernel(keras.ops.convert_to_numpy(plain.kernel), "identity")
    np.testing.assert_array_equal(factorized.kernel_variable, plain.kernel)
    np.testing.assert_array_equal(factorized.coefficients, np.eye(6))


def test_factors_of_the_kept_ranks_multiply_to_the_kernel(pair):
    plain, factorized, x = pair
    copy(plain, factorized)
    keep = np.ones(factorized.coefficients.shape[0], "float32")
    keep[2:] = 0
    factorized.rank_mask.assign(keep)
    assert factorized.is_decomposed()
    basis, coefficients, bias = factorized.factors()
    assert basis.shape[-1] == 2 == coefficients.shape[0]
    assert (bias is None) == (not plain.use_bias)
    product = (basis.reshape(-1, 2) @ coefficients).reshape(plain.kernel.shape)
    np.testing.assert_allclose(factorized.kernel, product, atol=1e-6)


def test_masked_input_channel_is_not_read(pair):
    plain, factorized, x = pair
    copy(plain, factorized)
    mask = np.ones(x.shape[-1], "float32")
    mask[1] = 0
    factorized.input_mask.assign(mask)
    np.testing.assert_allclose(factorized(x), plain(x * mask), atol=1e-5)


@pytest.fixture
def products(monkeypatch):
    """The layers that multiply their factors, one for each time they do."""
    seen = []
    for kind in (FactorizedConv1D, FactorizedConv2D, FactorizedDense):
        whole = kind.product
        monkeypatch.setattr(
            kind, "product", lambda self, whole=whole: seen.append(self) or whole(self)
        )
    return seen


def test_factors_one_after_the_other_equal_their_product(pair, products):
    """Outputs and gradients; one sample has few positions, and 300 have many."""
    plain, factorized, x = pair
    copy(plain, factorized)
    factorized.rank_mask.assign(np.arange(factorized.coefficients.shape[0]) != 1)
    results = []
    for count in (1, 300):
        with tf.GradientTape() as tape:
            outputs = factorized(np.repeat(x[:1], count, axis=0))
            loss = keras.ops.sum(keras.ops.square(outputs)) / count
        results.append([outputs[0], *tape.gradient(loss, factorized.trainable_weights)])
        assert len(products) == (count > 1)
    for apart, together in zip(*results, strict=True):
        np.testing.assert_allclose(apart, together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_factors_one_after_the_other_in_16_bits(dtype, data_format, products):
    """Outputs are those of float32, in the compute dtype, whatever the axes' order."""
    shape = (6, 6, 5) if data_format == "channels_last" else (5, 6, 6)
    x = np.random.default_rng(0).normal(size=(1, *shape)).astype("float32")
    arguments = {"filters": 32, "kernel_size": 3, "data_format": data_format}
    reference = FactorizedConv2D(**arguments)
    layer = FactorizedConv2D(**arguments, dtype=dtype)
    for each in (reference, layer):
        each.build(x.shape)
    layer.set_weights(reference.get_weights())

    @tf.function(jit_compile=True)  # without XLA, processors only know channels_last
    def results(layer):
        with tf.GradientTape() as tape:
            outputs = layer(x)
            loss = keras.ops.sum(keras.ops.cast(outputs, "float32"))
        return outputs, tape.gradient(loss, layer.trainable_weights)

    (exact, _), (outputs, gradients) = results(reference), results(layer)
    assert outputs.dtype.name == layer.compute_dtype
    assert not products
    exact, outputs = (np.asarray(values, "float32") for values in (exact, outputs))
    np.testing.assert_allclose(outputs, exact, atol=0.03 * np.abs(exact).max())
    for gradient in gradients:
        assert gradient.dtype == "float32"
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("shape", "multiplies"),
    [((64,), False), ((6, 64), True), ((None, 64), True)],
)
def test_products_of_an_unknown_batch_are_counted_for_32_samples(
    shape, multiplies, products
):
    # 64 * 64 * (64 + n) multiplications, or n * 64 * (64 + 64), with n = 32 or 192.
    layer = FactorizedDense(64)
    layer.build((None, *shape))
    tf.function(layer).get_concrete_function(tf.TensorSpec((None, *shape)))
    assert bool(products) == multiplies


def test_factorized_layers_train_save_and_load(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = FactorizedConv2D(6, 3, kernel_rank=4, kernel_regularizer="l2")(inputs)
    model = keras.Model(inputs, FactorizedDense(2)(kl.Flatten()(x)))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8, 8, 3)).astype("float32"), rng.integers(0, 2, 32)
    before = [np.array(v) for v in model.trainable_variables]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    moved = [
        np.abs(v - b).max()
        for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert min(moved) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


def test_variables_keep_the_names_and_the_order_of_saved_files():
    layer = FactorizedConv2D(6, 3, kernel_rank=4)
    layer.build((None, 8, 8, 3))
    shapes = {variable.name: tuple(variable.shape) for variable in layer.weights}
    assert list(shapes.items()) == [
        ("kernel", (3, 3, 3, 4)),
        ("bias", (6,)),
        ("coefficients", (4, 6)),
        ("pace", (4,)),
        ("rank_mask", (4,)),
        ("input_mask", (3,)),
        ("cut", ()),
    ]


@pytest.mark.parametrize("rank", [0, -1, 1.5, "full"])
def test_kernel_rank_that_is_no_positive_integer_is_refused(rank):
    with pytest.raises(ValueError, match="positive integer"):
        FactorizedDense(3, kernel_rank=rank)


def test_groups_and_ranks_too_small_for_the_start_are_refused():
    with pytest.raises(ValueError, match="one group"):
        FactorizedConv2D(4, 3, groups=2)
    layer = FactorizedDense(6, kernel_rank=3)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="rank 4 for an exact 'svd' start"):
        layer.set_kernel(np.ones((4, 6)))
    with pytest.raises(ValueError, match="rank 6 for an exact 'identity' start"):
        layer.set_kernel(np.ones((4, 6)), "identity")


def test_factorized_kernel_learns_as_fast_as_a_plain_kernel():
    """One small step moves it by -rate * (G + P G) / 2: P projects on the basis."""
    rng = np.random.default_rng(0)
    kernel = (10 * rng.normal(size=(8, 5))).astype("float32")
    # The gradient of sum(W * target).
    target = rng.normal(size=(8, 5)).astype("float32")
    inputs = keras.Input((8,))
    layer = FactorizedDense(5, use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.set_kernel(kernel)
    rate = 1e-4
    model.compile(
        keras.optimizers.SGD(rate), lambda y, z: keras.ops.sum(y * z, axis=-1)
    )
    model.train_on_batch(np.eye(8), 8 * target)  # Keras takes the mean over samples
    basis = np.linalg.svd(kernel, full_matrices=False)[0]
    expected = -rate * (target + basis @ basis.T @ target) / 2
    moved = np.array(layer.kernel) - kernel
    # Up to the floor below small norms.
    cosine = (moved * expected).sum() / np.linalg.norm(moved) / np.linalg.norm(expected)
    assert cosine > 0.999
    assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(expected), rel=0.03)
