"""Tensors that int8 files store on levels, and the operators that round to them."""
