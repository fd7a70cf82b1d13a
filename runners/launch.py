"""Runs a job folder on given GPUs under a guard, watches it, and sums up how it ended and what it took.

A `Bench` is the GPUs that measurements run on, one after another: it refuses them when others are on them, remembers
what they hold when idle, and keeps a warm process waiting.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from estimators.errors import BadInput
from estimators.hardware import Gpu
from estimators.outcome import End, Outcome, RankReport, Result, rank_from_document, to_document
from estimators.units import format_bytes
from runners import cards, ends, guard, job
from runners.cards import SLACK_BYTES, CardState, OccupiedGpu, Watch
from runners.environment import command_of, environment_of, needs_launcher, settings_of
from runners.job import Job
from runners.spare import SERVED, STARTING_SECONDS, Spare
from runners.watching import Limits, Tenants, Watcher, last_phase

POLL_SECONDS = 0.05
SETTLE_TOLERANCE = 0.02
"""Of what the card held when idle, or SLACK_BYTES if that is more."""
LOG_TAIL_BYTES = 1 << 20


class Running(Protocol):
    """A job under way."""

    def poll(self) -> int | None: ...
    def pids(self) -> Sequence[int]: ...
    def end(self) -> int: ...
    def token(self) -> str: ...


@dataclass(slots=True, kw_only=True)
class Bench:
    """Where measurements run. Made by `open_bench`."""

    gpus: tuple[Gpu, ...]
    share: bool
    warm: bool
    read: cards.Read
    idle: Mapping[str, int | None]
    """What each card held when the bench was opened."""
    child: Callable[[Path], list[str]] = lambda folder: guard.python("runners.train", str(folder))
    """The command of one rank: another one in tests."""
    spares: dict[tuple[tuple[str, str], ...], Spare] = field(default_factory=dict)

    def prepare(self, work: Job) -> Spare | None:
        """A warm process for jobs like this one, started if there is none; None where a launcher starts the ranks."""
        if not self.warm or needs_launcher(work):
            return None
        environment = environment_of(work, self.gpus)
        key = settings_of(environment)
        if key not in self.spares:
            capability = self.gpus[0].device.compute_capability if self.gpus else None
            self.spares[key] = Spare(environment, capability)
        return self.spares[key]

    def forget(self, spare: Spare) -> None:
        self.spares = {key: other for key, other in self.spares.items() if other is not spare}


@contextmanager
def open_bench(
    gpus: Sequence[Gpu], *, share: bool = False, warm: bool = False, watch: Watch = cards.watch
) -> Iterator[Bench]:
    """The GPUs to measure on; none at all means this machine's CPU.

    Raises:
        OccupiedGpu: another process is on one of them, and `share` is not set.
        NoUsableGpu: one of them cannot be addressed, or the driver lost it.
    """
    uuids = [gpu.uuid for gpu in gpus if gpu.uuid]
    if len(uuids) < len(gpus):
        raise OccupiedGpu("a GPU without a UUID cannot be told from its neighbours: measure it on a newer driver")
    with watch(uuids) as read:
        states = read()
        if not share:
            refuse_occupied(states)
        idle = {state.uuid: state.held_bytes for state in states}
        bench = Bench(gpus=tuple(gpus), share=share, warm=warm, read=read, idle=idle)
        try:
            yield bench
        finally:
            for spare in list(bench.spares.values()):
                spare.end()


def refuse_occupied(states: Sequence[CardState]) -> None:
    """
    Raises:
        OccupiedGpu: naming the first occupant.
    """
    for state in states:
        if state.fault:
            raise OccupiedGpu(f"GPU {state.uuid}: {state.fault}")
        if state.occupant:
            raise OccupiedGpu(f"GPU {state.uuid} is in use by {state.occupant}; wait, or share it (--share)")


def run(
    folder: Path, bench: Bench, *, limits: Limits | None = None, progress: Callable[[str], None] = lambda line: None
) -> Result:
    """Runs the job in `folder` to its end, whatever that is, and leaves nothing of it alive.

    Args:
        progress: called with "PHASE STEP" of the slowest rank whenever that changes.

    Raises:
        OccupiedGpu: somebody else came onto a GPU since the bench was opened.
        BadInput: the folder holds no job, or one for another number of GPUs.
    """
    limits, began = limits or Limits(), time.monotonic()
    folder = folder.absolute()
    work = job.read(folder)
    if bench.gpus and len(bench.gpus) != work.ranks:
        raise BadInput(f"{folder}: a job for {work.ranks} GPUs, and {len(bench.gpus)} are given")
    notes = settle(bench, limits)
    tenants = Tenants(bench.read(), bench.gpus)
    kills = ends.oom_kills()
    warm, running, status = False, None, 0
    stopped: End | None = None
    try:
        warm, running = _start(folder, work, bench)
        stopped = Watcher(folder, work, limits, running, tenants, bench.read, progress).wait()
    except KeyboardInterrupt:
        stopped = End(outcome=Outcome.CANCELLED, evidence="interrupted")
    except OSError as error:  # no process could be started
        text = f"{type(error).__name__}: {error}"
        stopped = End(outcome=ends.recognise(text) or Outcome.FAILED, evidence=ends.one_line(text))
    finally:
        if running is not None:
            with _undisturbed():
                status = running.end()
    notes += tenants.notes
    end, reports = collect(folder, work, status, stopped, ends.oom_kills() - kills)
    result = Result(end=end, ranks=reports, notes=tuple(notes), seconds=time.monotonic() - began, warm=warm)
    with suppress(OSError):  # a full disk loses the file, not the result
        job.write_atomically(folder / job.RESULT, to_document(result))
    return result


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not keep us from cleaning up after the first."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def settle(bench: Bench, limits: Limits) -> list[str]:
    """Waits until the cards hold no more than when they were idle; what still is wrong then, as notes.

    Raises:
        OccupiedGpu: a process stays on a card, and the bench does not share.
    """
    until = time.monotonic() + limits.settle_seconds
    while True:
        states = bench.read()
        held = [state for state in states if _above_idle(state, bench.idle.get(state.uuid))]
        busy = [state for state in states if state.processes and not bench.share]
        if not held and not busy:
            return ["another process shared the GPU"] if any(state.occupant for state in states) else []
        if time.monotonic() >= until:
            break
        time.sleep(POLL_SECONDS)
    if busy:
        refuse_occupied(busy)
    return [f"GPU {state.uuid} held {format_bytes(state.held_bytes or 0)} before the job began" for state in held]


def _above_idle(state: CardState, idle: int | None) -> bool:
    if state.held_bytes is None or idle is None:
        return False
    return state.held_bytes > idle + max(SLACK_BYTES, SETTLE_TOLERANCE * idle)


def _start(folder: Path, work: Job, bench: Bench) -> tuple[bool, Running]:
    spare = bench.prepare(work)
    if spare is not None and spare.ready(STARTING_SECONDS):
        with suppress(BrokenPipeError):  # it died while it waited
            running = WarmJob(spare, bench, folder)
            if not spare.forks:  # it is the job now, and the next one must be imported beside it
                bench.forget(spare)
                bench.prepare(work)
            return True, running
    if spare is not None:
        bench.forget(spare)
        spare.end()
    environment = environment_of(work, bench.gpus)
    command = command_of(bench.child(folder), work)
    with (folder / job.LOG).open("ab") as log:
        return False, ColdJob(guard.start(command, environment, work.token, log, folder=folder))


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
    """A job in the bench's spare, or in a process forked from it."""

    def __init__(self, spare: Spare, bench: Bench, folder: Path) -> None:
        self._spare, self._bench = spare, bench
        self._status: int | None = None
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
            return self._status or 0
        self._bench.forget(self._spare)
        status = self._spare.end()
        return status if self._status is None else self._status

    def _settled(self) -> bool:
        """Kills what is left of the job; whether the spare says that its child is buried."""
        self._spare.kill_leftovers()
        until = time.monotonic() + guard.LONGEST_DYING_SECONDS
        while self.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return self._spare.process.poll() is None and self._status is not None

    def token(self) -> str:
        return self._spare.process.token


def collect(
    folder: Path, work: Job, status: int, stopped: End | None, kills: int
) -> tuple[End, tuple[RankReport, ...]]:
    """How the job ended, and the reports of the ranks that finished."""
    reports: list[RankReport] = []
    failures: list[ends.Failure] = []
    for rank in range(work.ranks):
        with suppress(OSError, ValueError, BadInput, RecursionError):
            document = json.loads(job.rank_path(folder, rank).read_bytes())
            if isinstance(document, dict) and "kind" in document:
                failures.append(ends.failure_from(document))
            else:
                reports.append(rank_from_document(document))
    remains = ends.Remains(
        returncode=status, reports=len(reports), ranks=work.ranks, failures=tuple(failures),
        log=_tail(folder / job.LOG), oom_kills=kills, stopped=stopped,
    )  # fmt: skip
    end = ends.judge(remains)
    if not end.ok and end.phase is None:  # it died without a word
        end = replace(end, phase=last_phase(folder, end.rank or 0))
    return end, tuple(reports)


def _tail(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - LOG_TAIL_BYTES, 0))
        return file.read().decode("utf-8", errors="replace")
    return ""
