"""A penalty that brings a cost down to a budget by the end of a search."""

import math

# Share of the search after which the cost should have come down to the budget.
DESCENT = 0.8
# Deviation of ln(cost) from its course at which the penalty is applied in full.
TOLERANCE = 0.05
# Growth of ln(multiplier) over a whole search that never reaches its course, and what
# remains of the multiplier when the cost crosses it.
GROWTH = 20.0
DAMPING = 0.5
# No deviation is worth more: beyond, single steps would throw everything about.
MAX_MULTIPLIER = 1000.0


class Steering:
    """Finds the weight of a cost term by itself, whatever the scale of the loss.

    ln(cost) is to fall along a straight line from where it starts to the budget. The
    penalty is the deviation from the line, limited to the tolerance, times a
    multiplier that grows while the cost stays on one side of the line and is halved
    when it crosses it.

    Args:
        cost, budget: positive numbers in one unit.
        share: of the search that has passed, in [0, 1).
        multiplier: to start with.
    """

    def __init__(self, cost, budget, share=0.0, multiplier=1.0):
        self.start, self.goal = math.log(cost), math.log(budget)
        self.began = self.reached = share
        self.multiplier = multiplier
        self.deviation = 0.0

    def penalty(self, share, cost):
        """The penalty to apply now; below zero where the cost is below its course.

        Args:
            share: of the search that has passed; it grows from call to call.
            cost: what it is now.
        """
        passed = (share - self.began) / max(DESCENT - self.began, 1e-6)
        course = self.start + (self.goal - self.start) * min(1.0, passed)
        deviation = (math.log(cost) - course) / TOLERANCE
        deviation = max(-1.0, min(1.0, deviation))
        elapsed, self.reached = share - self.reached, share
        if deviation * self.deviation < 0:
            self.multiplier *= DAMPING
        else:
            self.multiplier *= math.exp(GROWTH * abs(deviation) * elapsed)
        self.multiplier = min(self.multiplier, MAX_MULTIPLIER)
        self.deviation = deviation
        return self.multiplier * deviation
