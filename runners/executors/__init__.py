"""Where the jobs of a sweep run: places, each of which runs one job at a time, here or on other machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from estimators.outcome import Result
from runners.job import Job
from runners.pace import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the job at a place is."""

    place: str
    folder: Path
    phase: str
    step: int
    loss: float | None = None
    """Of the last step, where the job says."""
    vram_bytes: int | None = None
    tokens_per_second: float | None = None
    """As in `Seen`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The job at a place is over, and the place is free, unless `Executor.absent` names it."""

    place: str
    folder: Path
    result: Result | None
    """None: the place was lost with it (a machine that went away), or before it (`begun`)."""
    lost: str = ""
    """Why, in one line."""
    begun: bool = True
    """False: nothing of the job ran, for somebody was on the GPU, so the place alone is to blame."""


Event = Progress | Ended


class Executor(Protocol):
    """Runs job folders, and never two at one place. Used by one thread."""

    @property
    def places(self) -> Sequence[str]:
        """What runs a job or can run one, by the name that people read: "GPU 0", "node-a GPU 3", "GPUs 0-1", "CPU".

        A place that cannot run jobs leaves this list, and comes back once it can: both are to be expected between any
        two calls of `wait`, and of a place that leaves, the job's `Ended` is told after it has left.
        """

    @property
    def absent(self) -> Mapping[str, str]:
        """The places that cannot run a job, and why, in one line: somebody is on the GPU, the GPU or the machine is
        lost. Those that may come back are looked at again by themselves."""

    def warm(self, work: Job) -> None:
        """Jobs like this one are about to come: what they wait for is prepared at every place meanwhile, as far as that
        can be. A promise of nothing: whoever is mistaken has started a process that nobody needs."""

    def start(self, place: str, folder: Path) -> None:
        """Begins the job of `folder` at a free place, and returns at once.

        Raises:
            ValueError: the place is not free, or there is none of that name.
            BadInput: the folder cannot be read, or is too large to travel.
        """

    def wait(self, seconds: float) -> Sequence[Event]:
        """What happened since the last call, waiting up to so long for something; of a job that went on several times
        the latest."""

    def stop(self, place: str) -> None:
        """Ends the job at a place, if there is one; its `Ended` (cancelled, or whatever it came to first) follows."""

    def close(self) -> None:
        """Every job is gone when this returns. Nothing is started after it."""


def progress_of(place: str, folder: Path, seen: Seen) -> Progress:
    return Progress(place=place, folder=folder, phase=seen.phase, step=seen.step, loss=seen.loss,
                    vram_bytes=seen.vram_bytes, tokens_per_second=seen.tokens_per_second)  # fmt: skip


def latest(events: Sequence[Event]) -> list[Event]:
    """The events in order, each job's progress only as it was last."""
    last = {(event.place, event.folder): event for event in events if isinstance(event, Progress)}
    return [event for event in events if isinstance(event, Ended) or last[event.place, event.folder] is event]
