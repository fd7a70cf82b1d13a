"""How far off the estimates were that were made before a run, as they were made: the section of accuracy.md.

The other tables of that page hold today's code against all runs, those among them that have taught it something since.
Rows under profiles/measurements that were predicted keep what was said then, and by which command they were run.
"""

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import profiles

PREDICTED = ("h200_blind", "h200_two_predicted")
"""Files whose rows say what was predicted."""
FIGURES = {"peak_allocated_bytes": "allocated", "peak_reserved_bytes": "reserved", "step_seconds": "step time"}
ESTIMATORS = ("formula", "dry run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """A run, and what was said of it before."""

    name: str
    step_seconds: float
    command: str
    notes: str
    errors: dict[tuple[str, str], float]
    """By figure and estimator."""


def foretold(name: str) -> list[Foretold]:
    lines = profiles.read("measurements", f"{name}.jsonl").splitlines()
    return [_foretold(json.loads(line)) for line in lines if line.strip()]


def _foretold(row: dict[str, Any]) -> Foretold:
    errors = {
        (figure, estimator): said[figure] / _truth(row, figure) - 1
        for estimator, said in row["predicted"].items()
        for figure in FIGURES
    }
    return Foretold(
        name=row["name"],
        step_seconds=row["step_seconds"],
        command=row["command"],
        notes=row["notes"],
        errors=errors,
    )


def _truth(row: dict[str, Any], figure: str) -> float:
    """Of the worst rank."""
    return float(row[figure] if figure == "step_seconds" else max(rank[figure] for rank in row["ranks"]))


def section() -> list[str]:
    """What accuracy.md says of them."""
    return [line for name in PREDICTED for line in _section(name)]


def _section(name: str) -> list[str]:
    runs = foretold(name)
    commands = ", ".join(sorted({f"`{run.command}`" for run in runs}))
    title = f"## As predicted before the runs ({name})"
    return ["", title, "", f"Run by {commands}. Nothing was mended between prediction and run.", "", *_table(runs)]


def _table(runs: list[Foretold]) -> Iterable[str]:
    columns = [(figure, estimator) for figure in FIGURES for estimator in ESTIMATORS]
    titles = [f"{FIGURES[figure]}, {estimator}" for figure, estimator in columns]
    yield f"| run | step, ms | {' | '.join(titles)} | remarks |"
    yield "|-|" + "-|" * (len(columns) + 2)
    for run in runs:
        cells = [_shown(run.errors.get(column)) for column in columns]
        yield f"| {run.name} | {run.step_seconds * 1e3:.0f} | {' | '.join(cells)} | {run.notes} |"
    medians = [_median([run.errors[column] for run in runs if column in run.errors]) for column in columns]
    yield f"| median, without its sign | | {' | '.join(medians)} | |"
    worst = [_worst([run.errors[column] for run in runs if column in run.errors]) for column in columns]
    yield f"| worst, without its sign | | {' | '.join(worst)} | |"


def _shown(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %"


def _median(errors: list[float]) -> str:
    return f"{100 * statistics.median(map(abs, errors)):.1f} %"


def _worst(errors: list[float]) -> str:
    return f"{100 * max(map(abs, errors)):.1f} %"


if __name__ == "__main__":
    print("\n".join(section()))
