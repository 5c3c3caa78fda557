"""What the recipes share: data, models, flags and training."""
