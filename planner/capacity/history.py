"""What was measured, beside what had been predicted of it: the runs of a store, and how far off they were."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from estimators.outcome import Outcome
from estimators.price import Interval
from estimators.record import Entry

MOST = 500
"""The newest runs are shown; a page needs no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One figure of one run."""

    predicted: Interval
    measured: float

    @property
    def error(self) -> float:
        return self.predicted.value / self.measured - 1

    @property
    def within(self) -> bool:
        return self.predicted.low <= self.measured <= self.predicted.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that ended well and had been predicted."""

    entry: Entry
    memory: Pair | None
    """Bytes of the process, as the driver shows it."""
    step: Pair | None
    """Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The runs of a store."""

    path: str
    stored: int
    runs: tuple[Run, ...]
    gpus: dict[str, str]
    """The kind of GPU by job, of every run that was read."""

    def errors(self, figure: str) -> tuple[float, float, int] | None:
        """Of "memory" or "step": the median and the largest error, and how many lay within their error bars."""
        pairs: list[Pair] = [pair for run in self.runs if (pair := getattr(run, figure)) is not None]
        if not pairs:
            return None
        sizes = [abs(pair.error) for pair in pairs]
        return median(sizes), max(sizes), sum(pair.within for pair in pairs)

    def count(self, figure: str) -> int:
        return sum(getattr(run, figure) is not None for run in self.runs)


def history_of(path: str, stored: int, entries: Sequence[Entry]) -> History:
    runs = [run for entry in entries if (run := _run(entry)) is not None]
    return History(path=path, stored=stored, runs=tuple(runs[:MOST]), gpus={entry.job: entry.gpu for entry in entries})


def read_history(path: Path | None) -> History | None:
    """The runs of a store, or of this user's; None where there is none.

    Raises:
        BadInput, StoreError: it cannot be read.
    """
    from runners.store import Store, default_path

    found = Store.look(path)
    if found is None:
        return None
    with found as store:
        return history_of(str(path or default_path()), store.count(), store.entries())


def _run(entry: Entry) -> Run | None:
    said, measured = entry.prediction, entry.measured
    if said is None or measured.outcome is not Outcome.OK or measured.marks:
        return None
    peaks = [rank.process_bytes for rank in measured.ranks if rank.process_bytes]
    memory = Pair(predicted=said.process, measured=float(max(peaks))) if peaks else None
    step = Pair(predicted=said.step_seconds, measured=measured.step_seconds) if measured.step_seconds else None
    return Run(entry=entry, memory=memory, step=step) if memory or step else None
