"""Whether a trial is worth its time any longer: a loss that is no number, or far above where it began, stays so."""

import math
from dataclasses import dataclass

FACTOR, IN_A_ROW, GRACE_STEPS = 2.0, 3, 5
"""A loss so many times the first one, in so many steps one after the other, once so many have gone by."""


@dataclass(slots=True)
class Hope:
    """The losses of a trial as they are heard of."""

    first: float | None = None
    step: int = 0
    high: int = 0

    def lost(self, step: int, loss: float | None) -> str:
        """Why the trial is to be stopped; empty: it is not."""
        if loss is None or step <= self.step:
            return ""
        self.step = step
        if not math.isfinite(loss):
            return f"the loss is {loss} at step {step}"
        self.first = loss if self.first is None else self.first
        self.high = self.high + 1 if step > GRACE_STEPS and loss > FACTOR * self.first else 0
        if self.high < IN_A_ROW:
            return ""
        return f"the loss rose from {self.first:.3g} to {loss:.3g} by step {step}"
