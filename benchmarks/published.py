"""Holds the estimates against runs that others published, source by source.

    python benchmarks/published.py    # the section of accuracy.md

The rows in profiles/measurements/published.jsonl are those of other people's tables that say enough to be priced: a
model of the catalogue, a card, method, batch and length, up to 8 GPUs, and a figure that was measured. Each names its
source, the unit and the metric of its peak, and what had to be assumed.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import profiles
from benchmarks.figures import COLUMNS, Comparison, cluster_for, found, in_words
from estimators.document import from_document
from estimators.models import load_model
from estimators.price import Interval, Price
from estimators.pricing import price
from estimators.recipe import Recipe

FIELD_OF = {
    "allocated": "peak_allocated",
    "reserved": "peak_reserved",
    "device monitor": "process",
    "unknown": "peak_reserved",
}
"""The field of a Price that a source's metric means; where it names none, the middle one is taken."""
NOTE = """\
What is not comparable: these runs used other versions, texts of unlike lengths (the longest is priced), and cards \
that were not measured here; most name neither unit nor counter clearly. Sources marked "other implementation" do \
not run transformers and PEFT: their models keep other tensors, cast nothing to float32 and fuse other operations, \
so their rows say how far a plan made for transformers is from them, not how exact it is. "Unknown" peaks are held \
against the reserved one, and some are printed in whole GB, which alone is off by up to 8 %. What each row had to \
assume stands beside it in profiles/measurements/published.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of somebody else's table, as a recipe."""

    name: str
    source: str
    where: str
    implementation: str
    gpu: str
    gpus: int
    recipe: Recipe
    peak_bytes: int | None
    unit: str
    metric: str
    tokens_per_second: float | None
    notes: str


@cache
def published() -> tuple[Published, ...]:
    lines = profiles.read("measurements", "published.jsonl").splitlines()
    return tuple(_row(json.loads(line)) for line in lines if line.strip())


def _row(table: dict[str, Any]) -> Published:
    return Published(**{**table, "recipe": from_document(table["recipe"])})


@cache
def formula(row: Published) -> Price:
    return price(load_model(row.recipe.model), row.recipe, cluster_for(row.gpu, row.gpus))


def memory(row: Published, estimator: str) -> Comparison | None:
    """The peak as "formula" or "dry run" say it, and as published; None where one of them is not there."""
    field = FIELD_OF[row.metric]
    estimate: Interval | None = getattr(formula(row), field)
    if estimator == "dry run":
        estimate = found("published", row.name).get(field)
    return Comparison(estimate=estimate, truth=row.peak_bytes) if estimate and row.peak_bytes else None


def speed(row: Published, estimator: str) -> Comparison | None:
    """The same of tokens a second."""
    estimate: Interval | None = formula(row).tokens_per_second
    if estimator == "dry run":
        step, tokens = found("published", row.name).get("step_seconds"), row.recipe.tokens_per_step
        estimate = step and Interval(value=tokens / step.value, low=tokens / step.high, high=tokens / step.low)
    truth = row.tokens_per_second
    return Comparison(estimate=estimate, truth=truth) if estimate and truth else None


def section() -> list[str]:
    """What accuracy.md says of published runs."""
    return ["", "## Runs that others published", "", NOTE, "", *_sources(), "", *_rows()]


def _sources() -> Iterable[str]:
    yield f"| source | rows | figure | estimator | {COLUMNS} |"
    yield "|-|-|-|-|" + "-|" * (COLUMNS.count("|") + 1)
    for source, kind in dict.fromkeys((row.source, row.implementation) for row in published()):
        rows = [row for row in published() if row.source == source]
        title = source if kind == "transformers and PEFT" else f"{source} ({kind})"
        for estimator in ("formula", "dry run"):
            yield from _line(title, "memory", estimator, [memory(row, estimator) for row in rows])
        for estimator in ("formula", "dry run"):
            yield from _line(title, "tokens a second", estimator, [speed(row, estimator) for row in rows])


def _line(title: str, figure: str, estimator: str, comparisons: Iterable[Comparison | None]) -> Iterable[str]:
    there = [one for one in comparisons if one is not None]
    if there:
        yield f"| {title} | {len(there)} | {figure} | {estimator} | {in_words(there, digits=1)} |"


def _rows() -> Iterable[str]:
    yield "| run | card | peak, GB | counter | formula | dry run | tokens/s | formula | dry run |"
    yield "|-|-|-|-|-|-|-|-|-|"
    for row in published():
        errors = [one(row, estimator) for one in (memory, speed) for estimator in ("formula", "dry run")]
        shown = ["" if one is None else f"{100 * one.error:+.1f} %" for one in errors]
        card = row.gpu if row.gpus == 1 else f"{row.gpus} × {row.gpu}"
        peak = f"{row.peak_bytes / 1e9:.2f}" if row.peak_bytes else ""
        tokens = f"{row.tokens_per_second:.0f}" if row.tokens_per_second else ""
        cells = [row.name, card, peak, row.metric, *shown[:2], tokens, *shown[2:]]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(section()))
