"""Runs a job folder on given GPUs under a guard, watches it, and sums up how it ended and what it took.

A `Bench` is the GPUs that measurements run on, one after another: it refuses them when others are on them, remembers
what they hold when idle, and keeps a warm process waiting. It belongs to one thread; several threads have one each.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from estimators.errors import BadInput
from estimators.hardware import Gpu
from estimators.outcome import End, Outcome, RankReport, Result, rank_from_document, to_document
from estimators.units import format_bytes
from runners import cards, ends, guard, job
from runners.cards import SLACK_BYTES, CardState, OccupiedGpu, Watch
from runners.environment import command_of, environment_of, needs_launcher, settings_of
from runners.interrupts import undisturbed
from runners.job import Job
from runners.pace import Seen
from runners.running import ColdJob, Running, WarmJob
from runners.spare import STARTING_SECONDS, Spare
from runners.watching import CancelledError, Limits, Tenants, Watcher, check_wanted, last_phase

POLL_SECONDS = 0.02
SETTLE_TOLERANCE = 0.02
"""Of what the card held when idle, or SLACK_BYTES if that is more."""
LOG_TAIL_BYTES = LEAST_DISK_BYTES = 1 << 20
SPARES_THAT_SERVE_ONCE = 2
"""As many wait where a spare cannot fork: one alone would still be importing when the next job comes."""


@dataclass(slots=True, kw_only=True)
class Bench:
    """Where measurements run. Made by `open_bench`."""

    gpus: tuple[Gpu, ...]
    share: bool
    warm: bool
    read: cards.Read
    idle: Mapping[str, int | None]
    """What each card held when the bench was opened."""
    inherited: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Our environment before libraries write into it: a job, and what waits for it, know nothing of that."""
    child: Callable[[Path], list[str]] = lambda folder: guard.python("runners.train", str(folder))
    """The command of one rank: another one in tests."""
    spares: list[tuple[tuple[tuple[str, str], ...], Spare]] = field(default_factory=list)
    """Every warm process that has not ended, the job's included, with the environment that it was started in."""

    def prepare(self, work: Job) -> Spare | None:
        """A warm process for jobs like this one, started if there is none; None where a launcher starts the ranks, and
        where none could be started."""
        for _, spare in self.spares:
            if spare.taken:  # jobs follow each other here, so its own is one that an interrupt tore from our hands
                spare.end()
        return next((spare for spare in self.refill(work) if not spare.taken), None)

    def refill(self, work: Job) -> list[Spare]:
        """The warm processes for jobs like this one, as many as are wanted."""
        if not self.warm or needs_launcher(work):
            return []
        environment = environment_of(work, self.gpus, self.inherited)
        key = settings_of(environment)
        self.spares[:] = [(other, spare) for other, spare in self.spares if not spare.ended]
        alike = [spare for other, spare in self.spares if other == key]
        known = [spare for spare in alike if spare.ready()]
        if any(spare.forks for spare in known):
            return alike
        missing = (SPARES_THAT_SERVE_ONCE if known else 1) - sum(not spare.taken for spare in alike)
        capability = self.gpus[0].device.compute_capability if self.gpus else None
        with suppress(OSError):  # a spare too few makes a job slow, and none fail
            for _ in range(missing):
                alike.append(Spare(environment, capability))
                self.spares.append((key, alike[-1]))
        return alike

    def close(self) -> None:
        for _, spare in self.spares:
            spare.end()


