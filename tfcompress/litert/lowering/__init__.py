"""Operators and containers of kernels that are read without decoding."""
