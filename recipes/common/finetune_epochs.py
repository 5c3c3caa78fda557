"""The flag of recipes that search first and then fine-tune what was found."""

from absl import flags

flags.DEFINE_integer(
    "finetune_epochs", 6, "Epochs that fine-tune what was found.", lower_bound=1
)
