"""What is left to do, in order: what was interrupted, what was never tried, and the leader again with other seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from planner.sweep import pareto
from planner.sweep.ledger import Ledger, Live
from planner.sweep.queue import GridQueue, Queue
from planner.sweep.result import Expected, Objective, Trial
from planner.sweep.space import Terms


class Agenda:
    """Hands out trials that are recorded as begun."""

    def __init__(
        self, queue: Queue, ledger: Ledger, terms: Terms, *, repeats: int, objective: Objective = "loss"
    ) -> None:  # fmt: skip
        """
        Args:
            repeats: seeds more of the leader, once all else is done.
        """
        self._objective: Objective = objective
        self.queue, self._ledger, self._terms, self._repeats = queue, ledger, terms, repeats
        self._again: list[Live] = []
        self._seeds: list[Expected] | None = None

    def put_back(self, live: Live) -> None:
        """A trial that is begun, and has to run anew."""
        self._again.append(live)
        self.queue.know(live.expected.configuration)

    def prepare(self, seconds_left: float, width: int) -> None:
        """Prices what is to come, as far as it is known, and leaves out what `width` places cannot do in the time."""
        if not isinstance(self.queue, GridQueue):
            return
        self.queue.prepare()
        if seconds_left < math.inf:
            self.queue.fill(max(seconds_left, 0.0) - self._reserve(width), width)

    def waiting(self) -> tuple[Expected, ...]:
        """What is known to come, in order."""
        return (*(live.expected for live in self._again), *self.queue.waiting(), *(self._seeds or ()))

    def seconds(self, width: int) -> float | None:
        """Of all that is known to come, with the seeds; None where that cannot be said."""
        known = [one.seconds for one in self.waiting()]
        if None in known or not isinstance(self.queue, GridQueue):
            return None
        return math.fsum(one or 0.0 for one in known) / width + (self._reserve(width) if self._seeds is None else 0.0)

    def _reserve(self, width: int) -> float:
        """Kept for the repeated seeds: as long as the trials that are known, on average."""
        known = [one.seconds for one in self.waiting() if one.seconds is not None]
        return statistics.fmean(known) * math.ceil(self._repeats / width) if known else 0.0

    def next(self, seconds_left: float, *, idle: bool) -> Live | None:
        """The next trial that will be done in the time. Seeds are repeated once nothing else runs (`idle`)."""
        if self._again:
            return self._anew(self._again.pop(0))
        if (expected := self.queue.next(seconds_left)) is not None:
            return self._ledger.begin(expected)
        if self._seeds is None and idle:
            self._seeds = self._leader_again(self._ledger.finished)
        if self._seeds and (self._seeds[0].seconds or 0.0) <= seconds_left:
            return self._ledger.begin(self._seeds.pop(0), repeat=True)
        return None

    def _anew(self, live: Live) -> Live:
        """An attempt has a folder of its own: the last one's stays as it was left."""
        used = self._ledger.place_of(live).exists()
        return self._ledger.again(live, lost=False) if used else live

    def _leader_again(self, trials: Sequence[Trial]) -> list[Expected]:
        """The leader with other seeds, as far as they have not been run: only where there is something to choose."""
        leader = pareto.repeated_one(trials, self._objective)
        if leader is None or len(pareto.candidates(trials)) < 2:
            return []
        ran = {trial.seed for trial in trials if trial.configuration.digest == leader.configuration.digest}
        seeds = [self._terms.seed + number for number in range(1, self._repeats + 1)]
        template = Expected(
            configuration=leader.configuration,
            recipe=leader.recipe,
            seed=leader.seed,
            seconds=leader.seconds,
            vram_bytes=leader.vram_bytes,
            evidence="measured",
            step_seconds=leader.step_seconds,
        )
        return [replace(template, seed=s, recipe=replace(leader.recipe, seed=s)) for s in seeds if s not in ran]
