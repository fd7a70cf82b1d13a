"""The time that a sweep may take, what of it is left, and what of it the supervisor itself used."""

import math
import time
from collections.abc import Sequence

from estimators.errors import BadInput
from planner.sweep.result import Screened


class Allowance:
    """A budget over all commands of a sweep: what earlier ones spent on trials that they finished counts."""

    def __init__(self, budget_seconds: float | None, spent_seconds: float) -> None:
        self.budget_seconds = budget_seconds
        self._spent, self._began = spent_seconds, time.monotonic()
        self._free_since: dict[str, float] = {}
        self.own_seconds = 0.0
        """While a place was free and a trial waited for it."""

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Below zero: the time is up."""
        return math.inf if self.budget_seconds is None else self.budget_seconds - self._spent - self.seconds

    def freed(self, place: str, at: float) -> None:
        self._free_since[place] = at

    def taken(self, place: str) -> None:
        if place in self._free_since:
            self.own_seconds += time.monotonic() - self._free_since.pop(place)


def too_short(budget_seconds: float, screened: Sequence[Screened]) -> BadInput:
    """What is said of a budget in which not one trial came to an end."""
    late = [one for one in screened if one.kind == "budget"]  # the quickest is turned away last
    said = f"{late[-1].configuration.name}, takes {late[-1].reason.partition(',')[0]}" if late else "none ended in it"
    return BadInput(f"--budget of {budget_seconds:g} s is too short for a trial: {said}")
