"""Runs the microbenchmarks in a process of their own under our guard, and makes a device profile of what they leave."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estimators.device_profile import QUANTITIES, DeviceProfile
from estimators.errors import PlanError
from estimators.hardware import Gpu, Link
from estimators.placement import peer_link
from estimators.recipe import Adapter, Recipe
from runners import cards, guard, job
from runners.cards import Watch
from runners.environment import environment_of
from runners.job import Job
from runners.launch import Bench, open_bench, settle
from runners.machine import this_machine
from runners.watching import Limits, Tenants

LONGEST_SECONDS = 58.0
"""`plan calibrate` takes less than a minute: what is not measured by then keeps its rate."""
POLL_SECONDS, CARDS_SECONDS = 0.05, 1.0
REQUEST, FOUND, LOG = "request.json", "found.json", "log.txt"
OF_SEVERAL_GPUS = ("all_reduce", "all_gather", "collective_latency")
NO_GPU, STAND_IN = "cpu", "h200-sxm"
"""What a profile of no GPU is of, and the card whose kernels a dry run counts for it. Only tests have that."""


class CalibrationFailedError(PlanError):
    """The process of the microbenchmarks left nothing; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How to measure."""

    share: bool = False
    sizes: str = "full"
    longest_seconds: float = LONGEST_SECONDS
    watch: Watch = cards.watch
    child: Sequence[str] = ("runners.microbench.child",)
    """The module that runs: another one in tests."""


def calibrate(
    gpus: Sequence[Gpu], wish: Wish | None = None, progress: Callable[[str], None] = lambda line: None
) -> DeviceProfile:
    """What the microbenchmarks find on the first of `gpus`, and between all of them; without any, on this CPU.

    Raises:
        OccupiedGpu: somebody else is on one of them, and they are not to be shared.
        CalibrationFailedError: nothing at all could be measured.
    """
    wish, began, now = wish or Wish(), time.monotonic(), time.time()
    work = Job(recipe=Recipe(model="small", adapter=Adapter(method="full")), config={})
    folder = Path(tempfile.mkdtemp(prefix="plan-calibrate-"))
    try:
        with open_bench(gpus, share=wish.share, watch=wish.watch) as bench:
            found, notes = _run(folder, work, bench, wish, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return DeviceProfile(
        gpu=gpus[0].device.name if gpus else NO_GPU,
        machine=this_machine(gpus),
        figures=found["figures"],
        missing=found["missing"],
        peer_bytes_per_second=_joining(gpus).bytes_per_second if len(gpus) > 1 else None,
        notes=tuple(notes),
        versions=dict(work.versions),
        seconds_since_epoch=now,
        seconds=time.monotonic() - began,
    )


def _joining(gpus: Sequence[Gpu]) -> Link:
    """What a ring through all of them crosses."""
    return peer_link(gpus, hypothetical=False) or gpus[0].device.host_link


def _run(
    folder: Path, work: Job, bench: Bench, wish: Wish, progress: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """What the process left, and why it is not to be trusted."""
    notes = settle(bench, Limits())
    tenants = Tenants(bench.read(), bench.gpus, notes)
    request = {
        "device": "cuda" if bench.gpus else "cpu",
        "card": bench.gpus[0].device.name if bench.gpus else STAND_IN,
        "sizes": wish.sizes,
        "ranks": len(bench.gpus),
    }
    job.write_atomically(folder / REQUEST, request)
    command = guard.python(*wish.child, str(folder))
    until, looked, shown = time.monotonic() + wish.longest_seconds, 0.0, ""
    with (folder / LOG).open("ab") as log:
        process = guard.start(command, environment_of(work, bench.gpus), work.token, log, folder=folder)
    try:
        while process.poll() is None and (now := time.monotonic()) < until:
            if now - looked >= CARDS_SECONDS:
                looked = now
                if end := tenants.look(bench.read(), process.processes()):
                    raise CalibrationFailedError(end.evidence)
            if (title := str(_found(folder)["now"])) != shown:
                shown = title
                progress(title)
            time.sleep(POLL_SECONDS)
    finally:
        status = process.end()
    return _judged(folder, status, wish, len(bench.gpus)), notes


def _judged(folder: Path, status: int, wish: Wish, gpus: int) -> dict[str, Any]:
    """What was found, and of what was not, why."""
    found = _found(folder)
    if status:
        words = _last_words(folder)
        late = f"was not done after {wish.longest_seconds:g} s, in {found['now'] or 'its imports'}"
        why = late if status < 0 and not words else f"the process ended with status {status}: {words}"
        if not found["figures"]:
            raise CalibrationFailedError(f"nothing could be measured: {why}")
        known = {*found["figures"], *found["missing"], *(() if gpus > 1 else OF_SEVERAL_GPUS)}
        found["missing"] |= {name: why for name in QUANTITIES if name not in known}
    return found


def _found(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / FOUND).read_bytes())
        return found
    return {"figures": {}, "missing": {}, "now": ""}


def _last_words(folder: Path) -> str:
    """The last line that a traceback left."""
    with suppress(OSError):
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        if any(line.startswith("Traceback") for line in lines):
            return next((line for line in reversed(lines) if line.strip()), "")[:200]
    return ""
