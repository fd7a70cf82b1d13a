"""A job under way, in processes started for it or in a warm one."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from runners import guard
from runners.spare import SERVED, Spare

POLL_SECONDS = 0.02
WARM_TOKEN = "warm-token.txt"
"""In a job's folder: the token of the spare that took the job, which its processes carry in place of the job's own."""


class Running(Protocol):
    """A job under way."""

    def poll(self) -> int | None: ...
    def pids(self) -> Sequence[int]: ...
    def end(self) -> int: ...
    def token(self) -> str: ...


class ColdJob:
    """A job in processes started for it."""

    def __init__(self, process: guard.Guarded) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def pids(self) -> Sequence[int]:
        return self._process.processes()

    def end(self) -> int:
        return self._process.end()

    def token(self) -> str:
        return self._process.token


class WarmJob:
    """A job in a spare, or in a process forked from it. The spare stays its bench's, which ends what is left of it."""

    def __init__(self, spare: Spare, folder: Path) -> None:
        self._spare = spare
        self._status: int | None = None
        (folder / WARM_TOKEN).write_text(spare.process.token)
        spare.take(folder)

    def poll(self) -> int | None:
        if self._status is None:
            message = self._spare.message()
            if message is not None and message["state"] == SERVED:
                self._status = int(message["status"])
            else:
                self._status = self._spare.process.poll()
        return self._status

    def pids(self) -> Sequence[int]:
        return self._spare.process.processes()

    def end(self) -> int:
        """One that forks goes on, whatever became of its child; one that was the job itself has ended."""
        if self._spare.forks and self._settled():
            self._spare.taken = False
            return self._status or 0
        status = self._spare.end()
        return status if self._status is None else self._status

    def _settled(self) -> bool:
        """Kills what is left of the job; whether nothing is, and the spare says that its child is buried."""
        until = time.monotonic() + guard.LONGEST_DYING_SECONDS
        if not self._spare.kill_leftovers(until):
            return False
        while self.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return self._spare.process.poll() is None and self._status is not None

    def token(self) -> str:
        return self._spare.process.token


def tokens_of(folder: Path, token: str) -> list[str]:
    """What the processes of the job in `folder` may carry: the job's own token, and that of the spare that took it."""
    with suppress(OSError, UnicodeDecodeError):
        return [token, (folder / WARM_TOKEN).read_text()]
    return [token]
