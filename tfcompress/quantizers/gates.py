"""Gates that learn a choice: hard on the way forward, a sigmoid on the way back."""

import keras
from keras import ops

from tfcompress.quantizers import nested
from tfcompress.quantizers.functional import straight_through

# Importances lie around 1, below this; no gate is open above the largest threshold.
MAX_IMPORTANCE = 1.4
MAX_THRESHOLD = 1.5
# How soft the backward sigmoid is. The paper's 1, on errors of 0.01 to 0.1, makes
# every threshold drift alike; relative to errors around 1 this tells them apart.
TEMPERATURE = 0.5
# Of the running averages that gates compare with their thresholds, per step.
MOMENTUM = 0.98


def hard_gates(importances, thresholds):
    """1 where the importance exceeds the threshold; backward the sigmoid's slope.

    The gradient goes to `thresholds` and `importances` alike, with opposite signs
    (Single-path Bit Sharing, the gradient of its gates).
    """
    margins = importances - thresholds
    soft = ops.sigmoid(margins / TEMPERATURE)
    return straight_through(ops.cast(margins > 0, soft.dtype), soft)


def importance_of(cost):
    """From what closing a gate costs, relative to others', to its importance.

    Increasing, from 0 to below `MAX_IMPORTANCE`, with 1 at 1: costs range over orders
    of magnitude, and a sigmoid has no slope far away from its threshold.
    """
    return MAX_IMPORTANCE * cost / (MAX_IMPORTANCE - 1.0 + cost)


def margins_of(importances, thresholds):
    """How far gates are open (positive) or closed, in units of what closing them costs.

    All of that cost at a threshold of 0, none at one that equals the importance.
    """
    bounded = ops.clip(importances, 1e-6, 0.95 * MAX_IMPORTANCE)
    costs = (MAX_IMPORTANCE - 1.0) * bounded / (MAX_IMPORTANCE - bounded)
    return costs * (importances - thresholds) / ops.maximum(importances, 1e-6)


