"""The rule of each operation: what it does with channels."""
