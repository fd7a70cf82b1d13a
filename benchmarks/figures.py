"""The dry run's figures as they were last made, and how estimates are told from the truth: shared by the benchmarks."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import profiles
from estimators.catalogue import find_device
from estimators.hardware import Cluster, Host
from estimators.measurement import Measurement
from estimators.price import Interval, Price
from planner.cluster import hypothetical_cluster

FILES = {
    "h200_facts": "39 runs that the formulas were developed against",
    "h200_single": "31 runs on one H200, predicted before they were run; three laws were mended after them",
    "h200_extra": "14 short runs on one H200 whose allocator was recorded, that loaded a checkpoint or evaluated",
    "h200_two": "9 runs under DeepSpeed, FSDP2 and DDP, whose laws were mended after them",
    "h200_two_predicted": "11 runs of `plan measure` on a machine with two H200, predicted before they were run",
    "h200_blind": "12 runs on the H200 whose profile is shipped, predicted before; a thirteenth could not be built",
    "h100_single": "9 runs on an H100, a card that nothing was fitted on, predicted before they were run",
    "h200_held_out": "24 runs on one H200 that nobody who wrote the laws had seen",
}
CAPPED = {
    "h200_capped": "2, 5 and 9 % above their allocated peak",
    "h200_capped_edge": "0.6 % below and above the cap at which the dry run begins to survive",
}
"""Runs under a cap set after loading, and how hard the caps are."""
CAPPED_ON = "h200"
"""Those that died name no card: all ran on this one."""
PATH = Path(__file__).resolve().parent / "dry_run_figures.json"
MEMORY = ("peak_allocated", "peak_reserved", "process")
"""Fields of a Price that a dry run finds; the file names them with `_bytes`."""


def cluster_for(gpu: str, devices: int, cpu_cores: int | None = None) -> Cluster:
    """One node of equal cards."""
    host = Host(memory_bytes=1 << 40, cpu_cores=cpu_cores)
    return hypothetical_cluster([find_device(gpu)] * devices, 1, host, None)


def cluster_of(run: Measurement) -> Cluster:
    """What a measured run ran on."""
    return cluster_for(run.gpu, run.recipe.parallelism.devices, run.cpu_cores)


@cache
def written() -> dict[str, Any]:
    """What benchmarks/dry_accuracy.py --write made: versions, and figures by file and run.

    Raises:
        FileNotFoundError: it was never made.
    """
    loaded: dict[str, Any] = json.loads(PATH.read_text())
    return loaded


def as_figures(price: Price) -> dict[str, list[float]]:
    """A price as the file keeps it: value, low, high."""
    intervals = {name: getattr(price, name) for name in MEMORY}
    sizes = {f"{name}_bytes": [round(i.value), round(i.low), round(i.high)] for name, i in intervals.items()}
    step = price.step_seconds
    return {**sizes, "step_seconds": [round(seconds, 5) for seconds in (step.value, step.low, step.high)]}


def found(part: str, run: str) -> dict[str, Interval]:
    """What the dry run said of a run, by field of a Price; nothing where it could not be traced."""
    figures = written()[part].get(run, {})
    if not figures or "error" in figures:
        return {}
    sizes = {name: _interval(figures[f"{name}_bytes"]) for name in MEMORY}
    return {**sizes, "step_seconds": _interval(figures["step_seconds"])}


def _interval(three: Sequence[float]) -> Interval:
    return Interval(value=three[0], low=three[1], high=three[2])


def capped_rows(name: str) -> list[dict[str, Any]]:
    """The runs of a file of capped ones, with those that died."""
    lines = profiles.read("measurements", f"{name}.jsonl").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One estimate and what was measured."""

    estimate: Interval
    truth: float

    @property
    def error(self) -> float:
        return self.estimate.value / self.truth - 1

    @property
    def held(self) -> bool:
        """Whether the truth is in the 95 % interval."""
        return self.estimate.low <= self.truth <= self.estimate.high

    @property
    def half_width(self) -> float:
        return (self.estimate.high - self.estimate.low) / (2 * self.estimate.value)


COLUMNS = "mean | median | nine in ten within | worst | bias | under-estimates | inside the 95 % interval | half-width"
LEGEND = (
    "Mean, median, nine in ten and worst are of the error without its sign, bias is the mean with it, under-estimates "
    "are those that say less than was measured by any amount, half-width is the interval's median one."
)


def in_words(comparisons: Sequence[Comparison], digits: int = 2) -> str:
    """The cells of COLUMNS."""
    signed = [one.error for one in comparisons]
    sizes = sorted(map(abs, signed))
    shown = [statistics.mean(sizes), statistics.median(sizes), sizes[int(0.9 * (len(sizes) - 1))], sizes[-1]]
    under = sum(error < 0 for error in signed)
    held = sum(one.held for one in comparisons)
    width = statistics.median(one.half_width for one in comparisons)
    cells = [f"{100 * size:.{digits}f} %" for size in shown]
    cells += [f"{100 * statistics.mean(signed):+.{digits}f} %", f"{100 * under / len(signed):.0f} %"]
    return " | ".join([*cells, f"{held} of {len(comparisons)}", f"{100 * width:.1f} %"])
