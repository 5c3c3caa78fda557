"""Replacement of layers of several kernels by parts with one kernel each."""
