"""Verification that a file has the planned kernels and predicts like Keras."""
