"""The stored runs of a machine, read as its calibration: which of them teach, and what they say of time and memory."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from estimators.calibration import DEFAULT, Calibration, ErrorBars
from estimators.fit import DRY_RUNS, Bars, Change, Fit, bars_after, fit_steps
from estimators.hardware import Cluster, Device
from estimators.measurement import RankPeak
from estimators.process import outside_bytes
from estimators.recipe import Recipe
from estimators.record import Entry, Prediction
from estimators.remembered import DRY_RUN, Estimate, formula, samples, traced, was_traced
from estimators.units import MIB

MOST_RUNS = 60
"""The newest are read: a plan must stay quick, and a machine changes."""
SEEN_AFTER = 3
"""Kinds of jobs after which a card counts as measured."""
LEAST_OUTSIDE_RUNS = 2
FULL_SHARE = 0.98
"""Of the recipe's length, from which on rows count as that long."""
FIGURES = {"formula": ("allocated", "reserved"), DRY_RUN: ("traced_allocated", "traced_reserved")}
"""The error bars of a price's allocated and reserved peaks, by its evidence."""


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
    timed = [entry for entry in teaching if _is_full(entry)]
    narrow = [f"run {e.number}: its rows are shorter than its recipe's" for e in teaching if not _is_full(e)]
    shown, unusable = samples(timed, cluster, before, estimate or formula(cluster), _kind)
    fit = _with_traced(fit_steps(shown, device, before), timed, cluster, before)
    disturbed = [f"run {e.number}: {'; '.join(e.measured.marks)}" for e in mine if e.measured.marks]
    bars, memory_changes = _memory_bars(teaching, fit.calibration)
    more, outside_changes = _outside(teaching, device)
    seen = fit.calibration.seen_devices
    if device.name not in seen and fit.kinds >= SEEN_AFTER:
        seen, bars = (*seen, device.name), _bars_of_unseen(bars)
    return replace(
        fit,
        calibration=replace(fit.calibration, error_bars=bars, seen_devices=seen, outside_more_bytes=more),
        outside_bytes=more,
        changes=(*fit.changes, *memory_changes, *outside_changes),
        left_out=tuple(dict.fromkeys((*disturbed, *narrow, *unusable, *fit.left_out))),
    )


def _with_traced(fit: Fit, entries: Sequence[Entry], cluster: Cluster, before: Calibration) -> Fit:
    """The formula's fit with that of the dry runs: each by its own errors, for what one misses the other need not."""
    device, shared = cluster.gpus[0].device, fit.calibration
    start = replace(shared, rates=replace(shared.rates, traced=before.rates.traced))
    again = traced(cluster)

    def estimate(entry: Entry, calibration: Calibration) -> float:
        """What both have in common stays as the formula's fit left it."""
        rates = replace(start.rates, traced=calibration.rates.traced)
        return again(entry, replace(calibration, rates=rates))

    shown, unusable = samples(filter(was_traced, entries), cluster, start, estimate, _kind)
    own = fit_steps(shown, device, start, DRY_RUNS)
    rates = replace(start.rates, traced=own.calibration.rates.traced)
    return replace(
        fit,
        calibration=replace(start, rates=rates, error_bars=own.calibration.error_bars),
        traced_factors=own.factors,
        changes=(*fit.changes, *own.changes),
        left_out=(*fit.left_out, *unusable, *own.left_out),
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


def _is_full(entry: Entry) -> bool:
    """Whether its batches were as wide as the recipe has them, and so as it was priced: a step of shorter rows is less
    work, and says nothing of the machine."""
    widths = entry.measured.widths
    return not widths or min(widths) >= FULL_SHARE * entry.recipe.sequence_length


def _compares(entry: Entry, figure: str) -> bool:
    """Whether a peak of memory is that of the job which was priced: its widest batch was as wide; and what torch
    reserved is not what its cache keeps of many widths, which is no error of the estimate."""
    measured = entry.measured
    if measured.widths and max(measured.widths) < FULL_SHARE * entry.recipe.sequence_length:
        return False
    return figure != "peak_reserved" or not measured.varies or entry.recipe.expandable_segments


def _kind(entry: Entry) -> str:
    return kind_of(entry.recipe)


def kind_of(recipe: Recipe) -> str:
    """What decides which kernels run and about how large they are: not the rank, the learning rate or the seed."""
    place = recipe.parallelism
    tokens = round(math.log2(recipe.micro_batch * recipe.sequence_length))
    parts = [recipe.model, recipe.adapter.method, recipe.quantization, recipe.optimizer, recipe.attention, recipe.loss]
    parts += [f"{place.kind} on {place.devices}", *place.offload] if place.devices > 1 or place.offload else []
    return ", ".join([*parts, *["checkpointing"] * recipe.gradient_checkpointing, f"about {2**tokens} tokens"])


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
        if worst is None or said is None or said.evidence != evidence or not _compares(entry, figure):
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
