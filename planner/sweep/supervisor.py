"""The sweep itself: a loop that starts a trial wherever a place is free, and records how each one ended."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from estimators.errors import BadInput, NoUsableGpu
from estimators.outcome import End, Outcome, Result
from planner.sweep import pareto
from planner.sweep.agenda import Agenda
from planner.sweep.allowance import Allowance, too_short
from planner.sweep.ledger import Ledger, Live
from planner.sweep.outcome import bad_input, concerns_all
from planner.sweep.queue import Queue
from planner.sweep.result import Finished, Listener, Moved, Objective, Planned, Retried, Started, Sweep, Trial
from planner.sweep.screen import Screen
from planner.sweep.space import Terms
from runners.executors import Ended, Executor, Progress
from runners.interrupts import remembered, undisturbed

WAIT_SECONDS = 0.5
MOST_LOST = 1
"""A trial that ended without a word of the recipe is run once more."""
LOST = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.CANCELLED)
LONGEST_ABSENCE_SECONDS = 300.0
"""How long a sweep waits for a place, when there is none at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a sweep is run, beside what it tries."""

    objective: Objective = "loss"
    objectives: tuple[str, ...] = ("loss", "vram_bytes", "tokens_per_second")
    budget_seconds: float | None = None
    repeats: int = 2
    """Seeds more of the leader."""
    vram_budget_bytes: int | None = None
    absence_seconds: float = LONGEST_ABSENCE_SECONDS
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """See `Sweep`."""


class Supervisor:
    """Runs a sweep to its end; whatever ends it before, the same again goes on."""

    def __init__(
        self, settings: Settings, terms: Terms, ledger: Ledger, screen: Screen, queue: Queue, executor: Executor,
        listen: Listener = lambda event: None, lesson: Callable[[Trial], None] = lambda trial: None,
    ) -> None:  # fmt: skip
        """
        Args:
            lesson: called with each trial that is told, while others run.
        """
        self._settings, self._terms, self._ledger, self._screen = settings, terms, ledger, screen
        self._executor, self._listen, self._lesson = executor, listen, lesson
        noisy = "loss" in settings.objectives or settings.objective == "speed"
        repeats = settings.repeats if noisy else 0
        self._agenda = Agenda(queue, ledger, terms, repeats=repeats, objective=settings.objective)
        self._live: dict[str, Live] = {}
        """By place."""
        self._used: set[str] = set()
        """Places that were started at."""
        self._untold: list[Trial] = []
        self._lessons: list[Trial] = []
        self._resumed = 0
        spent = math.fsum(trial.seconds for trial in ledger.finished) / self._width
        self._time = Allowance(settings.budget_seconds, spent)
        self._expected_seconds: float | None = None
        self._late = False
        self._absent_since: float | None = None

    @property
    def _width(self) -> int:
        return max(len(self._executor.places), 1)

    def run(self) -> Sweep:
        """
        Raises:
            BadInput: the budget is too short for a single trial, or the input is such that none can end well.
            NoUsableGpu: there was no place for too long.
            PlanError: the study cannot be written any more; what is in it and in the folders is as it was.
        """
        interrupted = False
        try:
            with remembered() as interrupted_before:
                self._recover()
                self._announce()
                interrupted_before()
                while self._step():
                    interrupted_before()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with undisturbed():
                self._executor.close()  # what ends now and is not told stays in its folder
        screened, budget = self._agenda.queue.screened, self._settings.budget_seconds
        out_of_time = self._late or any(one.kind == "budget" for one in screened)
        if budget is not None and out_of_time and not interrupted and not self._ledger.finished:
            raise too_short(budget, screened)
        return self._sum_up(interrupted)

    def _recover(self) -> None:
        """What an earlier command left: jobs that had ended are told, others run again, where they are still asked
        for."""
        self._screen.recall(self._ledger.finished)
        for trial in tuple(self._ledger.finished):
            self._absorb(trial, None)
            self._lessons.append(trial)  # it may have been told, and have taught nobody yet
        for live in self._ledger.interrupted:
            if (result := self._ledger.left_by(live)) is None:
                self._agenda.put_back(live)
            else:
                self._end(live, result)
        for live in self._ledger.unwanted:
            result = self._ledger.left_by(live)
            if result is not None and (result.end.outcome not in LOST or live.hopeless):
                self._end(live, result)
        self._tell()
        self._resumed = len(self._ledger.finished)

    def _announce(self) -> None:
        self._agenda.prepare(self._time.left, self._width)
        self._expected_seconds = self._agenda.seconds(self._width)
        self._listen(
            Planned(
                terms=self._terms,
                places=tuple(self._executor.places),
                queue=self._agenda.waiting(),
                screened=tuple(self._agenda.queue.screened),
                finished=tuple(self._ledger.finished),
                expected_seconds=self._expected_seconds,
                budget_seconds=self._settings.budget_seconds,
                notes=self._settings.notes,
            )
        )

    def _step(self) -> bool:
        """Starts what can start, tells what has ended, and waits for more; False: there is nothing left to do."""
        offered = self._fill()
        self._tell()
        if self._live:
            self._absent_since = None
        if not self._live and not self._has_to_wait(offered):
            return False
        events = self._executor.wait(0.0 if self._lessons else WAIT_SECONDS)
        now = time.monotonic()
        for event in events:
            if isinstance(event, Ended):
                self._ended(event, now)
            else:
                self._moved(event)
        if not events and self._lessons:
            self._lesson(self._lessons.pop(0))
        if self._time.left < 0 and not self._late:
            self._late = True
            for place in self._live:
                self._executor.stop(place)
        return True

    def _fill(self) -> bool:
        """Whether there was a place at all."""
        places = tuple(self._executor.places)
        for place in places:
            if self._late or place in self._live:
                continue
            live = self._agenda.next(self._time.left, idle=not self._live)
            if live is None:
                break
            self._start(place, live)
        return bool(places)

    def _start(self, place: str, live: Live) -> None:
        folder = self._ledger.make(live)
        live.place, live.began = place, time.monotonic()
        try:
            self._executor.start(place, folder)
        except ValueError:  # it has left meanwhile
            self._agenda.put_back(live)
            return
        self._live[place] = live
        live.first = place not in self._used
        self._used.add(place)
        self._time.taken(place)
        self._listen(Started(number=live.number, place=place, expected=live.expected, attempt=live.attempt))

    def _moved(self, progress: Progress) -> None:
        live = self._live.get(progress.place)
        if live is None or self._ledger.place_of(live) != progress.folder:
            return
        self._listen(Moved(number=live.number, steps=self._terms.steps, progress=progress))
        if not live.hopeless and (why := live.hope.lost(progress.step, progress.loss)):
            self._ledger.give_up(live, why)
            self._executor.stop(progress.place)

    def _ended(self, event: Ended, now: float) -> None:
        live = self._live.pop(event.place, None)
        if live is None:
            return
        over = live.began + event.result.seconds if event.result is not None and event.result.seconds else now
        self._time.freed(event.place, min(over, now))
        if event.result is not None:
            self._end(live, event.result)
            return
        why = event.lost or "the place was lost"
        if not event.begun:  # the place is to blame: it runs again, as often as it takes
            self._retry(live, why, lost=False)
        else:  # a worker or a machine that goes away may do so because of the job
            self._end(live, Result(end=End(outcome=Outcome.FAILED, evidence=why), seconds=now - live.began))

    def _end(self, live: Live, result: Result) -> None:
        """Takes a result in at once; it is told to the study when the place works again."""
        outcome = result.end.outcome
        if self._late and outcome is Outcome.CANCELLED and not live.hopeless:
            self._agenda.put_back(live)
            return
        if (why := concerns_all(result.end)) and not any(trial.ok for trial in self._ledger.finished):
            self._tell()
            raise BadInput(why)  # the trial stays begun: the same command runs it again
        if outcome in LOST and not live.hopeless and live.lost < MOST_LOST and not bad_input(result.end):
            self._retry(live, result.end.evidence, lost=True)
            return
        trial = self._ledger.ended(live, result)
        self._absorb(trial, live.expected.step_seconds)
        self._untold.append(trial)

    def _retry(self, live: Live, why: str, *, lost: bool) -> None:
        self._listen(Retried(number=live.number, place=live.place, reason=why))
        self._agenda.put_back(self._ledger.again(live, lost=lost))

    def _absorb(self, trial: Trial, step_seconds: float | None) -> None:
        """What a trial, of which such a step was expected, teaches the rest of the sweep, at once and in memory."""
        if trial.outcome is Outcome.OUT_OF_MEMORY:
            self._screen.ran_out(trial.recipe)
        elif trial.ok:
            self._screen.clock.learn(trial, step_seconds)
        self._agenda.queue.learn(trial)

    def _tell(self) -> None:
        while self._untold:
            trial = self._untold[0]
            self._ledger.tell(trial)
            self._lessons.append(self._untold.pop(0))
            trials = self._ledger.finished
            self._listen(
                Finished(
                    trial=trial,
                    best=pareto.leader(trials),
                    finished=len(trials),
                    waiting=len(self._agenda.waiting()),
                    out_of_memory=sum(one.out_of_memory for one in trials),
                    seconds_left=self._agenda.seconds(self._width),
                )
            )

    def _has_to_wait(self, offered: bool) -> bool:
        """Nothing runs: whether a place may come back for what is left (none was `offered`; one that came meanwhile is
        filled at the next step), or a lesson is still to be learned.

        Raises:
            NoUsableGpu: it has waited for too long.
        """
        if offered or self._late:
            self._absent_since = None
            return bool(self._lessons)
        self._absent_since = self._absent_since or time.monotonic()
        if time.monotonic() - self._absent_since > self._settings.absence_seconds:
            why = "; ".join(self._executor.absent.values()) or "nothing is left to run on"
            raise NoUsableGpu(f"no place can run a trial any more ({why}); the same command goes on later")
        return True

    def _sum_up(self, interrupted: bool) -> Sweep:
        trials = sorted(self._ledger.finished, key=lambda trial: trial.number)
        settings, noise = self._settings, pareto.noise_of(trials)
        return Sweep(
            terms=self._terms,
            objective=settings.objective,
            objectives=settings.objectives,
            places=tuple(self._executor.places),
            vram_budget_bytes=settings.vram_budget_bytes,
            trials=tuple(trials),
            screened=tuple(self._agenda.queue.screened),
            front=pareto.front(trials, settings.objectives),
            recommendation=pareto.recommend(trials, settings.objective, settings.objectives, noise),
            noise=noise,
            seconds=self._time.seconds,
            expected_seconds=self._expected_seconds,
            own_seconds=self._time.own_seconds,
            folder=str(self._ledger.folder),
            storage=self._ledger.study.address.shown,
            study=self._ledger.study.name,
            resumed=self._resumed,
            unfinished=len(self._live) + len(self._agenda.waiting()),
            interrupted=interrupted,
            notes=settings.notes,
            options=settings.options,
        )