@contextmanager
def open_bench(
    gpus: Sequence[Gpu], *, share: bool = False, warm: bool = False, watch: Watch = cards.watch,
    inherited: Mapping[str, str] | None = None,
) -> Iterator[Bench]:  # fmt: skip
    """The GPUs to measure on; none at all means this machine's CPU.

    Args:
        inherited: the environment that jobs inherit; None: ours as it is now.

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
        kept = dict(os.environ if inherited is None else inherited)
        bench = Bench(gpus=tuple(gpus), share=share, warm=warm, read=read, idle=idle, inherited=kept)
        try:
            yield bench
        finally:
            bench.close()


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
    folder: Path, bench: Bench, *, limits: Limits | None = None, progress: Callable[[str], None] = lambda line: None,
    cancel: threading.Event | None = None, see: Callable[[Seen], None] = lambda seen: None,
) -> Result:  # fmt: skip
    """Runs the job in `folder` to its end, whatever that is, and leaves nothing of it alive.

    Any thread may run jobs, each on a bench of its own. A Ctrl-C reaches the main thread alone: it sets the others'
    `cancel` if it wants to wait for them; where it ends instead, their jobs are cancelled by that.

    Args:
        progress: called with "PHASE STEP", or "PHASE STEP LOSS", of the slowest rank whenever that changes.
        cancel: once it is set, in any thread, the job is ended as CANCELLED.
        see: called with that and with the job's figures, whenever they change: at every step and once a second.

    Raises:
        OccupiedGpu: somebody else came onto a GPU since the bench was opened.
        BadInput: the folder holds no job, or one for another number of GPUs.
    """
    limits, began = limits or Limits(), time.monotonic()
    folder = folder.absolute()
    work = job.read(folder)
    if bench.gpus and len(bench.gpus) != work.ranks:
        raise BadInput(f"{folder}: a job for {work.ranks} GPUs, and {len(bench.gpus)} are given")
    notes: list[str] = []
    kills = ends.oom_kills()
    running: Running | None = None
    status, stopped = 0, None
    try:
        notes += settle(bench, limits, cancel)
        tenants = Tenants(bench.read(), bench.gpus, notes)
        running = _start(folder, work, bench, cancel)
        bench.refill(work)
        stopped = Watcher(folder, work, limits, running, tenants, bench.read, progress, cancel, see).wait()
    except (KeyboardInterrupt, CancelledError) as error:
        stopped = End(outcome=Outcome.CANCELLED, evidence=str(error) or "interrupted")
    except OSError as error:  # no process could be started
        text = f"{type(error).__name__}: {error}"
        stopped = End(outcome=ends.recognise(text) or Outcome.FAILED, evidence=ends.one_line(text))
    finally:
        if running is not None:
            with undisturbed():
                status = running.end()
    end, reports = collect(folder, work, status, stopped, ends.oom_kills() - kills)
    seconds, warm = time.monotonic() - began, isinstance(running, WarmJob)
    result = Result(end=end, ranks=reports, notes=tuple(notes), seconds=seconds, warm=warm)
    with suppress(OSError):  # a full disk loses the file, not the result
        job.write_atomically(folder / job.RESULT, to_document(result))
    return result


def settle(bench: Bench, limits: Limits, cancel: threading.Event | None = None) -> list[str]:
    """Waits until the cards hold no more than when they were idle; what still is wrong then, as notes.

    Raises:
        OccupiedGpu: a process stays on a card, and the bench does not share.
        CancelledError: the job is not wanted any more.
    """
    until = time.monotonic() + limits.settle_seconds
    while True:
        check_wanted(cancel)
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


def _start(folder: Path, work: Job, bench: Bench, cancel: threading.Event | None) -> Running:
    """In a warm process where the bench has one, else, or where that has died, in processes of its own."""
    spare = bench.prepare(work)
    if spare is not None and _ready(spare, cancel):
        with suppress(BrokenPipeError):  # it died while it waited
            return WarmJob(spare, folder)
    if spare is not None:
        spare.end()
    environment = environment_of(work, bench.gpus, bench.inherited)
    command = command_of(bench.child(folder), work)
    with (folder / job.LOG).open("ab") as log:
        return ColdJob(guard.start(command, environment, work.token, log, folder=folder))


def _ready(spare: Spare, cancel: threading.Event | None) -> bool:
    """Whether it has everything imported, once it has, or has died, or takes too long for that."""
    until = time.monotonic() + STARTING_SECONDS
    while not spare.ready(POLL_SECONDS):
        check_wanted(cancel)
        if spare.process.poll() is not None or time.monotonic() > until:
            return False
    return True


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
    if end.outcome is Outcome.FAILED and (full := _full_disk(folder)):
        end = replace(end, evidence=ends.one_line(f"{full}: {end.evidence}"))
    if not end.ok and end.phase is None:  # it died without a word
        end = replace(end, phase=last_phase(folder, end.rank or 0))
    return end, tuple(reports)


def _full_disk(folder: Path) -> str | None:
    """A job that could write nothing more has often left no word of it, as that had to be written too."""
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        return f"{format_bytes(free)} left on the disk of {folder}" if free < LEAST_DISK_BYTES else None
    return None


def _tail(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(path.stat().st_size - LOG_TAIL_BYTES, 0))
        return file.read().decode("utf-8", errors="replace")
    return ""
