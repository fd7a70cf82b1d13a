"""What the store remembers of one run: the machine, the recipe, what was expected of it, and what it took."""

from dataclasses import dataclass, field

from estimators.fingerprint import Machine
from estimators.measurement import RankPeak
from estimators.outcome import Outcome, RankReport, Result
from estimators.price import Interval, Price
from estimators.recipe import Recipe
from estimators.work import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a price said before the run: figures with their intervals, and where they came from."""

    evidence: str
    peak_allocated: Interval
    peak_reserved: Interval
    process: Interval
    host: Interval
    step_seconds: Interval
    tokens_per_second: Interval
    terms: dict[str, int] = field(hash=False)
    phases: dict[str, int] = field(hash=False)
    seconds: dict[str, float] = field(hash=False)
    work: dict[str, Load] = field(default_factory=dict, hash=False)
    """What a dry run counted of the step, so that its time can be estimated again; empty where none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How a run ended, and what it took as far as it came."""

    outcome: Outcome
    ranks: tuple[RankPeak, ...] = ()
    step_seconds: float | None = None
    """The median of the steps after warming up, synchronised, of the slowest rank."""
    step_spread_seconds: float | None = None
    """Between their quartiles."""
    tokens_per_second: float | None = None
    """Of all ranks, padding included."""
    real_tokens_per_second: float | None = None
    flops_utilisation: float | None = None
    energy_joules: float | None = None
    """Per step."""
    allocator_retries: int = 0
    phases: dict[str, int] = field(default_factory=dict, hash=False)
    """What torch reserved at most in each phase, of the rank that reserved most."""
    widths: tuple[int, ...] = ()
    """Tokens of a row, padding included, of the narrowest micro-batch and of the widest; empty: nobody counted."""
    marks: tuple[str, ...] = ()
    """Why nothing is to be learned from the sample: a co-tenant, a throttled clock, memory that was not free."""
    evidence: str = ""
    """Of a bad end: the line that shows it."""

    @property
    def teaches(self) -> bool:
        """Whether the figures are those of a whole, undisturbed run."""
        return self.outcome is Outcome.OK and not self.marks

    @property
    def varies(self) -> bool:
        """Whether micro-batches were of several widths, for each of which torch's allocator may keep blocks."""
        return len(set(self.widths)) > 1

    @property
    def worst(self) -> RankPeak | None:
        return max(self.ranks, key=lambda rank: rank.peak_allocated_bytes, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the store."""

    job: str
    """The job's token: a job is stored once, however often it is added."""
    seconds_since_epoch: float
    machine: Machine
    gpu: str
    """Catalogue name of the kind that it ran on."""
    recipe: Recipe
    measured: Measured
    prediction: Prediction | None = None
    versions: dict[str, str] = field(default_factory=dict, hash=False)
    config: str = ""
    """The fields of the model's config.json, as JSON: a name alone may mean nothing, or another model, by tomorrow."""
    number: int | None = None
    """The store's own; None before it is added."""


def prediction_of(price: Price) -> Prediction:
    """What is kept of a price."""
    return Prediction(
        evidence=price.evidence,
        peak_allocated=price.peak_allocated,
        peak_reserved=price.peak_reserved,
        process=price.process,
        host=price.host,
        step_seconds=price.step_seconds,
        tokens_per_second=price.tokens_per_second,
        terms=dict(price.terms),
        phases=dict(price.phases),
        seconds=dict(price.seconds),
        work=price.work.by_name() if price.work is not None else {},
    )


def measured_of(result: Result, flops_utilisation: float | None = None) -> Measured:
    """What is kept of a job's result."""
    end = result.end
    names = dict.fromkeys(phase.name for report in result.ranks for phase in report.phases)
    return Measured(
        outcome=end.outcome,
        ranks=tuple(peak for report in result.ranks if (peak := _peak(report)) is not None),
        step_seconds=result.step_seconds,
        step_spread_seconds=result.step_spread_seconds,
        tokens_per_second=result.tokens_per_second,
        real_tokens_per_second=result.real_tokens_per_second,
        flops_utilisation=flops_utilisation,
        energy_joules=result.joules_per_step,
        allocator_retries=sum(phase.allocator_retries or 0 for report in result.ranks for phase in report.phases),
        phases={name: most for name in names if (most := _most_reserved(result, name)) is not None},
        widths=result.widths,
        marks=(*result.notes, *(("the card failed",) if end.gpu_fault else ())),
        evidence=end.evidence,
    )


def _peak(report: RankReport) -> RankPeak | None:
    """A rank's peaks; None where no GPU was read."""
    allocated, reserved = report.peak("peak_allocated_bytes"), report.peak("peak_reserved_bytes")
    if report.loaded_bytes is None or allocated is None or reserved is None:
        return None
    device = report.peak("device_bytes")
    return RankPeak(
        loaded_bytes=report.loaded_bytes,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        process_bytes=report.peak("process_bytes"),
        outside_torch_bytes=None if device is None else max(device - reserved, 0),
        host_used_bytes=report.peak("host_bytes"),
    )


def _most_reserved(result: Result, name: str) -> int | None:
    phases = [phase for report in result.ranks if (phase := report.phase(name)) is not None]
    return max((each for phase in phases if (each := phase.peak_reserved_bytes) is not None), default=None)
