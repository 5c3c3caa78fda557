"""Flag of recipes whose schemes can leave activations float."""

from absl import flags

flags.DEFINE_integer(
    "activation_bits",
    None,
    "Bits of activations with learned ranges. With 8 an int8 file is what was trained. "
    "By default activations are float.",
    lower_bound=2,
    upper_bound=8,
)
