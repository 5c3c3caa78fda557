"""Penalty multiplier that brings a cost down to a budget by the end of a search."""

import math

# Share of the search after which the cost should have come down to the budget.
DESCENT = 0.8
# Deviation of ln(cost) from its target at which the penalty is applied in full.
TOLERANCE = 0.05
# Growth of ln(multiplier) over a whole search at full deviation.
GROWTH = 20.0
# Factor of the multiplier when the cost crosses its target.
DAMPING = 0.5
# A larger multiplier would let single steps overrule the loss.
MAX_MULTIPLIER = 1000.0


class PenaltyMultiplier:
    """Multiplier of a cost term, adapted so that the cost meets a budget.

    The target of ln(cost) is a straight line from its start to the budget. The penalty
    is the deviation from the target, limited to the tolerance, times the multiplier.
    The multiplier grows while the cost stays on one side of the target, and is halved
    when the cost crosses it. So the scale of the loss need not be known.

    Args:
        cost: float above 0. Cost at the start.
        budget: float above 0, in the unit of the cost.
        share: float in [0, 1). Share of the search that has passed.
        multiplier: float. Multiplier at the start.

    Attributes:
        start: float. ln(cost) at the start.
        goal: float. ln(budget).
        began: float. Share of the search at the start.
        reached: float. Share of the search at the last call of `penalty`.
        multiplier: float. Multiplier at present, at most `MAX_MULTIPLIER`.
        deviation: float in [-1, 1]. Deviation at the last call of `penalty`.
    """

    def __init__(
        self, cost: float, budget: float, share: float = 0.0, multiplier: float = 1.0
    ) -> None:
        # `Student` saves the attributes under these names.
        self.start, self.goal = math.log(cost), math.log(budget)
        self.began = self.reached = share
        self.multiplier = multiplier
        self.deviation = 0.0

    def penalty(self, share: float, cost: float) -> float:
        """Updates the multiplier and returns the penalty.

        Args:
            share: float. Share of the search that has passed; it grows with each call.
            cost: float above 0. Cost at present.

        Returns:
            float, below 0 where the cost is below its target.
        """
        passed = (share - self.began) / max(DESCENT - self.began, 1e-6)
        target = self.start + (self.goal - self.start) * min(1.0, passed)
        deviation = (math.log(cost) - target) / TOLERANCE
        deviation = max(-1.0, min(1.0, deviation))
        elapsed, self.reached = share - self.reached, share
        if deviation * self.deviation < 0:
            self.multiplier *= DAMPING
        else:
            self.multiplier *= math.exp(GROWTH * abs(deviation) * elapsed)
        self.multiplier = min(self.multiplier, MAX_MULTIPLIER)
        self.deviation = deviation
        return self.multiplier * deviation
