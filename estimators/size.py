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
from estimators.traced import SAVE, Traced
from estimators.trainable import FULL, ITEM_BYTES, groups_of
from estimators.work import Work

Tracer = Callable[[Recipe, Device], Traced]
"""Makes a dry run of a recipe on one GPU."""
UNSEEN_CONTEXT = 0.25
"""Relative error of the context's law on a card where nobody measured it."""
WHOLE_TO_SAVE = ("zero3", "fsdp2")
Bars = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A job on one kind of GPU."""

    allocated: Interval
    reserved: Interval
    process: Interval
    """At the peak of training."""
    worst_phase: Interval
    """The process in the worst phase that the job goes through: loading, evaluations and saving included."""
    worst_allocated: Interval
    """What the allocator cannot do without in any of them."""
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
    worst_allocated: float
    """In the worst phase."""
    worst_reserved: float
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
    saving = saving_bytes(model, recipe)
    peaks = _formula(memory, slack, saving)
    if tracer is not None:
        peaks = _traced(model, recipe, device, peaks, tracer)
    context = outside_bytes(device, recipe) + calibration.outside_more_bytes
    place = recipe.parallelism
    communication = nccl_bytes(place.kind, place.devices, bool(place.offload))
    spread = communication * SPREAD
    if device.name not in calibration.seen_devices:
        spread += context * UNSEEN_CONTEXT
    allocated_bars, reserved_bars = _bars(recipe, device, calibration, traced=tracer is not None)
    allocated = _interval(peaks.allocated, allocated_bars)
    reserved = _widened(_interval(peaks.reserved, reserved_bars), allocated)
    worst_allocated = _interval(peaks.worst_allocated, allocated_bars)
    worst = _widened(_interval(peaks.worst_reserved, reserved_bars), worst_allocated)
    outside = context + communication
    terms = {**peaks.terms, "context": context, "slack": round(peaks.reserved - peaks.allocated)}
    terms["communication"] += communication
    return Size(
        allocated=allocated,
        reserved=reserved,
        process=_shifted(reserved, outside, spread),
        worst_phase=_shifted(worst, outside, spread),
        worst_allocated=worst_allocated,
        outside_bytes=outside,
        moment=peaks.moment,
        terms=terms,
        phases={name: size + (context if name == "load" else outside) for name, size in peaks.phases.items()},
        managed_bytes=memory.managed_bytes,
        work=peaks.work,
    )


def saving_bytes(model: ModelSpec, recipe: Recipe) -> int:
    """What a GPU gathers to save a sharded model, one tensor at a time on its way to the host.

    ZeRO-3 gathers what is trained (DeepSpeedEngine._zero3_consolidated_16bit_state_dict), FSDP2 all of the model
    (Accelerator.get_state_dict), where a full state dict is asked for as the files that we write do.
    """
    kind, everything = recipe.parallelism.kind, recipe.adapter.trains_everything
    if kind not in WHOLE_TO_SAVE or recipe.parallelism.devices == 1:
        return 0
    gathered = recipe.adapter if kind == "zero3" else FULL
    largest = max((group.elements for group in groups_of(model, gathered)), default=0)
    if kind == "zero3":
        return largest * ITEM_BYTES[recipe.compute]
    return largest * (ITEM_BYTES["float32"] if everything else ITEM_BYTES[recipe.weights])


def _formula(memory: Memory, slack: int, saving: int) -> _Peaks:
    reserved = memory.allocated_bytes + slack
    states = memory.moments[-1].terms
    kept = sum(states[name] for name in ("weights", "adapter", "optimizer", "communication")) + saving
    evaluation = memory.evaluation.total_bytes if memory.evaluation else 0
    worst = max(1.0, evaluation / memory.allocated_bytes, kept / memory.allocated_bytes)
    moments = [*memory.moments, *([memory.evaluation] if memory.evaluation else [])]
    return _Peaks(
        allocated=memory.allocated_bytes,
        reserved=reserved,
        worst_allocated=memory.allocated_bytes * worst,
        worst_reserved=reserved * worst,
        moment=memory.peak.name,
        terms=dict(memory.peak.terms),
        phases={
            "load": memory.loaded_bytes,
            **{moment.name: moment.total_bytes + slack for moment in moments},
            SAVE: kept + slack,
        },
    )


def _traced(model: ModelSpec, recipe: Recipe, device: Device, formula: _Peaks, tracer: Tracer) -> _Peaks:
    """What the dry run found. Of a job over several GPUs it runs what one of them computes, and the formula adds what
    is sharded, gathered and reduced."""
    single = alone(recipe)
    traced = tracer(single, device)
    if single == recipe:
        return _Peaks(
            allocated=traced.peak_allocated_bytes,
            reserved=traced.peak_reserved_bytes,
            worst_allocated=traced.worst_allocated_bytes,
            worst_reserved=traced.worst_reserved_bytes,
            moment=traced.peak_moment,
            terms={name: traced.terms.get(name, 0) for name in TERMS},
            phases=dict(traced.phases),
            work=traced.work,
        )
    more = traced.peak_allocated_bytes - estimate_memory(model, single, device).allocated_bytes
    load = _sharded_load(recipe, single, traced.phases["load"], formula.phases["load"])
    return replace(
        formula,  # what sharding leaves in the cache has a law of its own
        allocated=formula.allocated + more,
        reserved=formula.reserved + more,
        worst_allocated=max(formula.worst_allocated + more, load),
        worst_reserved=max(formula.worst_reserved + more, load),
        terms={**formula.terms, "activations": formula.terms["activations"] + more},
        phases={name: size + more for name, size in formula.phases.items()}
        | {"load": load, SAVE: formula.phases[SAVE]},
        work=traced.work,
    )


def _sharded_load(recipe: Recipe, single: Recipe, whole: int, sharded: int) -> int:
    """Every rank loads the whole model in the type of its weights (runners/weights.py); ZeRO-3 alone builds shards."""
    if recipe.parallelism.kind == "zero3":
        return sharded
    wider = 1.0 if recipe.quantized else ITEM_BYTES[recipe.weights] / ITEM_BYTES[single.weights]
    return round(whole * wider)


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
