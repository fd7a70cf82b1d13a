"""Holds the formulas against every measured run and prints the errors, row by row and in all.

    python benchmarks/accuracy.py            # a table on stdout
    python benchmarks/accuracy.py --write    # the same as accuracy.md

No GPU and no torch are needed.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from estimators.catalogue import find_device
from estimators.hardware import Host
from estimators.measurement import Measurement, measurements
from estimators.models import load_model
from estimators.price import Interval, Price
from estimators.pricing import price
from planner.cluster import hypothetical_cluster

FILES = {
    "h200_facts": "39 runs that the formulas were developed against",
    "h200_single": "31 runs on one H200, predicted before they were run; three laws were mended after them",
    "h200_extra": "14 short runs on one H200 whose allocator was recorded, that loaded a checkpoint or evaluated",
    "h200_two": "9 runs under DeepSpeed, FSDP2 and DDP, whose laws were mended after them",
    "h100_single": "9 runs on an H100, a card that nothing was fitted on, predicted before they were run",
}


@dataclass(frozen=True)
class Row:
    """One run, priced."""

    run: Measurement
    cost: Price

    def error(self, figure: str) -> float | None:
        truth = self.truth(figure)
        return None if truth is None else getattr(self.cost, figure).value / truth - 1

    def held(self, figure: str) -> bool | None:
        truth, interval = self.truth(figure), getattr(self.cost, figure)
        assert isinstance(interval, Interval)
        return None if truth is None else interval.low <= truth <= interval.high

    def truth(self, figure: str) -> float | None:
        worst = self.run.worst
        return {
            "peak_allocated": worst.peak_allocated_bytes,
            "peak_reserved": worst.peak_reserved_bytes,
            "process": worst.process_bytes,
            "step_seconds": self.run.step_seconds,
        }[figure]


FIGURES = {
    "peak_allocated": "allocated",
    "peak_reserved": "reserved",
    "process": "process",
    "step_seconds": "step time",
}


def rows_of(name: str) -> list[Row]:
    return [Row(run, priced(run)) for run in measurements(name)]


def priced(run: Measurement) -> Price:
    devices = [find_device(run.gpu)] * run.recipe.parallelism.devices
    cluster = hypothetical_cluster(devices, 1, Host(memory_bytes=256 << 30), None)
    return price(load_model(run.recipe.model), run.recipe, cluster)


def summary(rows: list[Row]) -> list[str]:
    lines = ["| figure | mean | median | nine in ten within | worst | inside the 95 % interval |", "|-|-|-|-|-|-|"]
    for figure, title in FIGURES.items():
        errors = sorted(abs(error) for row in rows if (error := row.error(figure)) is not None)
        if not errors:
            continue
        held = [row.held(figure) for row in rows if row.held(figure) is not None]
        figures = (statistics.mean(errors), statistics.median(errors), errors[int(0.9 * (len(errors) - 1))], errors[-1])
        shown = " | ".join(f"{100 * value:.2f} %" for value in figures)
        lines.append(f"| {title} | {shown} | {sum(map(bool, held))} of {len(held)} |")
    return lines


def headline(rows: list[Row]) -> list[str]:
    """Mean and worst of the allocated peak and of the process, and the median of the step time."""
    sizes = [
        sorted(abs(e) for row in rows if (e := row.error(name)) is not None) for name in ("peak_allocated", "process")
    ]
    times = [abs(e) for row in rows if (e := row.error("step_seconds")) is not None]
    shown = [f"{100 * statistics.mean(errors):.2f} %, {100 * errors[-1]:.1f} %" if errors else "" for errors in sizes]
    return [*shown, f"{100 * statistics.median(times):.1f} %"]


def table(rows: list[Row]) -> list[str]:
    lines = ["| run | allocated, GiB | error | reserved | process | step, ms | error |", "|-|-|-|-|-|-|-|"]
    for row in rows:
        shown = {figure: "" if (e := row.error(figure)) is None else f"{100 * e:+.2f} %" for figure in FIGURES}
        allocated = row.run.worst.peak_allocated_bytes / 2**30
        lines.append(
            f"| {row.run.name} | {allocated:.2f} | {shown['peak_allocated']} | {shown['peak_reserved']} "
            f"| {shown['process']} | {row.run.step_seconds * 1e3:.0f} | {shown['step_seconds']} |"
        )
    return lines


def document() -> str:
    """The whole page."""
    lines = ["# How near the formulas come to measured runs", "", "Made by `python benchmarks/accuracy.py --write`."]
    for name, title in FILES.items():
        rows = rows_of(name)
        lines += ["", f"## {title} ({name})", "", *summary(rows), "", *table(rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        (ROOT / "accuracy.md").write_text(document())
    else:
        print(document())
