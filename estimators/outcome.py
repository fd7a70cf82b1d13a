"""How a measured job ended and what it took: facts that the runners write, and the planner reads and stores."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from estimators.errors import BadInput
from estimators.learning import Learning
from estimators.strict import decoded, encoded

SCHEMA_VERSION = 1
LOAD, FIRST_STEP, STEADY, EVALUATION, SAVE = "load", "first_step", "steady", "evaluation", "save"
PHASES = (LOAD, FIRST_STEP, STEADY, EVALUATION, SAVE)
FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Of a forward and a backward pass through every weight: the definition of MFU (Chowdhery et al. 2022, appendix B)
without its attention term. Adapters and checkpointing execute other counts; the definition stays."""


class Outcome(StrEnum):
    """Every way in which a job can end."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    """Of the GPU."""
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a job ended, and the one line that proves it."""

    outcome: Outcome
    evidence: str = ""
    rank: int | None = None
    """The rank that ended first, where one did."""
    phase: str | None = None
    gpu_fault: bool = False
    """The card failed, not the job: what it ran says nothing about the recipe."""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What one rank took during one phase. Figures of a GPU are None where there is none, or the driver withholds."""

    name: str
    seconds: float
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    process_bytes: int | None = None
    """As NVML shows it for the process at the end of the phase."""
    device_bytes: int | None = None
    """What the card holds more than before the job, at the end of the phase."""
    allocator_retries: int | None = None
    """How often the allocator had to flush its cache in this phase: above zero, the job survived only by that."""
    resident_bytes: int | None = None
    """The rank's peak of host memory."""
    host_bytes: int | None = None
    """Host memory that all processes of the machine took more than before the job, at the end of the phase."""
    joules: float | None = None


def merged(stretches: Sequence[Phase]) -> Phase:
    """Stretches of one phase as one: their time and energy added, of all else the most."""
    figures: dict[str, Any] = {"name": stretches[0].name}
    for name in (field.name for field in fields(Phase) if field.name != "name"):
        known = [value for one in stretches if (value := getattr(one, name)) is not None]
        if name in ("seconds", "allocator_retries", "joules"):
            figures[name] = sum(known) if len(known) == len(stretches) else None
        else:
            figures[name] = max(known, default=None)
    return Phase(**figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What one rank measured."""

    rank: int
    device_name: str
    device_uuid: str | None = None
    loaded_bytes: int | None = None
    context_bytes: int | None = None
    """Of the CUDA context alone, as it was created."""
    cap_bytes: int | None = None
    """What torch was limited to."""
    phases: tuple[Phase, ...]
    step_seconds: tuple[float, ...]
    """Every optimizer step, synchronised, warm-up included."""
    warm_up_steps: int
    steady_tokens: int
    """Tokens of this rank's rows in the steady steps, padding left out."""
    steady_padded_tokens: int
    widths: tuple[int, ...] = ()
    """Tokens of a row, padding included, of the narrowest micro-batch and of the widest; empty: nobody counted."""
    meter_seconds: float
    """Processor time that measuring took during the steady steps."""
    learning: Learning | None = None
    """What the job learned, as this rank saw it."""

    @property
    def steady_step_seconds(self) -> tuple[float, ...]:
        return self.step_seconds[self.warm_up_steps :]

    def phase(self, name: str) -> Phase | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def peak(self, figure: str) -> int | None:
        """The largest `figure` from after loading to the end of the last step."""
        values = [getattr(phase, figure) for phase in self.phases if phase.name in (FIRST_STEP, STEADY)]
        return max((value for value in values if value is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A job from start to end."""

    end: End
    ranks: tuple[RankReport, ...] = ()
    notes: tuple[str, ...] = ()
    """Why the figures are not the job's alone: a co-tenant, memory left by another, a card that slowed down."""
    seconds: float
    """From asking for the job to its last process gone."""
    warm: bool = False
    """Whether a process that had everything imported took it."""

    @property
    def valid(self) -> bool:
        """Whether the figures may calibrate an estimate."""
        return self.end.ok and bool(self.ranks) and not self.notes

    @property
    def learning(self) -> Learning | None:
        """What the job learned, as its first rank saw it; None where it did not end well."""
        return next((rank.learning for rank in self.ranks if rank.rank == 0), None)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the narrowest micro-batch and the widest, over all ranks."""
        known = [width for rank in self.ranks for width in rank.widths]
        return (min(known), max(known)) if known else ()

    @property
    def step_seconds(self) -> float | None:
        """Median of the steady steps of the slowest rank."""
        medians = [statistics.median(rank.steady_step_seconds) for rank in self.ranks if rank.steady_step_seconds]
        return max(medians, default=None)

    @property
    def step_spread_seconds(self) -> float | None:
        """Between the quartiles of the steady steps of all ranks."""
        steps = [seconds for rank in self.ranks for seconds in rank.steady_step_seconds]
        if len(steps) < 2:
            return None
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        return high - low

    @property
    def tokens_per_second(self) -> float | None:
        """Of padded tokens, over all ranks."""
        return self._rate(sum(rank.steady_padded_tokens for rank in self.ranks))

    @property
    def real_tokens_per_second(self) -> float | None:
        return self._rate(sum(rank.steady_tokens for rank in self.ranks))

    @property
    def joules_per_step(self) -> float | None:
        """Of all GPUs, in the steady steps."""
        steady = [rank.phase(STEADY) for rank in self.ranks]
        joules = [phase.joules for phase in steady if phase is not None and phase.joules is not None]
        steps = self._steps
        return sum(joules) / steps if steps and len(joules) == len(self.ranks) else None

    def mfu(self, active_parameters: int, peak_flops_per_second: float) -> float | None:
        """6 × active parameters × padded tokens a second, over the peak rate of one GPU times their number."""
        rate = self.tokens_per_second
        if rate is None or not peak_flops_per_second:
            return None
        flops = FLOPS_PER_PARAMETER_AND_TOKEN * active_parameters * rate
        return flops / (peak_flops_per_second * len(self.ranks))

    @property
    def _steps(self) -> int:
        return max((len(rank.steady_step_seconds) for rank in self.ranks), default=0)

    def _rate(self, tokens: int) -> float | None:
        return tokens / (self.step_seconds * self._steps) if self.step_seconds and self._steps else None


def to_document(result: Result) -> dict[str, Any]:
    """The result as JSON types."""
    return {"schema_version": SCHEMA_VERSION, **encoded(result)}


def rank_document(report: RankReport) -> dict[str, Any]:
    document: dict[str, Any] = encoded(report)
    return document


def rank_from_document(document: object) -> RankReport:
    """The report that a rank wrote.

    Raises:
        BadInput: a key is missing, unknown or ill-typed, or a figure is none that a run can give.
    """
    report = decoded(RankReport, document, "rank report")
    counts = (report.steady_tokens, report.steady_padded_tokens, report.warm_up_steps)
    if min((*report.step_seconds, *counts), default=0) < 0:
        raise BadInput("rank report: a time or a count is negative")
    if unknown := {phase.name for phase in report.phases} - set(PHASES):
        raise BadInput(f"rank report: unknown phase {sorted(unknown)[0][:40]!r}")
    return report
