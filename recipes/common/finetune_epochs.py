"""Flag of recipes whose schemes search, then fine-tune."""

from absl import flags

flags.DEFINE_integer(
    "finetune_epochs", 6, "Epochs of fine-tuning, after the search.", lower_bound=1
)
