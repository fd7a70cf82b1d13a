"""What is launched next: every configuration of a small space, shortest first, or what the sampler of a large one
proposes; never one twice, and never one that the screen turns away."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from estimators.outcome import Outcome
from planner.sweep.outcome import values_of
from planner.sweep.result import Expected, Screened, Trial
from planner.sweep.screen import Screen, by_time
from planner.sweep.space import Configuration, Space
from planner.sweep.study import Sampler

LARGEST_GRID = 64
MOST_PROPOSALS = 64
"""In a row that are known or turned away, before a configuration is taken that nobody proposed."""
Report = Callable[[Screened], None]


class Queue(Protocol):
    """What is left to launch."""

    screened: list[Screened]

    def waiting(self) -> Sequence[Expected]:
        """What is known to come, in order; of a sampler nothing is."""

    def next(self, seconds: float) -> Expected | None:
        """The next one that will be done in so many seconds; None: there is none."""

    def know(self, configuration: Configuration) -> None:
        """It is begun already, and not to be handed out again."""

    def learn(self, trial: Trial) -> None:
        """What became of one; a smaller way of running it may come again."""

    def refresh(self) -> None:
        """The estimator has learned: what comes next is priced anew."""


class GridQueue:
    """Every configuration of a space, once."""

    def __init__(self, space: Space, screen: Screen, seed: int, report: Report) -> None:
        self._screen, self._seed, self._report = screen, seed, report
        self.screened: list[Screened] = []
        self._waiting: list[Expected] = []
        self._space = space
        self._known: set[str] = set()
        self._ran_out: set[str] = set()
        self._prepared = self._begun = False

    def prepare(self) -> None:
        """Prices what is not done yet."""
        self._prepared = True
        for configuration in self._space.grid():
            if configuration.digest not in self._known:
                self._add(configuration)
        self._waiting = by_time(self._waiting)

    def know(self, configuration: Configuration) -> None:
        self._known.add(configuration.digest)

    def _add(self, configuration: Configuration, *, first: bool = False) -> None:
        found = self._screen.expect(configuration, self._seed)
        if isinstance(found, Expected):
            self._waiting.insert(0 if first else len(self._waiting), found)
        else:
            self._turn_away(found)

    def _turn_away(self, screened: Screened) -> None:
        """What is known before the start is announced with it; what ran out of memory was launched: see its trial."""
        if screened.kind == "dominated" and screened.configuration.digest in self._ran_out:
            return
        self.screened.append(screened)
        if self._begun:
            self._report(screened)

    def waiting(self) -> Sequence[Expected]:
        return tuple(self._waiting)

    def next(self, seconds: float) -> Expected | None:
        self._begun = True
        while self._waiting:
            found = self._screen.retimed(self._waiting.pop(0))
            if self._screen.is_too_much(found.recipe):
                self._add(found.configuration, first=True)  # smaller, or not at all
            elif (found.seconds or 0.0) > seconds:
                self._turn_away(out_of_time(found))
            else:
                return found
        return None

    def learn(self, trial: Trial) -> None:
        if not _may_come_smaller(trial):
            self.know(trial.configuration)
            return
        self._ran_out.add(trial.configuration.digest)
        if self._prepared and not trial.repeat:
            smaller = self._screen.expect(trial.configuration, self._seed)
            if isinstance(smaller, Expected):
                self._waiting = by_time([*self._waiting, smaller])

    def refresh(self) -> None:
        if self._waiting:
            before = self._waiting.pop(0)
            found = self._screen.expect(before.configuration, self._seed)
            if isinstance(found, Screened):
                self._turn_away(found)
                return
            if found.key == before.key:  # its time is corrected by the sweep's own trials already
                found = self._screen.retimed(replace(found, step_seconds=before.step_seconds))
            self._waiting.insert(0, found)

    def fill(self, seconds: float, places: int) -> None:
        """Leaves out, before anything starts, what so many places cannot do in the time."""
        total = 0.0
        kept: list[Expected] = []
        for expected in self._waiting:
            total += (expected.seconds or 0.0) / places
            if total > seconds and kept:
                self._turn_away(out_of_time(expected))
            else:
                kept.append(expected)
        self._waiting = kept


class SampledQueue:
    """Up to so many configurations of a space, as the sampler proposes them."""

    def __init__(
        self, space: Space, screen: Screen, seed: int, report: Report, sampler: Sampler, objectives: Sequence[str],
        most: int, budget_bytes: int | None,
    ) -> None:  # fmt: skip
        self._space, self._screen, self._seed, self._report = space, screen, seed, report
        self._sampler, self._objectives, self._left, self._budget = sampler, tuple(objectives), most, budget_bytes
        self.screened: list[Screened] = []
        self._again: list[Expected] = []
        self._known: set[str] = set()
        self._done: set[str] = set()
        """Those that need no smaller way any more."""

    def know(self, configuration: Configuration) -> None:
        self._left -= configuration.digest not in self._known  # begun by an earlier command, and one of so many
        self._known.add(configuration.digest)
        self._done.add(configuration.digest)

    def waiting(self) -> Sequence[Expected]:
        return tuple(one for one in self._again if one.configuration.digest not in self._done)

    def next(self, seconds: float) -> Expected | None:
        self._again = list(self.waiting())
        found = self._again.pop(0) if self._again else self._proposed()
        if found is None or self._left <= 0:
            return None
        found = self._screen.retimed(found)
        if (found.seconds or 0.0) > seconds:
            self._left = 0
            self.screened.append(out_of_time(found))
            self._report(self.screened[-1])
            return None
        self._left -= 1
        return found

    def _proposed(self) -> Expected | None:
        for _ in range(MOST_PROPOSALS if self._left > 0 else 0):
            if (found := self._tried(self._sampler.propose())) is not None:
                return found
        if self._space.cells is None:
            return None
        return next((found for each in self._space.grid() if (found := self._tried(each)) is not None), None)

    def _tried(self, configuration: Configuration) -> Expected | None:
        if configuration.digest in self._known:
            return None
        self._known.add(configuration.digest)
        found = self._screen.expect(configuration, self._seed)
        if isinstance(found, Expected):
            return found
        self.screened.append(found)
        self._report(found)
        self._sampler.refuse(configuration)
        return None

    def learn(self, trial: Trial) -> None:
        """Also of trials that an earlier command finished."""
        if trial.repeat:
            return
        self._left -= trial.configuration.digest not in self._known
        self._known.add(trial.configuration.digest)
        values, constraints = values_of(trial, self._objectives, self._budget)
        if values is not None and self._space.holds(trial.configuration):  # of another one it would learn amiss
            self._sampler.learn(trial.configuration, values, constraints)
        if not _may_come_smaller(trial):
            self._done.add(trial.configuration.digest)
            return
        smaller = self._screen.expect(trial.configuration, self._seed)
        if isinstance(smaller, Expected):
            self._again.append(smaller)

    def refresh(self) -> None:
        """What is proposed next is priced with what is known then."""


def _may_come_smaller(trial: Trial) -> bool:
    """A machine that ran out of memory, or a container, says nothing of how the GPU's is to be saved."""
    return trial.outcome is Outcome.OUT_OF_MEMORY and trial.configuration.is_free


def out_of_time(expected: Expected) -> Screened:
    reason = f"about {expected.seconds or 0:.0f} s, and the time that is left does not hold them"
    return Screened(configuration=expected.configuration, kind="budget", reason=reason)
