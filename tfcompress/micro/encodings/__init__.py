"""Encodings of int8 kernels that TensorFlow Lite Micro decodes by itself."""
