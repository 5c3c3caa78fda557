"""Table of all rules, one for each layer and operation that is known."""

from keras import layers

from tfcompress.graph.graph import Call
from tfcompress.graph.rules import (
    elementwise,
    layout,
    merging,
    mixing,
    pooling,
    weights,
)
from tfcompress.graph.trace import Rule, Trace
from tfcompress.layers import TrainingForm
from tfcompress.layers.tensors.masking import AttachMask
from tfcompress.layers.tensors.steps import SplitSteps

# By the class of a layer.
LAYERS: dict[type, Rule] = {
    **elementwise.LAYERS,
    **layout.LAYERS,
    **merging.LAYERS,
    **mixing.LAYERS,
    **pooling.LAYERS,
    **weights.LAYERS,
}
# By the name of an operation's class, in small letters.
OPERATIONS: dict[str, Rule] = {
    **elementwise.OPERATIONS,
    **layout.OPERATIONS,
    **merging.OPERATIONS,
    **mixing.OPERATIONS,
}
_OF_SEVERAL_INPUTS = (
    merging.merge, merging.concatenate, mixing.attention, mixing.recurrence,
)  # fmt: skip

# Layers whose rules concern their first input. The others are masks, or only have a
# shape that is read.
_FIRST_OF_SEVERAL = (AttachMask, SplitSteps)


def rule_of(call: Call) -> Rule | None:
    """Returns the rule of a call, a function of a `Trace` and the call.

    None if there is none. Subclasses of layers have none, since they may compute
    anything. Those of this package do, since they change weights and not channels.
    """
    operation, kind = call.operation, type(call.operation)
    if isinstance(operation, TrainingForm) and operation.passes_channels:
        return elementwise.pass_through
    origin = kind.__module__.partition(".")[0]
    rule = None
    if isinstance(operation, layers.Layer):
        kinds = kind.__mro__ if origin == "tfcompress" else (kind,)
        rule = next((LAYERS[k] for k in kinds if k in LAYERS), None)
    elif origin == "keras":
        rule = OPERATIONS.get(kind.__name__.lower())
    of_several = rule in _OF_SEVERAL_INPUTS or isinstance(operation, _FIRST_OF_SEVERAL)
    if rule is None or (len(call.inputs) != 1 and not of_several):
        return None
    return _checked(rule) if isinstance(operation, layers.Layer) else rule


def _checked(rule: Rule) -> Rule:
    """The rule, for layers without weights that no rule knows."""

    def checked(trace: Trace, call: Call) -> None:
        if getattr(call.operation, "lora_enabled", False):
            trace.freeze_call(call, f"'{call.name}' has LoRA weights")
        elif getattr(call.operation, "quantization_mode", None):
            trace.freeze_call(call, f"'{call.name}' is quantized by Keras")
        else:
            rule(trace, call)

    return checked
