"""What a recipe costs on a machine, each figure with its 95 % interval and its evidence."""

from dataclasses import dataclass, field
from typing import Literal

from estimators.work import Work

Evidence = Literal["formula", "dry run", "measured"]
Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and the range that holds the truth in 95 of 100 runs like those it was checked against."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)


def exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """What the job takes of one GPU, and what that GPU offers."""

    name: str
    index: int | None
    budget_bytes: int
    """The smaller of what is free and what the user allows."""
    headroom_bytes: int
    """Kept free below the budget."""
    process: Interval
    """At the peak of training."""
    worst_phase: Interval
    """The process in the worst phase that the job goes through: training, or what takes more of loading, evaluations
    and saving."""
    verdict: Verdict

    @property
    def spare_bytes(self) -> float:
        """Budget less headroom less the upper end of the worst phase: negative where the job does not fit."""
        return self.budget_bytes - self.headroom_bytes - self.worst_phase.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One recipe on one cluster. Memory figures are those of the worst GPU; speed is the whole job's."""

    evidence: Evidence
    peak_allocated: Interval
    peak_reserved: Interval
    process: Interval
    """What the driver shows for the process: reserved memory, CUDA context, communication buffers."""
    host: Interval
    """Host RAM per node, all ranks, in bytes."""
    disk: Interval
    """Disk per node in bytes, for offload to NVMe."""
    step_seconds: Interval
    tokens_per_second: Interval
    peak_moment: str
    """The moment of the step at which memory peaks."""
    terms: dict[str, int] = field(hash=False)
    """Bytes of `process.value` by term; they sum to it exactly."""
    phases: dict[str, int] = field(hash=False)
    """Process bytes at each moment that the job goes through."""
    seconds: dict[str, float] = field(hash=False)
    """Of the step, by cause: "matrix products", "attention", "elementwise", "dequantisation", "optimizer",
    "communication", "host transfers", "waiting for the CPU"; they sum to `step_seconds.value`."""
    gpus: tuple[GpuShare, ...]
    host_verdict: Verdict = "fits"
    disk_verdict: Verdict = "fits"
    notes: tuple[str, ...] = ()
    work: Work | None = field(default=None, hash=False)
    """What one GPU does in a step, where a dry run counted it."""

    @property
    def verdict(self) -> Verdict:
        verdicts = [share.verdict for share in self.gpus] + [self.host_verdict, self.disk_verdict]
        if "does not fit" in verdicts:
            return "does not fit"
        return "tight" if "tight" in verdicts else "fits"

    @property
    def fits(self) -> bool:
        return self.verdict == "fits"

    @property
    def tightest(self) -> GpuShare:
        return min(self.gpus, key=lambda share: share.spare_bytes)
