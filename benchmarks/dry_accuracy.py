"""Holds the dry run against measured runs on one GPU and prints the errors, row by row and in all.

    python benchmarks/dry_accuracy.py tiny11 qw05      # the runs whose names contain one of these
    python benchmarks/dry_accuracy.py --all

No GPU is needed; torch and the libraries of the `train` extra are.
"""

import statistics
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from estimators.catalogue import find_device
from estimators.errors import PlanError
from estimators.measurement import Measurement, measurements
from estimators.models import load_config
from runners.dry.trace import dry_run

FILES = ("h200_facts", "h200_single", "h100_single")


def chosen(names: list[str]) -> list[Measurement]:
    runs = [run for file in FILES for run in measurements(file) if run.recipe.parallelism.kind == "none"]
    return [run for run in runs if "--all" in names or any(name in run.name for name in names)]


def row(run: Measurement) -> tuple[float, float] | None:
    """Prints one run's line; returns the errors of the two peaks."""
    try:
        trace = dry_run(run.recipe, load_config(run.recipe.model), find_device(run.gpu))
    except PlanError as error:
        print(f"| {run.name} | | {error} |", flush=True)
        return None
    truth = run.worst
    errors = (
        trace.loaded_bytes / truth.loaded_bytes - 1,
        trace.peak_allocated_bytes / truth.peak_allocated_bytes - 1,
        trace.peak_reserved_bytes / truth.peak_reserved_bytes - 1,
    )
    shown = " | ".join(f"{100 * error:+.3f} %" for error in errors)
    missing = (truth.peak_allocated_bytes - trace.peak_allocated_bytes) / 2**20
    place = f"{trace.peak_phase} {trace.peak_module or '-'} {trace.peak_operation}"
    print(f"| {run.name} | {shown} | {missing:.2f} MiB missing | {place} | {trace.seconds:.1f} s |", flush=True)
    return errors[1:]


def main(names: list[str]) -> None:
    print("| run | loaded | allocated | reserved | | peak at | time |\n|-|-|-|-|-|-|-|")
    errors = [found for run in chosen(names) if (found := row(run)) is not None]
    for index, figure in enumerate(("allocated", "reserved")) if errors else ():
        sizes = sorted(abs(pair[index]) for pair in errors)
        near = sum(size <= 0.0005 for size in sizes)
        mean = 100 * statistics.mean(sizes)
        print(f"{figure}: mean {mean:.3f} %, worst {100 * sizes[-1]:.3f} %, {near} of {len(sizes)} within 0.05 %")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(sys.argv[1:])
