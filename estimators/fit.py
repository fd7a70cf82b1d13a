"""From measured runs of a machine to the calibration of its next estimate.

Each run says by what factor the estimate of its step missed. What the runs share is put down to the machine, cause by
cause as far as they tell the causes apart (estimators/knobs.py), and only where runs that were left out of the fit
would have been estimated better for it. What remains is the error bar: a wide one is believed until runs of several
kinds agree, and a run measured again says nothing about other kinds.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from estimators.calibration import DEFAULT, Calibration, ErrorBars, Rates
from estimators.hardware import Device
from estimators.knobs import KNOBS, LEAST, MOST, Knob, bounded, figure_of, traced_figure_of, turned
from estimators.regression import HEAVIEST, dot, shrunk, student

Bars = tuple[float, float]
NOISE = 0.13
"""What one kind of job's step misses by, beside what its machine does: half of the H200's runs are nearer than 7 %, the
others spread further."""
COMMON_SPREAD = 0.10
"""Between machines with a card that was measured; each knob adds its own."""
UNSEEN = 2.0
"""On a card that nobody measured machines differ so much more."""
TELLING_SHARE, TELLING_KINDS = 0.15, 3
"""A cause gets a factor of its own once so many kinds of jobs spend at least this share of their step on it."""
OWN_ERROR = 2.0
"""One or two runs speak for their machine only by what goes beyond so many times NOISE: the rest is the job's own."""
STEP, PASSES = 0.2, 2
"""Of the slopes by which the knobs are told apart, and how often they are taken: a job may be bound by its GPU at one
setting and by its host at another."""
CERTAINTY, LEAST_DOUBT = 0.975, 0.05
"""How sure it must be, one-sided, that a fit is better than none; and the least doubt about one run's gain."""
PRIOR_RUNS = 4
"""So many kinds of runs must agree before they weigh as much as the error bar that was there before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """What is fitted."""

    noise: float
    """As NOISE."""
    bar: str = ""
    """Before the names of its error bars."""
    words: str = ""
    """Before what changed."""
    figure: Callable[[Knob, Rates, Device], float]


FORMULA = Estimator(noise=NOISE, figure=figure_of)
DRY_RUNS = Estimator(noise=0.09, bar="traced_", words="dry run's ", figure=traced_figure_of)
"""Half of the H200's runs that its rates were not fitted to are nearer than 8 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured step, and how it is estimated."""

    kind: str
    """Samples of one kind run the same kernels at about the same size: one of them tells what all do."""
    measured_seconds: float
    estimate: Callable[[Rates], float]
    """Seconds of the step at given rates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What calibration altered, for a person."""

    what: str
    before: str
    after: str
    runs: int

    def __str__(self) -> str:
        return f"{self.what} {self.before} -> {self.after} from {self.runs} run{'' if self.runs == 1 else 's'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the measured runs of a machine teach."""

    calibration: Calibration
    runs: int
    """That were used."""
    kinds: int
    factors: dict[str, float] = field(default_factory=dict, hash=False)
    """Seconds by knob, against the calibration before; none where the runs tell nothing."""
    traced_factors: dict[str, float] = field(default_factory=dict, hash=False)
    """The same of what a dry run's steps are made of."""
    outside_bytes: int = 0
    """To be added to what a process takes beside torch's allocator."""
    residuals: tuple[float, ...] = ()
    """Logarithms of measured over estimated, each kind's by a fit without it."""
    changes: tuple[Change, ...] = ()
    left_out: tuple[str, ...] = ()
    """Runs that were not used, and why."""


@dataclass(frozen=True, slots=True)
class _Slopes:
    """How one kind's estimate answers to the knobs: the common one first, then each of KNOBS."""

    truth: float
    """Logarithm of measured over estimated, at factors of 1."""
    row: tuple[float, ...]


def fit_steps(samples: Sequence[Sample], device: Device, before: Calibration = DEFAULT, of: Estimator = FORMULA) -> Fit:
    """The calibration of a machine with that kind of GPU after these runs; without any, the one before."""
    believed, left_out = _believed(samples, before.rates)
    kinds = _one_of_each(believed, before.rates)
    if not kinds:
        return Fit(calibration=before, runs=0, kinds=0, left_out=left_out)
    seen = device.name in before.seen_devices
    logarithms, residuals = _settled(kinds, device, before.rates, of.noise, 1.0 if seen else UNSEEN)
    factors = {knob.name: math.exp(log) for knob, log in zip(KNOBS, logarithms, strict=True) if abs(log) > 1e-4}
    rates = turned(before.rates, device, factors)
    name = f"{'' if seen else 'unseen_'}{of.bar}step_seconds"
    old = getattr(before.error_bars, name)
    new = bars_after(old, residuals)
    bars: ErrorBars = replace(before.error_bars, **{name: new})
    turns = [
        Change(what=of.words + knob.name, before=_figure(of.figure(knob, before.rates, device)),
               after=_figure(of.figure(knob, rates, device)), runs=len(believed))
        for knob in KNOBS if knob.name in factors
    ]  # fmt: skip
    bar = Change(what=f"{of.words}step bar", before=_bar(old), after=_bar(new), runs=len(believed))
    return Fit(
        calibration=replace(before, rates=rates, error_bars=bars),
        runs=len(believed),
        kinds=len(kinds),
        factors=factors,
        residuals=tuple(residuals),
        changes=(*turns, bar) if bar.before != bar.after else tuple(turns),
        left_out=left_out,
    )


