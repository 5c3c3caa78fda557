"""Names for types that only a backend knows."""

from typing import Any, TypeAlias

# A tensor of the backend in use: TensorFlow's, JAX's or torch's.
Tensor: TypeAlias = Any
# A NumPy array, a Keras variable or a tensor.
ArrayLike: TypeAlias = Any
