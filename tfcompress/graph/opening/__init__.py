"""Layers with several kernels, opened into layers with one each."""
