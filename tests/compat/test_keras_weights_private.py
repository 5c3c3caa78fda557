import keras
import numpy as np

from tfcompress.compat import keras_weights_private


def test_variable_that_is_not_autocast_keeps_its_dtype_in_mixed_precision():
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(2,))

        def call(self, inputs):
            return self.w.value

    for changes, dtype in ((False, "bfloat16"), (True, "float32")):
        layer = Own(dtype="mixed_bfloat16")
        layer.build((1, 2))
        if changes:
            keras_weights_private.do_not_autocast(layer.w)
        found = layer(np.ones((1, 2))).dtype
        assert keras.backend.standardize_dtype(found) == dtype


def test_untracked_weight_is_not_among_the_weights_of_a_layer():
    class Own(keras.layers.Layer):
        def build(self, shape):
            variable = self.add_weight(shape=(2,))
            self.kept = self.add_weight(shape=(3,))
            keras_weights_private.untrack_weight(self, variable)

    layer = Own()
    layer.build((1, 2))
    assert [x.shape for x in layer.weights] == [(3,)]
