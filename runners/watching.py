"""Watches a running job: does every rank still step, has anybody else come onto its GPUs, is its time up."""

import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from estimators.hardware import Gpu
from estimators.outcome import FIRST_STEP, STEADY, End, Outcome
from estimators.units import format_bytes
from runners import job
from runners.cards import SLACK_BYTES, CardState, Read
from runners.job import Job
from runners.pace import Pace, Seen
from runners.processes import Identity, signal_ours

POLL_SECONDS, CARDS_SECONDS = 0.02, 1.0
STACKS_SECONDS = 1.0
"""How long a stuck process may take to write where it is stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a job may take, and a part of it."""

    total_seconds: float = 1800.0
    silent_seconds: float = 600.0
    """Without a sign of life outside of steps: imports, loading, compiling, saving."""
    step_seconds: float = 120.0
    """For one optimizer step after the first."""
    settle_seconds: float = 20.0
    """For the GPUs to be as they were, before a job."""


class CancelledError(Exception):
    """Somebody has asked for the job's end."""


def check_wanted(cancel: threading.Event | None) -> None:
    """
    Raises:
        CancelledError: `cancel` is set, or the main thread is over, as after a Ctrl-C that it did not expect: what
            another thread runs is nobody's then.
    """
    if cancel is not None and cancel.is_set():
        raise CancelledError("cancelled")
    if not threading.main_thread().is_alive():
        raise CancelledError("the program is ending")


class Watched(Protocol):
    """The part of `launch.Running` that is watched."""

    def poll(self) -> int | None: ...
    def pids(self) -> Sequence[int]: ...
    def token(self) -> str: ...


@dataclass(slots=True)
class _Sign:
    """The last sign of life of a rank."""

    text: str
    seen_seconds: float

    @property
    def words(self) -> list[str]:
        return self.text.split()

    @property
    def phase(self) -> str:
        return self.words[2] if len(self.words) > 3 else "start"

    @property
    def step(self) -> int:
        return int(self.words[3]) if len(self.words) > 3 and self.words[3].isdecimal() else 0

    @property
    def told(self) -> list[str]:
        """What follows the step."""
        return self.words[4:]

    @property
    def loss(self) -> float | None:
        with suppress(ValueError, IndexError):
            return float(self.told[0])
        return None

    @property
    def tokens(self) -> int | None:
        """That the rank has trained on."""
        return next((int(word[1:]) for word in self.told if word[0] == "t" and word[1:].isdecimal()), None)

    @property
    def line(self) -> str:
        """Phase, step, and the loss where the rank tells it."""
        return " ".join([self.phase, str(self.step), *([] if self.loss is None else self.told[:1])])


def last_phase(folder: Path, rank: int) -> str:
    """What the rank was doing when it was last heard of."""
    text = ""
    with suppress(OSError, UnicodeDecodeError):
        text = job.beat_path(folder, rank).read_text()
    return _Sign(text, 0.0).phase


class Tenants:
    """Who else is on the GPUs, told from the job's own processes."""

    def __init__(self, before: Sequence[CardState], gpus: Sequence[Gpu], notes: list[str]) -> None:
        self.notes = notes
        self._before: Mapping[str, CardState] = {state.uuid: state for state in before}
        self._unified = {gpu.uuid for gpu in gpus if gpu.device.unified_memory}

    def look(self, states: Sequence[CardState], own: Sequence[int]) -> End | None:
        """Notes what is seen; the job's end where a card has failed."""
        for state in states:
            if state.fault:
                return End(outcome=Outcome.FAILED, evidence=f"GPU {state.uuid}: {state.fault}", gpu_fault=True)
            for note in (self._stranger(state, own), self._slowdown(state)):
                if note and note not in self.notes:
                    self.notes.append(note)
        return None

    def held_bytes(self, states: Sequence[CardState], own: Sequence[int]) -> int | None:
        """What the job holds of its fullest card now: its processes' bytes, or where the driver's numbers are not ours
        what is held above what was before it."""
        held = [self._held(state, own) for state in states]
        return max((found for found in held if found is not None), default=None)

    def _held(self, state: CardState, own: Sequence[int]) -> int | None:
        ours = [process.used_bytes for process in state.processes if process.pid in own]
        if ours and None not in ours:
            return sum(used or 0 for used in ours)
        before = self._before[state.uuid].held_bytes
        return None if state.held_bytes is None or before is None else max(state.held_bytes - before, 0)

    def _stranger(self, state: CardState, own: Sequence[int]) -> str | None:
        """In a namespace of our own the driver's numbers are not ours: there, a second newcomer is one too many."""
        known = {process.pid for process in self._before[state.uuid].processes}
        new = [process for process in state.processes if process.pid not in known]
        ours = [process for process in new if process.pid in own]
        strangers = [process for process in new if process.pid not in own] if ours else new[1:]
        if strangers:
            return f"another process came onto GPU {state.uuid}"
        unshown = state.unexplained_bytes - self._before[state.uuid].unexplained_bytes
        if state.processes and unshown > SLACK_BYTES and state.uuid not in self._unified:
            return f"{format_bytes(unshown)} of GPU {state.uuid} went to a process that is not shown"
        return None

    def _slowdown(self, state: CardState) -> str | None:
        return f"GPU {state.uuid} slowed down ({', '.join(state.slowdowns)})" if state.slowdowns else None


