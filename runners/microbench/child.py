"""The process of `plan calibrate`: runs one microbenchmark after another, and leaves after each what was found so far.

One that fails costs its own figures and says why. A CUDA error poisons the process: nothing after it is measured.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from runners.job import write_atomically
from runners.losses import DeviceName
from runners.microbench.clock import Clock
from runners.microbench.collectives import collectives
from runners.microbench.host import HOST, Host
from runners.microbench.kernels import KERNELS, Bench, Found
from runners.microbench.launch import FOUND, OF_SEVERAL_GPUS, REQUEST
from runners.microbench.links import LINKS
from runners.microbench.sizes import SIZES


@dataclass(slots=True, kw_only=True)
class Report:
    """What was found so far, on disk."""

    path: Path
    figures: Found = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def save(self, now: str) -> None:
        write_atomically(self.path, {"figures": self.figures, "missing": self.missing, "now": now})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One microbenchmark, under its title."""

    title: str
    run: Callable[[], Found]
    names: tuple[str, ...]


def main() -> None:
    """The process: argv[1] is the folder with the request."""
    folder = Path(sys.argv[1])
    request: dict[str, Any] = json.loads((folder / REQUEST).read_text())
    report = Report(path=folder / FOUND)
    torch.manual_seed(0)
    if request["device"] != "cuda":
        torch.set_num_threads(1)  # the stand-in for a GPU must not wait for a busy core
    for step in steps(request):
        report.save(step.title)
        run(step, report)
    report.save("")


def steps(request: dict[str, Any]) -> Iterator[Step]:
    """What is asked for. Collectives come first, while this process is not on a GPU itself; then the host."""
    device: DeviceName = "cuda" if request["device"] == "cuda" else "cpu"
    sizes = SIZES[request["sizes"]]
    bench = Bench(clock=Clock(device=device, round_seconds=sizes.round_seconds), sizes=sizes)
    host = Host(bench=bench, card=request["card"])
    if request["ranks"] > 1:
        yield Step(title="collectives", run=partial(collectives, bench, request["ranks"]), names=OF_SEVERAL_GPUS)
    for title, (of_host, names) in HOST.items():
        yield Step(title=title, run=partial(of_host, host), names=names)
    for title, (measure, names) in KERNELS.items():
        yield Step(title=title, run=partial(measure, bench), names=names)
    for title, (measure, names) in LINKS.items():
        yield Step(title=title, run=partial(measure, bench), names=names)


def run(step: Step, report: Report) -> None:
    """Adds what a microbenchmark finds, or why it found nothing."""
    began = time.monotonic()
    try:
        report.figures |= step.run()
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0][:200]
        why = f"{type(error).__name__}{': ' if words else ''}{words}"
        report.missing |= dict.fromkeys(step.names, why)
    gc.collect()
    torch.cuda.empty_cache()
    print(f"{step.title}: {time.monotonic() - began:.2f} s", flush=True)
