"""The stored runs of a machine, read as its calibration: which of them teach, and what they say of time and memory."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

from estimators.calibration import DEFAULT, Calibration, ErrorBars
from estimators.errors import BadInput
from estimators.fit import Bars, Change, Fit, Sample, bars_after, fit_steps
from estimators.hardware import Cluster, Device
from estimators.measurement import RankPeak
from estimators.models import load_model
from estimators.placement import used_cluster
from estimators.process import outside_bytes
from estimators.recipe import Recipe
from estimators.record import Entry, Prediction
from estimators.throughput import step_seconds
from estimators.units import MIB

MOST_RUNS = 60
"""The newest are read: a plan must stay quick, and a machine changes."""
SEEN_AFTER = 3
"""Kinds of jobs after which a card counts as measured."""
LEAST_OUTSIDE_RUNS = 2
FIGURES = {"formula": ("allocated", "reserved"), "dry run": ("traced_allocated", "traced_reserved")}
"""The error bars of a price's allocated and reserved peaks, by its evidence."""
Estimate = Callable[[Recipe, Calibration], float]
"""Seconds of a recipe's step on the machine under a calibration."""


def recalibrate(
    entries: Sequence[Entry],
    cluster: Cluster,
    before: Calibration = DEFAULT,
    estimate: Estimate | None = None,
) -> Fit:
    """What the machine's stored runs, newest first, teach about jobs on `cluster`; with an `estimate` other than the
    formula's where there is a better one. The entries are those of this machine."""
    device = cluster.gpus[0].device
    mine = [entry for entry in entries if entry.gpu == device.name][:MOST_RUNS]
    teaching = [entry for entry in mine if entry.measured.teaches]
    samples, unusable = _samples(teaching, cluster, before, estimate or formula(cluster))
    fit = fit_steps(samples, device, before)
    disturbed = [f"run {e.number}: {'; '.join(e.measured.marks)}" for e in mine if e.measured.marks]
    bars, memory_changes = _memory_bars(teaching, fit.calibration)
    more, outside_changes = _outside(teaching, device)
    seen = fit.calibration.seen_devices
    if device.name not in seen and fit.kinds >= SEEN_AFTER:
        seen, bars = (*seen, device.name), _bars_of_unseen(bars)
    # The factors are of the formula's error: what a dry run's times are made of has errors of its own.
    rates = replace(fit.calibration.rates, traced=before.rates.traced)
    return replace(
        fit,
        calibration=replace(fit.calibration, rates=rates, error_bars=bars, seen_devices=seen, outside_more_bytes=more),
        outside_bytes=more,
        changes=(*fit.changes, *memory_changes, *outside_changes),
        left_out=(*disturbed, *unusable, *fit.left_out),
    )


def _bars_of_unseen(bars: ErrorBars) -> ErrorBars:
    """A card that was measured here keeps the bars of one that was not, as they are by now: its own runs moved them."""
    wide = bars.unseen_traced
    return replace(
        bars,
        step_seconds=bars.unseen_step_seconds,
        traced_step_seconds=bars.unseen_traced_step_seconds,
        traced_allocated=(min(wide[0], bars.traced_allocated[0]), max(wide[1], bars.traced_allocated[1])),
        traced_reserved=(min(wide[0], bars.traced_reserved[0]), max(wide[1], bars.traced_reserved[1])),
    )


def formula(cluster: Cluster) -> Estimate:
    """The estimate of a step by the formulas."""

    model_of = cache(load_model)

    def seconds(recipe: Recipe, calibration: Calibration) -> float:
        used = used_cluster(cluster, recipe.parallelism.devices)
        return sum(step_seconds(model_of(recipe.model), recipe, used, calibration.rates).values())

    return seconds


