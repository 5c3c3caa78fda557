"""Flag of recipes whose schemes train in one phase."""

from absl import flags

flags.DEFINE_integer("epochs", 10, "Epochs of compressed training.", lower_bound=1)
