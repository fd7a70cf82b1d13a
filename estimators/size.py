"""The memory that a recipe takes of one kind of GPU, by formula or from a dry run, each figure with its error bar."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from estimators.calibration import Calibration
from estimators.hardware import Device
from estimators.memory import FLOAT32_SHARDS, TERMS, Memory, estimate_memory
from estimators.model import ModelSpec
from estimators.price import Interval
from estimators.process import outside_bytes, slack_bytes
from estimators.recipe import Parallelism, Recipe
from estimators.strategies.parallelism.nccl import SPREAD, nccl_bytes
from estimators.traced import EVALUATION, Traced
from estimators.work import Work

Tracer = Callable[[Recipe, Device], Traced]
"""Makes a dry run of a recipe on one GPU."""
UNSEEN_CONTEXT = 0.25
"""Relative error of the context's law on a card where nobody measured it."""
Bars = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A job on one kind of GPU."""

    allocated: Interval
    reserved: Interval
    process: Interval
    """At the peak of training."""
    worst_phase: Interval
    """The process in the worst phase that the job goes through, its evaluations included."""
    outside_bytes: int
    """What the process holds beside torch's allocator."""
    moment: str
    terms: dict[str, int] = field(hash=False)
    """Sum to `process.value`."""
    phases: dict[str, int] = field(hash=False)
    managed_bytes: int
    """Paged optimizer state."""
    work: Work | None = field(default=None, hash=False)
    """What one GPU computes in a step; None by formula."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peaks:
    """What torch's allocator holds, without error bars."""

    allocated: float
    reserved: float
    worst_reserved: float
    """In the worst phase, evaluations included."""
    moment: str
    terms: dict[str, int] = field(hash=False)
    """Sum to `allocated`."""
    phases: dict[str, int] = field(hash=False)
    """Reserved bytes."""
    work: Work | None = field(default=None, hash=False)


def size_of(
    model: ModelSpec, recipe: Recipe, device: Device, calibration: Calibration, tracer: Tracer | None = None
) -> Size:
    """What `recipe` takes of a GPU of kind `device`."""
    memory = estimate_memory(model, recipe, device)
    slack = slack_bytes(model, recipe, memory)
    peaks = _formula(memory, slack) if tracer is None else _traced(model, recipe, device, memory, slack, tracer)
    context = outside_bytes(device, recipe) + calibration.outside_more_bytes
    place = recipe.parallelism
    communication = nccl_bytes(place.kind, place.devices, bool(place.offload))
    spread = communication * SPREAD
    if device.name not in calibration.seen_devices:
        spread += context * UNSEEN_CONTEXT
    allocated_bars, reserved_bars = _bars(recipe, device, calibration, traced=tracer is not None)
    allocated = _interval(peaks.allocated, allocated_bars)
    reserved = _widened(_interval(peaks.reserved, reserved_bars), allocated)
    worst = _widened(_interval(peaks.worst_reserved, reserved_bars), allocated)
    outside = context + communication
    terms = {**peaks.terms, "context": context, "slack": round(peaks.reserved - peaks.allocated)}
    terms["communication"] += communication
    return Size(
        allocated=allocated,
        reserved=reserved,
        process=_shifted(reserved, outside, spread),
        worst_phase=_shifted(worst, outside, spread),
        outside_bytes=outside,
        moment=peaks.moment,
        terms=terms,
        phases={name: size + (context if name == "load" else outside) for name, size in peaks.phases.items()},
        managed_bytes=memory.managed_bytes,
        work=peaks.work,
    )


def _formula(memory: Memory, slack: int) -> _Peaks:
    reserved = memory.allocated_bytes + slack
    evaluation = memory.evaluation.total_bytes / memory.allocated_bytes if memory.evaluation else 0.0
    moments = [*memory.moments, *([memory.evaluation] if memory.evaluation else [])]
    states = memory.moments[-1].terms
    kept = sum(states[name] for name in ("weights", "adapter", "optimizer", "communication"))
    return _Peaks(
        allocated=memory.allocated_bytes,
        reserved=reserved,
        worst_reserved=reserved * max(1.0, evaluation),
        moment=memory.peak.name,
        terms=dict(memory.peak.terms),
        phases={
            "load": memory.loaded_bytes,
            **{moment.name: moment.total_bytes + slack for moment in moments},
            "save": kept + slack,
        },
    )


def _traced(model: ModelSpec, recipe: Recipe, device: Device, memory: Memory, slack: int, tracer: Tracer) -> _Peaks:
    """What the dry run found. Of a job over several GPUs it runs what one of them computes, and the formula adds what
    is sharded, gathered and reduced."""
    single = alone(recipe)
    traced = tracer(single, device)
    if single == recipe:
        terms = {name: traced.terms.get(name, 0) for name in TERMS}
        worst = max(traced.peak_reserved_bytes, traced.phases.get(EVALUATION, 0))
        return _Peaks(
            allocated=traced.peak_allocated_bytes,
            reserved=traced.peak_reserved_bytes,
            worst_reserved=worst,
            moment=traced.peak_moment,
            terms=terms,
            phases=dict(traced.phases),
            work=traced.work,
        )
    plain = estimate_memory(model, single, device)
    more = traced.peak_allocated_bytes - plain.allocated_bytes
    peaks = _formula(memory, slack)  # what sharding leaves in the cache has a law of its own
    terms = {**peaks.terms, "activations": peaks.terms["activations"] + more}
    return replace(
        peaks,
        allocated=peaks.allocated + more,
        reserved=peaks.reserved + more,
        worst_reserved=peaks.worst_reserved + more,
        terms=terms,
        phases={name: size + (0 if name == "load" else more) for name, size in peaks.phases.items()},
        work=traced.work,
    )


def alone(recipe: Recipe) -> Recipe:
    """What one GPU of the job computes: DeepSpeed and FSDP2 run a model of the compute type."""
    if recipe.parallelism.kind not in FLOAT32_SHARDS:
        return recipe
    weights = recipe.compute if recipe.compute != "float32" else recipe.weights
    return replace(recipe, parallelism=Parallelism(), weights=weights)


def _bars(recipe: Recipe, device: Device, calibration: Calibration, *, traced: bool) -> tuple[Bars, Bars]:
    bars = calibration.error_bars
    if not traced or recipe.parallelism.kind in FLOAT32_SHARDS:
        return bars.allocated, bars.reserved
    if device.name not in calibration.seen_devices:
        return bars.unseen_traced, bars.unseen_traced
    # What NCCL and the broadcast of the weights do to the cache of a rank is not in the stream.
    return bars.traced_allocated, bars.traced_reserved if recipe.parallelism.kind == "none" else bars.reserved


def _interval(value: float, bars: Bars) -> Interval:
    return Interval(value=value, low=value * bars[0], high=value * bars[1])


def _widened(reserved: Interval, allocated: Interval) -> Interval:
    """Never less than what is allocated."""
    return Interval(value=reserved.value, low=max(reserved.low, allocated.low), high=max(reserved.high, allocated.high))


def _shifted(interval: Interval, by: float, spread: float) -> Interval:
    return Interval(value=interval.value + by, low=interval.low + by - spread, high=interval.high + by + spread)