def bars_after(before: Bars, residuals: Sequence[float]) -> Bars:
    """The factors that hold 95 of 100 truths, after runs whose logarithms missed by `residuals`.

    Those before count as PRIOR_RUNS runs of their own spread. What all residuals share is no spread: until it is
    learned, the next run may be off by as much again.
    """
    if not residuals:
        return before
    count = len(residuals)
    mean = statistics.fmean(residuals)
    return (
        math.exp(-_reach(-math.log(before[0]), residuals, -mean, count)),
        math.exp(_reach(math.log(before[1]), residuals, mean, count)),
    )


def _reach(before: float, residuals: Sequence[float], shared: float, count: int) -> float:
    """How far the interval goes to one side, as a logarithm."""
    spread = before / student(0.975, PRIOR_RUNS)
    squares = PRIOR_RUNS * spread**2 + sum(residual**2 for residual in residuals)
    freedom = min(PRIOR_RUNS + count, HEAVIEST)
    more = max(0.0, shared - spread) / count
    return student(0.975, freedom) * math.sqrt(squares / (PRIOR_RUNS + count)) + more


def _believed(samples: Sequence[Sample], rates: Rates) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples within what a machine may differ by, and a line for each of the others."""
    kept, out = [], []
    for sample in samples:
        ratio = sample.measured_seconds / sample.estimate(rates)
        if LEAST <= ratio <= MOST:
            kept.append(sample)
        else:
            out.append(f"{sample.kind}: took {ratio:.2g} times the estimate, which no undisturbed run does")
    return kept, tuple(out)


def _one_of_each(samples: Sequence[Sample], rates: Rates) -> list[Sample]:
    """Of each kind the sample in the middle: it was measured again, not something else."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind, []).append(sample)
    ordered = [sorted(group, key=lambda one: one.measured_seconds / one.estimate(rates)) for group in kinds.values()]
    return [group[(len(group) - 1) // 2] for group in ordered]


def _settled(
    kinds: list[Sample], device: Device, rates: Rates, noise: float, wider: float
) -> tuple[list[float], list[float]]:
    """The logarithm of each knob's factor, and what is left of each kind's error where the kind was not used."""
    nothing = [0.0] * len(KNOBS)
    plain = [math.log(sample.measured_seconds / sample.estimate(rates)) for sample in kinds]
    if len(kinds) < TELLING_KINDS:
        shift = _shift(plain, noise, wider)
        return [shift if knob.common else 0.0 for knob in KNOBS], plain
    logs = nothing
    for _ in range(PASSES):
        slopes = [_slopes(sample, device, rates, logs) for sample in kinds]
        logs = _knobs(slopes, noise, wider)
    left = [s.truth - _answer(s, _knobs([o for o in slopes if o is not s], noise, wider)) for s in slopes]
    return (logs, left) if _is_better(plain, left) else (nothing, plain)


def _shift(errors: Sequence[float], own: float, wider: float) -> float:
    """What one or two runs say of the whole machine: a part of what goes beyond a run's own error."""
    mean, noise = statistics.fmean(errors), own / math.sqrt(len(errors))
    beyond = math.copysign(max(0.0, abs(mean) - OWN_ERROR * noise), mean)
    spread = COMMON_SPREAD * wider
    return bounded(beyond * spread**2 / (spread**2 + noise**2))


def _slopes(sample: Sample, device: Device, rates: Rates, logs: Sequence[float]) -> _Slopes:
    """The estimate's answer to each knob about the setting `logs`, as if it were straight from there to 1."""

    def at(extra: Sequence[float]) -> float:
        factors = {knob.name: math.exp(log + more) for knob, log, more in zip(KNOBS, logs, extra, strict=True)}
        return math.log(sample.estimate(turned(rates, device, factors)))

    here = at([0.0] * len(KNOBS))
    each = [(at([STEP * (one is knob) for one in KNOBS]) - here) / STEP for knob in KNOBS]
    common = sum(slope for knob, slope in zip(KNOBS, each, strict=True) if knob.common)
    return _Slopes(math.log(sample.measured_seconds) - here + dot(each, logs), (common, *each))


def _knobs(slopes: Sequence[_Slopes], noise: float, wider: float) -> list[float]:
    """The likeliest setting: what all compute shares, and what each cause does beside it once enough kinds tell."""
    telling = [sum(abs(s.row[at]) >= TELLING_SHARE for s in slopes) >= TELLING_KINDS for at in range(1, len(KNOBS) + 1)]
    own = [knob.spread * wider * enough for knob, enough in zip(KNOBS, telling, strict=True)]
    found = shrunk([s.row for s in slopes], [s.truth for s in slopes], [COMMON_SPREAD * wider, *own], noise)
    shared = [found[0] if knob.common else 0.0 for knob in KNOBS]
    return [bounded(one + all_of) for one, all_of in zip(found[1:], shared, strict=True)]


def _answer(slopes: _Slopes, logs: Sequence[float]) -> float:
    return dot(slopes.row[1:], logs)


def _is_better(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the runs were estimated better by a fit that had not seen them, beyond chance."""
    gains = [abs(old) - abs(new) for old, new in zip(before, after, strict=True)]
    doubt = math.sqrt((statistics.variance(gains) + LEAST_DOUBT**2) / len(gains))
    return statistics.fmean(gains) > student(CERTAINTY, len(gains) - 1) * doubt


def _figure(value: float) -> str:
    return f"{value:.3g}"


def _bar(bars: Bars) -> str:
    return f"−{100 * (1 - bars[0]):.0f} % +{100 * (bars[1] - 1):.0f} %"
