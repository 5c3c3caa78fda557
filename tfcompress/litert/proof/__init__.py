"""Proof that a file holds the planned kernels and predicts like Keras."""
