"""What is worth a launch: nothing that cannot fit, nothing that asks for no less than what ran out of memory."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from estimators.price import Price
from estimators.recipe import ALL_LINEAR, Recipe
from planner.sweep.appraise import Appraiser, Refusal
from planner.sweep.result import Expected, Screened, Trial
from planner.sweep.space import Configuration

STARTING_SECONDS = 20.0
"""Of a trial around its steps: imports, loading, evaluations; until a first one has shown it."""


def asks_for_no_less(one: Recipe, other: Recipe) -> bool:
    """Whether `one` needs at least the GPU memory of `other`, whatever the figures: the same work, only more of it."""
    return _kind(one) == _kind(other) and all(
        (
            one.micro_batch >= other.micro_batch,
            one.sequence_length >= other.sequence_length,
            one.adapter.rank >= other.adapter.rank,
            (one.adapter.dropout > 0) >= (other.adapter.dropout > 0),
            (one.gradient_accumulation > 1) >= (other.gradient_accumulation > 1),
            one.gradient_checkpointing <= other.gradient_checkpointing,
            one.padded >= other.padded,
            _covers(one.adapter.targets, other.adapter.targets),
        )
    )


def _kind(recipe: Recipe) -> Recipe:
    """The recipe with all that memory grows with, or has nothing to do with, taken out."""
    adapter = replace(recipe.adapter, rank=0, alpha=0, dropout=0.0, targets=())
    return replace(recipe, adapter=adapter, micro_batch=1, gradient_accumulation=1, sequence_length=1,
                   gradient_checkpointing=False, padded=False, learning_rate=0.0, seed=0)  # fmt: skip


def _covers(one: tuple[str, ...] | str, other: tuple[str, ...] | str) -> bool:
    if ALL_LINEAR in (one, other):
        return one == ALL_LINEAR
    return set(one) >= set(other)


MOST_RECALLED = 3
"""Of an earlier command's trials, those that are priced anew: a middle of three stands one that was disturbed."""


class Clock:
    """How long a trial will take, by the estimator's steps and by what the trials so far took."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ratios: list[float] = []
        self._rests: list[tuple[bool, float]] = []
        self._wholes: list[tuple[bool, float]] = []
        """Whether the trial was the first at its place, and its seconds."""

    def learn(self, trial: Trial, step_seconds: float | None) -> None:
        """From a trial that ran to its end, of which the estimator had expected such a step."""
        self._wholes.append((trial.first, trial.seconds))
        if trial.step_seconds:
            self._rests.append((trial.first, max(trial.seconds - self._steps * trial.step_seconds, 0.0)))
            self.relate(trial.step_seconds, step_seconds)

    def relate(self, measured: float | None, expected: float | None) -> None:
        """A step, and what the estimator says of it that is still asked for others."""
        if measured and expected:
            self._ratios.append(measured / expected)

    def seconds(self, step_seconds: float | None) -> float | None:
        """None: nobody knows yet."""
        if step_seconds is None:
            return _usual(self._wholes)
        ratio = statistics.median(self._ratios) if self._ratios else 1.0
        rest = _usual(self._rests)
        return (STARTING_SECONDS if rest is None else rest) + self._steps * step_seconds * ratio


def _usual(taken: Sequence[tuple[bool, float]]) -> float | None:
    """The middle of what trials took for which a process waited; of the others, that imported first, where there are
    none. None: there are no trials."""
    later = [seconds for first, seconds in taken if not first]
    known = later or [seconds for _, seconds in taken]
    return statistics.median(known) if known else None


class Screen:
    """Says of a configuration how it is to be run and what is expected of it, or why it is not to be launched."""

    def __init__(self, appraiser: Appraiser, clock: Clock) -> None:
        self._appraise, self.clock = appraiser, clock
        self._too_much: list[Recipe] = []
        self._recalled: list[Trial] = []
        self.prices: dict[str, Price] = {}
        """By the key of what is expected."""

    def ran_out(self, recipe: Recipe) -> None:
        """Nothing that asks for as much is launched again."""
        self._too_much.append(recipe)

    def is_too_much(self, recipe: Recipe) -> bool:
        return any(asks_for_no_less(recipe, known) for known in self._too_much)

    def recall(self, trials: Sequence[Trial]) -> None:
        """What an earlier command's trials took. The estimator may have learned from them since, and then what it said
        of them before they ran would correct it twice: a few are priced again, once anything else is."""
        self._recalled = [trial for trial in trials if trial.ok and trial.step_seconds and not trial.repeat]
        self._recalled = self._recalled[-MOST_RECALLED:]

    def _relate(self) -> None:
        recalled, self._recalled = self._recalled, []
        for trial in recalled:
            self.clock.relate(trial.step_seconds, self._said(trial))

    def _said(self, trial: Trial) -> float | None:
        """The estimator's step, as it is now, of the very recipe that was run."""
        same = replace(trial.recipe, seed=0)
        found = self._appraise(trial.configuration, lambda recipe: replace(recipe, seed=0) != same)
        known = not isinstance(found, Refusal) and found.price
        return known.step_seconds.value if known else None

    def expect(self, configuration: Configuration, seed: int) -> Expected | Screened:
        self._relate()
        found = self._appraise(configuration, self.is_too_much)
        if isinstance(found, Refusal):
            return Screened(configuration=configuration, kind=found.kind, reason=found.reason)
        price = found.price
        step = price.step_seconds.value if price else None
        expected = Expected(
            configuration=configuration,
            recipe=replace(found.recipe, seed=seed),
            seed=seed,
            seconds=self.clock.seconds(step),
            vram_bytes=round(price.tightest.worst_phase.value) if price else None,
            evidence=price.evidence if price else "none",
            step_seconds=step,
        )
        if price is not None:
            self.prices[expected.key] = price
        return expected

    def retimed(self, expected: Expected) -> Expected:
        """The same, timed as the trials so far teach."""
        return replace(expected, seconds=self.clock.seconds(expected.step_seconds))


def by_time(queue: Iterable[Expected]) -> list[Expected]:
    """Shortest first: most is known soonest. Of equally long ones the smallest, which others may turn out to exceed."""
    return sorted(
        queue, key=lambda one: (round(one.seconds or 0.0, 1), one.recipe.adapter.rank, one.recipe.micro_batch)
    )
