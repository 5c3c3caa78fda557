"""Layers without kernels, which round, mark or reshape tensors."""
