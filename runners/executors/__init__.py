"""Where the jobs of a sweep run: places, each of which runs one job at a time, here or on other machines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from estimators.outcome import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the job at a place is."""

    place: str
    folder: Path
    phase: str
    step: int
    loss: float | None = None
    """Of the last step, where the job says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The job at a place is over, and the place is free."""

    place: str
    folder: Path
    result: Result | None
    """None: the place was lost with it (a machine that went away), so the job may run again elsewhere."""
    lost: str = ""
    """Why, in one line."""


Event = Progress | Ended


class Executor(Protocol):
    """Runs job folders, and never two at one place."""

    @property
    def places(self) -> Sequence[str]:
        """What can run a job now or later, by the name that people read: "GPU 0", "node-a GPU 3", "GPUs 0-1", "CPU"."""

    def start(self, place: str, folder: Path) -> None:
        """Begins the job of `folder` at a free place, and returns at once.

        Raises:
            ValueError: the place is not free.
        """

    def wait(self, seconds: float) -> Sequence[Event]:
        """What happened since the last call, waiting up to so long for something."""

    def stop(self, place: str) -> None:
        """Ends the job at a place; its `Ended` (cancelled) follows."""

    def close(self) -> None:
        """Every job is gone when this returns."""