def kind_of(recipe: Recipe) -> str:
    """What decides which kernels run and about how large they are: not the rank, the learning rate or the seed."""
    place = recipe.parallelism
    tokens = round(math.log2(recipe.micro_batch * recipe.sequence_length))
    parts = [recipe.model, recipe.adapter.method, recipe.quantization, recipe.optimizer, recipe.attention, recipe.loss]
    parts += [f"{place.kind} on {place.devices}", *place.offload] if place.devices > 1 or place.offload else []
    return ", ".join([*parts, *["checkpointing"] * recipe.gradient_checkpointing, f"about {2**tokens} tokens"])


def _samples(
    entries: Iterable[Entry], cluster: Cluster, before: Calibration, estimate: Estimate
) -> tuple[list[Sample], list[str]]:
    """The steps that can be estimated again, and a line for each of the others."""
    samples, out = [], []
    for entry in entries:
        recipe, measured = entry.recipe, entry.measured.step_seconds
        if not measured or measured <= 0:
            continue
        try:
            if recipe.parallelism.devices > cluster.size:
                raise BadInput(f"ran on {recipe.parallelism.devices} GPUs, of which {cluster.size} are here")
            estimate(recipe, before)
        except BadInput as error:
            out.append(f"run {entry.number}: {error}")
            continue
        samples.append(
            Sample(
                kind=kind_of(recipe),
                measured_seconds=measured,
                estimate=lambda rates, recipe=recipe: estimate(recipe, replace(before, rates=rates)),  # type: ignore[misc]
            )
        )
    return samples, out


def _memory_bars(entries: Sequence[Entry], calibration: Calibration) -> tuple[ErrorBars, list[Change]]:
    """Bars of memory follow the evidence outwards only: a job that does not fit is lost, a wide bar is not."""
    bars, changes = calibration.error_bars, []
    for evidence, names in FIGURES.items():
        for name, figure in zip(names, ("peak_allocated", "peak_reserved"), strict=True):
            errors = _errors(entries, evidence, figure)
            before: Bars = getattr(bars, name)
            after = bars_after(before, errors)
            wider = min(before[0], after[0]), max(before[1], after[1])
            if wider != before:
                shown = [f"{100 * (low - 1):+.1f} % {100 * (high - 1):+.1f} %" for low, high in (before, wider)]
                what = f"{name.replace('_', ' ')} bar"
                changes.append(Change(what=what, before=shown[0], after=shown[1], runs=len(errors)))
                bars = replace(bars, **{name: wider})
    return bars, changes


def _errors(entries: Iterable[Entry], evidence: str, figure: str) -> list[float]:
    """Logarithms of measured over predicted, of each kind the largest: what repeats to the byte proves nothing new."""
    found: dict[str, float] = {}
    for entry in entries:
        worst, said = entry.measured.worst, entry.prediction
        if worst is None or said is None or said.evidence != evidence:
            continue
        error = _error(said, worst, figure)
        kind = kind_of(entry.recipe)
        found[kind] = max(found.get(kind, 0.0), error, key=abs)
    return list(found.values())


def _error(said: Prediction, worst: RankPeak, figure: str) -> float:
    truth: int = getattr(worst, f"{figure}_bytes")
    value: float = getattr(said, figure).value
    return math.log(truth / value) if truth > 0 and value > 0 else 0.0


def _outside(entries: Iterable[Entry], device: Device) -> tuple[int, list[Change]]:
    """How much more than the law the context and the libraries take here: the middle of single-GPU runs, once two are
    there. Paged states lie outside the allocator too, and a cache that was flushed is no longer in the process."""
    more = [
        worst.process_bytes - worst.peak_reserved_bytes - outside_bytes(device, entry.recipe)
        for entry in entries
        if (worst := entry.measured.worst) is not None and worst.process_bytes is not None
        and entry.recipe.parallelism.devices == 1 and not entry.recipe.optimizer.startswith("paged")
        and not entry.measured.allocator_retries
    ]  # fmt: skip
    middle = round(statistics.median(more)) if len(more) >= LEAST_OUTSIDE_RUNS else 0
    if abs(middle) < MIB:
        return 0, []
    shown = f"{middle / MIB:+.0f} MiB"
    return middle, [Change(what="context and libraries", before="+0 MiB", after=shown, runs=len(more))]
