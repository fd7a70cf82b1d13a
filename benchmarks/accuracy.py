"""Holds both estimators against every measured run and prints the errors, row by row and in all.

    python benchmarks/accuracy.py                      # on stdout
    python benchmarks/accuracy.py --write              # the same as accuracy.md
    python benchmarks/accuracy.py --dry-run --write    # the whole page anew, the dry runs included

No GPU is needed. The formulas are worked out on the spot; what the dry run found is in benchmarks/dry_run_figures.json,
which --dry-run makes anew: that takes torch, the libraries of the `train` extra, and some minutes.
"""

import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.figures import (
    CAPPED,
    CAPPED_ON,
    COLUMNS,
    FILES,
    LEGEND,
    Comparison,
    capped_rows,
    cluster_for,
    cluster_of,
    found,
    in_words,
    written,
)
from benchmarks.predicted import section as predicted_section
from benchmarks.published import section as published_section
from estimators.document import from_document
from estimators.hardware import Cluster
from estimators.measurement import Measurement, measurements
from estimators.models import load_model
from estimators.price import Interval, Price
from estimators.pricing import price
from estimators.recipe import Recipe

__all__ = ["FILES", "Row", "document", "headline", "rows_of", "verdicts_of"]
Estimator = Literal["formula", "dry run"]
DIGITS: dict[Estimator, int] = {"formula": 2, "dry run": 3}
FIGURES = {
    "peak_allocated": "allocated",
    "peak_reserved": "reserved",
    "process": "process",
    "step_seconds": "step time",
}


@dataclass(frozen=True)
class Row:
    """One run, priced."""

    run: Measurement
    cost: Price
    """By formula."""
    traced: dict[str, Interval]
    """By dry run; empty where it could not be traced."""

    def comparison(self, figure: str, estimator: Estimator = "formula") -> Comparison | None:
        """None where the figure was not measured, or the estimator has none."""
        estimate = getattr(self.cost, figure) if estimator == "formula" else self.traced.get(figure)
        truth = self.truth(figure)
        return Comparison(estimate=estimate, truth=truth) if estimate and truth else None

    def error(self, figure: str, estimator: Estimator = "formula") -> float | None:
        found = self.comparison(figure, estimator)
        return None if found is None else found.error

    def held(self, figure: str, estimator: Estimator = "formula") -> bool | None:
        found = self.comparison(figure, estimator)
        return None if found is None else found.held

    def truth(self, figure: str) -> float | None:
        if figure == "step_seconds":
            return self.run.step_seconds
        measured: float | None = getattr(self.run.worst, f"{figure}_bytes")
        return measured


@dataclass(frozen=True)
class CappedRun:
    """What became of a run under a cap, and what the dry run says would."""

    name: str
    cap_bytes: int
    lived: bool
    at_cap: bool
    through_the_error_bar: bool
    """Whether it survives the cap and every 16 MiB below it, down to where the upper end of the bar would need it."""
    formula: bool
    """Whether the upper end of what the formula says is reserved is within the cap."""


def rows_of(name: str) -> list[Row]:
    return [Row(run, _price(run.recipe, cluster_of(run)), found(name, run.name)) for run in measurements(name)]


def _price(recipe: Recipe, cluster: Cluster) -> Price:
    """By formula."""
    return price(load_model(recipe.model), recipe, cluster)


def verdicts_of(name: str) -> list[CappedRun]:
    """The capped runs of a file that could be traced."""
    figures = written()[name]
    return [_capped(row, figures[row["name"]]) for row in capped_rows(name) if "error" not in figures[row["name"]]]


def _capped(row: dict[str, Any], figures: dict[str, Any]) -> CappedRun:
    reserved = _price(from_document(row["recipe"]), cluster_for(CAPPED_ON, 1)).peak_reserved
    return CappedRun(
        name=row["name"],
        cap_bytes=row["cap_bytes"],
        lived=row["outcome"] == "ok",
        at_cap=figures["at_cap"],
        through_the_error_bar=figures["through_the_error_bar"],
        formula=reserved.high <= row["cap_bytes"],
    )


def comparisons(rows: list[Row], figure: str, estimator: Estimator) -> list[Comparison]:
    return [one for row in rows if (one := row.comparison(figure, estimator)) is not None]


def summary(rows: list[Row]) -> Iterable[str]:
    yield f"| figure | estimator | {COLUMNS} |"
    yield "|-|-|" + "-|" * (COLUMNS.count("|") + 1)
    for figure, title in FIGURES.items():
        for estimator in ("formula", "dry run"):
            if compared := comparisons(rows, figure, estimator):
                yield f"| {title} | {estimator} | {in_words(compared, DIGITS[estimator])} |"


