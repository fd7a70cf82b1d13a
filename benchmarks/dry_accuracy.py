"""Dry-runs every measured and published run, on the CPU, and keeps what was found for accuracy.md.

    python benchmarks/dry_accuracy.py --write       # all of them into benchmarks/dry_run_figures.json
    python benchmarks/dry_accuracy.py tiny11 qw05   # prints errors of the runs whose names contain one of these

No GPU is needed; torch and the libraries of the `train` extra are. Traces are cached on disk, so that what was not
changed is not traced again.
"""

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.figures import CAPPED, CAPPED_ON, FILES, MEMORY, PATH, as_figures, capped_rows, cluster_for, cluster_of
from benchmarks.published import published
from estimators.catalogue import find_device
from estimators.document import from_document
from estimators.errors import PlanError
from estimators.hardware import Cluster
from estimators.measurement import Measurement, measurements
from estimators.models import load_config, load_model
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import Recipe
from estimators.survival import survives
from runners.dry.tracer import DryRuns, versions

Figures = dict[str, Any]


def dry_price(recipe: Recipe, cluster: Cluster) -> Price:
    """The price by dry run."""
    runs = DryRuns(config=load_config(recipe.model))
    return price(load_model(recipe.model), recipe, cluster, tracer=runs)


def figures(recipe: Recipe, cluster: Cluster) -> Figures:
    """What a dry run says, or why it says nothing."""
    try:
        return as_figures(dry_price(recipe, cluster))
    except PlanError as error:
        return {"error": str(error)}


def figures_of(run: Measurement) -> Figures:
    return figures(run.recipe, cluster_of(run))


def verdicts(row: dict[str, Any]) -> Figures:
    """Whether the dry run survives a row's cap, and all of them down through its error bar."""
    recipe, cap_bytes = from_document(row["recipe"]), row["cap_bytes"]
    device, runs = find_device(CAPPED_ON), DryRuns(config=load_config(recipe.model))
    try:
        reserved = dry_price(recipe, cluster_for(CAPPED_ON, 1)).peak_reserved
        events, loaded = runs.events(recipe, device)
    except PlanError as error:
        return {"error": str(error)}
    low = int(cap_bytes * reserved.value / reserved.high)
    at_cap = survives(events, cap_bytes, cap_bytes, recipe.expandable_segments, loaded)
    through = survives(events, cap_bytes, low, recipe.expandable_segments, loaded)
    return {"at_cap": at_cap.survives, "through_the_error_bar": through.survives, "retries": at_cap.retries}


def parts() -> Iterable[tuple[str, str, Figures]]:
    """File, run and figures of everything that accuracy.md shows."""
    for name in FILES:
        for run in measurements(name):
            yield name, run.name, figures_of(run)
    for name in CAPPED:
        for row in capped_rows(name):
            yield name, row["name"], verdicts(row)
    for published_row in published():
        yield (
            "published",
            published_row.name,
            figures(published_row.recipe, cluster_for(published_row.gpu, published_row.gpus)),
        )


def write() -> None:
    """All figures into PATH, one run a line."""
    started, table = time.monotonic(), dict[str, dict[str, Figures]]()
    for part, run, found in parts():
        table.setdefault(part, {})[run] = found
        said = found.get("error", "")
        print(f"{time.monotonic() - started:6.0f} s  {part} {run} {said}", file=sys.stderr, flush=True)
    PATH.write_text(as_text(table))


def as_text(table: dict[str, dict[str, Figures]]) -> str:
    blocks = [f' "versions": {json.dumps(versions())}']
    for part, runs in table.items():
        lines = ",\n".join(f"  {json.dumps(run)}: {json.dumps(found)}" for run, found in runs.items())
        blocks.append(f' "{part}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def show(names: list[str]) -> None:
    """Errors of the runs whose names contain one of these, as they are traced."""
    print(f"| run | {' | '.join(MEMORY)} |\n|-|-|-|-|")
    for run in (run for file in FILES for run in measurements(file)):
        if any(name in run.name for name in names):
            found, truth = figures_of(run), run.worst
            cells = [found["error"]] if "error" in found else [_error(found, truth, name) for name in MEMORY]
            print(f"| {run.name} | {' | '.join(cells)} |", flush=True)


def _error(found: Figures, truth: object, name: str) -> str:
    measured = getattr(truth, f"{name}_bytes")
    return "" if measured is None else f"{100 * (found[f'{name}_bytes'][0] / measured - 1):+.3f} %"


if __name__ == "__main__":
    write() if "--write" in sys.argv[1:] else show(sys.argv[1:])
