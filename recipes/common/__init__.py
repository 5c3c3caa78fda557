"""Modules that the recipes share: data, models, flags and training."""