def headline(rows: list[Row]) -> list[str]:
    """Mean and worst of the allocated peak by formula and by dry run, of the process by dry run; the median of the step
    time by formula."""
    asked: tuple[tuple[str, Estimator], ...] = (
        ("peak_allocated", "formula"), ("peak_allocated", "dry run"), ("process", "dry run"),
    )  # fmt: skip
    sizes = [[abs(one.error) for one in comparisons(rows, name, estimator)] for name, estimator in asked]
    times = [abs(one.error) for one in comparisons(rows, "step_seconds", "formula")]
    shown = [f"{100 * statistics.mean(errors):.2f} %, {100 * max(errors):.1f} %" if errors else "" for errors in sizes]
    return [*shown, f"{100 * statistics.median(times):.1f} %"]


def table(rows: list[Row]) -> Iterable[str]:
    yield (
        "| run | allocated, GiB | formula | dry run | reserved, GiB | formula | dry run | process, GiB | formula |"
        + (" dry run | step, ms | formula | dry run |")
    )
    yield "|-|" + "-|" * 12
    for row in rows:
        cells = [cell for figure in list(FIGURES)[:3] for cell in _cells(row, figure)]
        times = [f"{row.run.step_seconds * 1e3:.0f}", _error(row), _error(row, estimator="dry run")]
        yield f"| {row.run.name} | {' | '.join([*cells, *times])} |"


def _cells(row: Row, figure: str) -> list[str]:
    truth = row.truth(figure)
    return ["" if truth is None else f"{truth / 2**30:.2f}", _error(row, figure), _error(row, figure, "dry run")]


def _error(row: Row, figure: str = "step_seconds", estimator: Estimator = "formula") -> str:
    error = row.error(figure, estimator)
    return "" if error is None else f"{100 * error:+.{DIGITS[estimator]}f} %"


VERDICTS = {"through_the_error_bar": "dry run", "at_cap": "dry run, the cap alone", "formula": "formula"}
"""Fields of a CappedRun, and what they are called."""


def capped_section() -> Iterable[str]:
    yield from ("", "## Runs under a cap", "")
    yield (
        "The cap is set after loading, as torch.cuda.set_per_process_memory_fraction does. The dry run asks at the cap "
        "and at every 16 MiB below it, down through its error bar; the formula wants its upper end within the cap."
    )
    yield from ("", "| runs | estimator | lived | died | said to survive, died | said to die, lived |", "|-|-|-|-|-|-|")
    for name, title in CAPPED.items():
        for field, estimator in VERDICTS.items():
            yield f"| {title} ({name}) | {estimator} | {_counts(verdicts_of(name), field)} |"
    yield from ("", f"| run | cap, GiB | what happened | {' | '.join(VERDICTS.values())} |", "|-|-|-|-|-|-|")
    for run in (run for name in CAPPED for run in verdicts_of(name)):
        verdicts = " | ".join("survives" if getattr(run, field) else "dies" for field in VERDICTS)
        yield f"| {run.name} | {run.cap_bytes / 2**30:.2f} | {'lived' if run.lived else 'died'} | {verdicts} |"


def _counts(runs: list[CappedRun], field: str) -> str:
    lived = [getattr(run, field) for run in runs if run.lived]
    died = [getattr(run, field) for run in runs if not run.lived]
    return f"{len(lived)} | {len(died)} | {sum(died)} | {len(lived) - sum(lived)}"


def untraced() -> Iterable[str]:
    """The runs that the dry run cannot trace, and why."""
    parts = [part for part in (*FILES, *CAPPED, "published") if part in written()]
    failed = [
        (run, figures["error"]) for part in parts for run, figures in written()[part].items() if "error" in figures
    ]
    if failed:
        yield from ("", "## Runs that could not be traced", "")
        yield from (f"- {run}: {why}" for run, why in failed)


def document() -> str:
    """The whole page."""
    made_with = ", ".join(f"{name} {version}" for name, version in written()["versions"].items())
    lines = ["# How near the estimates come to measured runs", ""]
    lines += ["Made by `python benchmarks/accuracy.py --dry-run --write`, on a CPU.", "", LEGEND, ""]
    lines += [
        f"The dry runs were made with {made_with}; each file of runs names the versions that it was measured with."
    ]
    for name, title in FILES.items():
        rows = rows_of(name)
        lines += ["", f"## {title} ({name})", "", *summary(rows), "", *table(rows)]
    lines += [*predicted_section(), *capped_section(), *published_section(), *untraced()]
    return "\n".join(lines) + "\n"


def main(options: list[str]) -> None:
    if "--dry-run" in options:
        from benchmarks.dry_accuracy import write

        write()
    if "--write" in options:
        (ROOT / "accuracy.md").write_text(document())
    else:
        print(document())


if __name__ == "__main__":
    main(sys.argv[1:])
