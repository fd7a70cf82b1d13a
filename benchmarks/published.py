"""Holds the estimates against runs that others published, source by source.

    python benchmarks/published.py    # the section of accuracy.md

The rows in profiles/measurements/published.jsonl are those of other people's tables that say enough to be priced: a
model of the catalogue, a card, method, batch and length, up to 8 GPUs, and a figure that was measured. Each names its
source, the unit and the metric of its peak, and what had to be assumed. A row counts for speed where it also says what
a token is (padded, packed or of what length) and a step (accumulation); which sources do not is in WITHOUT_SPEED.
"""

import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import profiles
from benchmarks.figures import COLUMNS, Comparison, cluster_for, found, in_words
from estimators.calibration import Efficiency, Rates
from estimators.document import from_document
from estimators.models import load_model
from estimators.price import Interval, Price
from estimators.pricing import price
from estimators.recipe import Recipe
from estimators.throughput import step_seconds

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

SPEED_BAR = 0.15
WITHOUT_SPEED = {
    "Qwen README, full fine-tuning": "whether DeepSpeed ran it, and which stage, is not said",
    "Qwen README, LoRA with embeddings": "a recipe here cannot train embeddings beside adapters",
    "Qwen README, Int4": "GPTQ weights, which nothing here runs",
    "Qwen README, LoRA of 7B on two nodes": "the link between the nodes is not said",
    "LLaMA-Factory wiki, tables 1 and 2": "unknown lengths; the tables print one configuration and two sets of figures",
    "LLaMA-Factory wiki and others, Unsloth": "other kernels, and activations moved to the host",
    "torchtune README, other steps of the ladder": "compiled, or activations offloaded; the first: unknown lengths",
    "torchtune README memory table": "compiled, and optimizers of torchao",
    "PEFT method_comparison, other methods": "adapters that nothing here runs",
    "MosaicML llm-foundry": "MPT, which is in no catalogue here, pretrained by another program",
    "NVIDIA Megatron-Bridge": "pretraining by another program in 8-bit floats, with tensor and pipeline parallelism",
    "torchtitan": "an H100 in no catalogue (96 GB of HBM2e, 500 W), compiled or checkpointed selectively",
    "ColossalAI README": "a model that is not named",
    "Hugging Face deepspeed-to-fsdp": "no sequence length",
    "MegaTrain": "an optimizer and streaming of its own; second-hand",
}
"""Measured rows with a speed that are not held against ours, and what is missing: decided by what a source says, not by
how far off its rows are."""
GRID = tuple(itertools.product((0.55, 0.60, 0.635, 0.68, 0.72, 0.76), (0.65, 0.75, 0.85, 0.95), (0.5, 0.6, 0.7)))
"""Shares of matrix products, memory and attention that a fit may choose from."""


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


def timed() -> list[Published]:
    """The rows that say enough of their speed."""
    return [row for row in published() if row.tokens_per_second]


def speed_medians(estimator: str) -> dict[str, float]:
    """By source, the median error of the step time without its sign."""
    errors = {row: one.error for row in timed() if (one := speed(row, estimator))}
    return {
        source: statistics.median(abs(1 / (1 + error) - 1) for row, error in errors.items() if row.source == source)
        for source in dict.fromkeys(row.source for row in errors)
    }


@cache
def _misses(shares: tuple[float, float, float]) -> dict[Published, float]:
    """Logarithms of estimated over measured step time, were these the shares that kernels reach."""
    matmul, memory, attention = shares
    rates = replace(Rates(), elsewhere=Efficiency(matmul=matmul, memory=memory, attention=attention))
    return {
        row: math.log(_seconds(row, rates) * (row.tokens_per_second or 0) / row.recipe.tokens_per_step)
        for row in timed()
    }


def _seconds(row: Published, rates: Rates) -> float:
    return sum(step_seconds(load_model(row.recipe.model), row.recipe, cluster_for(row.gpu, row.gpus), rates).values())


def _median_miss(shares: tuple[float, float, float], source: str) -> float:
    return statistics.median(abs(miss) for row, miss in _misses(shares).items() if row.source == source)


def left_out(source: str) -> tuple[tuple[float, float, float], float]:
    """The shares that fit the other sources best, each source counting once, and the median error of this one then."""
    others = {row.source for row in timed()} - {source}
    best = min(GRID, key=lambda shares: sum(_median_miss(shares, other) for other in others))
    return best, _median_miss(best, source)


def _speed() -> Iterable[str]:
    yield (
        "The set is fixed: every row that is complete, whatever its error. The bar is a median of "
        f"{100 * SPEED_BAR:.0f} % per source. The last columns check the formula: shares of matrix products, memory "
        "and attention that are fitted to the other sources, and the median error of this one with them. Qwen's rows "
        "of up to 512 tokens take half as long as estimated: its own model code issues fewer operators, on a host that "
        "nobody described. PEFT's run without autocast, which is priced with it, and, as is inferred, out of the "
        "L40S's large cache."
    )
    yield from ("", "| source | rows | formula | dry run | fitted to the others | left out |", "|-|-|-|-|-|-|")
    formula_medians, traced = speed_medians("formula"), speed_medians("dry run")
    for source, median in formula_medians.items():
        rows = sum(row.source == source for row in timed())
        shares, miss = left_out(source)
        second = f"{100 * traced[source]:.1f} %" if source in traced else ""
        cells = [source, str(rows), f"{100 * median:.1f} %", second, ", ".join(map(str, shares)), f"{100 * miss:.1f} %"]
        yield f"| {' | '.join(cells)} |"
    yield from ("", "Measured rows with a speed that are not in the set:", "")
    yield from (f"- {source}: {why}" for source, why in WITHOUT_SPEED.items())


def section() -> list[str]:
    """What accuracy.md says of published runs."""
    speeds = ["", "### Step time on cards known only from the catalogue", "", *_speed()]
    return ["", "## Runs that others published", "", NOTE, "", *_sources(), "", *_rows(), *speeds]


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