class Threshold(keras.layers.Layer):
    """A vector of learned thresholds in [0, `MAX_THRESHOLD`].

    The optimizer sees `raw`; the threshold is `pace * raw`, with the gradient of
    `raw` itself. A search sets `pace` to the inverse of the sum of its learning
    rates, times a constant: thresholds then travel as far in a short search as in
    a long one, with SGD as with Adam.

    Args:
        size: number of thresholds.

    Variables: `raw`, float32 (size,), trainable; `pace` and `learns`, scalars that
    are not: the latter is 1 where the gradient is to be used, else 0.
    """

    def __init__(self, size, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.size = size

    def build(self):
        self._largest = MAX_THRESHOLD
        # Read inside layers that compute in 16 bits; it stays float32 there.
        state = {"initializer": "ones", "trainable": False, "autocast": False}
        state["aggregation"] = "only_first_replica"
        self.pace = self.add_weight(name="pace", **state)
        self.learns = self.add_weight(name="learns", **state)
        self.raw = self.add_weight(
            name="threshold",
            shape=(self.size,),
            initializer="zeros",
            autocast=False,
            # Or it would wander off and take as long to come back.
            # On some backends an optimizer's step can read no other variable.
            constraint=lambda raw: ops.clip(raw, 0.0, self._largest),
        )

    def value(self):
        """The thresholds, float32 (size,), with their gradient if they learn."""
        raw = ops.convert_to_tensor(self.raw)
        value = straight_through(raw * ops.convert_to_tensor(self.pace), raw)
        return ops.where(self.learns > 0, value, ops.stop_gradient(value))

    def set_pace(self, pace):
        """Changes `pace` and leaves the thresholds where they are.

        A training step that is compiled already has to be compiled anew.
        """
        value = ops.convert_to_numpy(self.raw) * float(ops.convert_to_numpy(self.pace))
        self.pace.assign(pace)
        self.raw.assign(value / pace)
        self.follow_pace()

    def follow_pace(self):
        """Bounds the thresholds by the `pace` of now, which may have been restored.

        A training step that is compiled already has to be compiled anew.
        """
        self._largest = MAX_THRESHOLD / float(ops.convert_to_numpy(self.pace))

    def get_build_config(self):
        return None  # Built by the layer it belongs to.


class BitGates(keras.layers.Layer):
    """Chooses one of several nested bit-widths by learned gates.

    Gate j is open while its importance exceeds its threshold; the bits are those up
    to the first closed gate. The importance is the running average of the error that
    grid j leaves, times a sensitivity. The average makes the choice the same on every
    replica, in training and inference.

    Args:
        bits: increasing bit-widths; a single one is a choice already made.

    Variables that are not trainable: `errors`, float32 (len(bits) - 1,), the running
    averages; `sensitivities`, of the same shape, 1 until they are measured;
    `frozen_bits`, 0 while the gates choose.
    """

    def __init__(self, bits, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.candidates = tuple(bits)
        count = len(self.candidates) - 1
        self.threshold = Threshold(count, name="threshold") if count else None

    def build(self):
        count = len(self.candidates) - 1
        self.frozen_bits = self.add_weight(
            name="fixed_bits",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            initializer=keras.initializers.Constant(0 if count else self.candidates[0]),
        )
        if count:
            # Before any data: the error of a variable that is spread evenly.
            state = {
                "shape": (count,),
                "initializer": "ones",
                "trainable": False,
                "autocast": False,
            }
            self.errors = self.add_weight(name="errors", aggregation="mean", **state)
            self.sensitivities = self.add_weight(
                name="sensitivities", aggregation="only_first_replica", **state
            )
            self.threshold.build()

    def gates(self):
        """Zeros and ones, float32 (len(bits) - 1,), with the thresholds' gradient."""
        upper = ops.convert_to_tensor(self.candidates[1:], "float32")
        fixed = ops.cast(upper <= self.frozen_bits, "float32")
        if self.threshold is None:
            return fixed
        learned = hard_gates(
            ops.stop_gradient(self.importances()), self.threshold.value()
        )
        return ops.where(self.frozen_bits > 0, fixed, learned)

    def importances(self):
        """What the gates compare with their thresholds, float32 (len(bits) - 1,)."""
        return self.errors * ops.convert_to_tensor(self.sensitivities)

    def set_costs(self, costs):
        """Sets the sensitivities by what closing each gate costs now.

        Args:
            costs: float array (len(bits) - 1,), see `importance_of`.
        """
        errors = ops.maximum(ops.convert_to_tensor(self.errors), 1e-6)
        importances = importance_of(ops.cast(costs, "float32"))
        self.sensitivities.assign(importances / errors)

    def learn(self):
        """Whether the gates' gradient is wanted now: scalar float tensor, 1 or 0."""
        if self.threshold is None:
            return ops.zeros(())
        searching = ops.cast(ops.equal(self.frozen_bits, 0.0), "float32")
        return searching * ops.convert_to_tensor(self.threshold.learns)

    def observe(self, errors):
        """Moves the running averages towards the errors of this step."""
        old = ops.convert_to_tensor(self.errors)
        new = MOMENTUM * old + (1.0 - MOMENTUM) * errors
        self.errors.assign(ops.where(self.learn() > 0, new, old))

    def expected_bits(self):
        """The bits now, a float32 scalar, differentiable in the thresholds."""
        expected = nested.expected_bits(self.gates(), self.candidates)
        fixed = ops.convert_to_tensor(self.frozen_bits)
        return ops.where(fixed > 0, fixed, expected)

    def bits(self):
        """The bits now, a Python int."""
        return int(ops.convert_to_numpy(self.expected_bits()))

    def margins(self):
        """How far each gate is open, see `margins_of`: NumPy (len(bits) - 1,)."""
        if self.threshold is None:
            return ops.convert_to_numpy(ops.zeros((0,)))
        margins = margins_of(self.importances(), self.threshold.value())
        return ops.convert_to_numpy(margins)

    def freeze(self, bits):
        """Ends the search with one of the candidates."""
        if bits not in self.candidates:
            raise ValueError(
                f"`bits` is one of {self.candidates}. Received: bits={bits}."
            )
        self.frozen_bits.assign(float(bits))

    def get_build_config(self):
        return None  # Built by the quantizer it belongs to.