class Watcher:
    """Waits for a job's end, or finds why to end it."""

    def __init__(
        self, folder: Path, work: Job, limits: Limits, running: Watched, tenants: Tenants, read: Read,
        progress: Callable[[str], None], cancel: threading.Event | None = None,
        see: Callable[[Seen], None] = lambda seen: None,
    ) -> None:  # fmt: skip
        """
        Args:
            progress, see: see `launch.run`.
        """
        self._folder, self._limits, self._running = folder, limits, running
        self._tenants, self._read, self._progress, self._cancel = tenants, read, progress, cancel
        self._began = time.monotonic()
        self._signs = {rank: _Sign("", self._began) for rank in range(work.ranks)}
        self._pace, self._see = Pace(work.ranks), see
        self._held_bytes: int | None = None
        self._last: Seen | None = None

    def wait(self) -> End | None:
        """None where the job ended by itself.

        Raises:
            CancelledError: the job is not wanted any more.
        """
        looked = 0.0
        while self._running.poll() is None:
            check_wanted(self._cancel)
            now = time.monotonic()
            if end := self._overdue(now):
                return end
            if now - looked >= CARDS_SECONDS:
                looked = now
                if end := self._look():
                    return end
            time.sleep(POLL_SECONDS)
        return None

    def _look(self) -> End | None:
        """At the cards."""
        states, own = self._read(), self._running.pids()
        self._held_bytes = self._tenants.held_bytes(states, own)
        self._tell()
        return self._tenants.look(states, own)

    def _tell(self) -> None:
        """How far the slowest rank is, where that or a figure has changed; nothing before the first sign of life."""
        sign = min(self._signs.values(), key=lambda sign: sign.step)
        seen = Seen(phase=sign.phase, step=sign.step, loss=sign.loss, vram_bytes=self._held_bytes,
                    tokens_per_second=self._pace.tokens_per_second)  # fmt: skip
        if sign.text and seen != self._last:
            self._last = seen
            self._see(seen)

    def _overdue(self, now: float) -> End | None:
        for rank, sign in self._signs.items():
            self._listen(rank, sign, now)
        running = {r: s for r, s in self._signs.items() if not job.rank_path(self._folder, r).exists()}
        if not running:
            return None
        rank, sign = min(running.items(), key=lambda item: (item[1].seen_seconds, item[0]))
        limit = self._limits.step_seconds if _is_stepping(sign) else self._limits.silent_seconds
        if now - sign.seen_seconds > limit:
            return self._timed_out(rank, sign, f"no sign of life for {limit:g} s")
        if now - self._began > self._limits.total_seconds:
            return self._timed_out(rank, sign, f"not done after {self._limits.total_seconds:g} s")
        return None

    def _listen(self, rank: int, sign: _Sign, now: float) -> None:
        text = ""
        with suppress(OSError, UnicodeDecodeError):
            text = job.beat_path(self._folder, rank).read_text()
        if text and text != sign.text:
            sign.text, sign.seen_seconds = text, now
            if rank == 0:
                self._pace.hear(sign.phase, sign.step, sign.tokens, now)
            if rank == min(self._signs, key=lambda other: self._signs[other].step):
                self._progress(sign.line)
                self._tell()

    def _timed_out(self, rank: int, sign: _Sign, why: str) -> End:
        place = self._where(rank, sign)
        evidence = f"rank {rank} in {sign.phase} after step {sign.step}: {why}{f', at {place}' if place else ''}"
        return End(outcome=Outcome.TIMED_OUT, evidence=evidence, rank=rank, phase=sign.phase)

    def _where(self, rank: int, sign: _Sign) -> str:
        """The innermost frame of the stuck rank, which writes its stacks when asked to."""
        words = sign.words
        if len(words) < 4 or not (words[0].isdecimal() and words[1].isdecimal()):
            return ""
        one = Identity(pid=int(words[0]), started_ticks=int(words[1]), token=self._running.token())
        if not signal_ours(one, signal.SIGUSR1):
            return ""
        stacks, until = self._folder / f"stacks-{rank}.txt", time.monotonic() + STACKS_SECONDS
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            if found := _innermost(stacks):
                return found
        return ""


def _is_stepping(sign: _Sign) -> bool:
    return sign.phase in (FIRST_STEP, STEADY) and sign.step > 0


def _innermost(stacks: Path) -> str:
    """Of the main thread, which faulthandler writes last."""
    with suppress(OSError):
        _, _, main = stacks.read_text().rpartition("(most recent call first):\n")
        if found := re.search(r'File "([^"]*)", line (\d+) in (\S+)', main):
            return f"{Path(found[1]).name}:{found[2]} in {found[3]}"
    return ""
