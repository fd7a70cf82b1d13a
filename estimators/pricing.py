"""One recipe on one cluster, priced: memory of every GPU, host, disk and time, each with its error bar."""

from collections.abc import Iterable, Mapping

from estimators.calibration import DEFAULT, Calibration, Rates
from estimators.errors import BadInput
from estimators.hardware import Cluster, Gpu
from estimators.legality import objections
from estimators.memory import job_of
from estimators.model import ModelSpec
from estimators.placement import used_cluster
from estimators.price import GpuShare, Interval, Price, Verdict, exactly
from estimators.recipe import Recipe
from estimators.size import Size, Tracer, size_of
from estimators.techniques import PARALLELISMS, find_law
from estimators.throughput import slowest, step_seconds
from estimators.traced_throughput import traced_step_seconds
from estimators.units import MIB

LEAST_HEADROOM_BYTES, HEADROOM_SHARE = 256 * MIB, 0.02
HOST_PROCESS_BYTES = 1_500_000_000
"""Python, torch and the CUDA libraries of one rank: host memory in use rose by 0.9 to 1.2 GB a rank from the end of its
imports to the end of its run (profiles/measurements); the imports take about 0.5 GB before that."""


def price(
    model: ModelSpec,
    recipe: Recipe,
    cluster: Cluster,
    *,
    vram_budget_bytes: int | None = None,
    headroom_bytes: int | None = None,
    assume_idle: bool = False,
    calibration: Calibration = DEFAULT,
    tracer: Tracer | None = None,
) -> Price:
    """What `recipe` costs on `cluster`: by formula, or from what `tracer` found in a dry run.

    Raises:
        BadInput: the recipe cannot run there, with every reason; or it names what does not exist; or, of the tracer,
            the recipe cannot be traced.
    """
    reasons = objections(model, recipe, cluster)
    if reasons:
        raise BadInput("; ".join(reasons))
    cluster = used_cluster(cluster, recipe.parallelism.devices)
    used = cluster.gpus
    kinds = {gpu.device.name: gpu.device for gpu in used}
    sizes = {name: size_of(model, recipe, device, calibration, tracer) for name, device in kinds.items()}
    shares = tuple(
        _share(gpu, sizes[gpu.device.name], budget_bytes(gpu, vram_budget_bytes, assume_idle), headroom_bytes)
        for gpu in used
    )
    worst = sizes[min(zip(shares, used, strict=True), key=lambda pair: pair[0].spare_bytes)[1].device.name]
    seconds = _seconds(model, recipe, cluster, sizes, calibration.rates)
    paged = max(_paged_out_bytes(share, worst.managed_bytes) for share in shares)
    seconds["host transfers"] += (
        2 * paged / (used[0].device.host_link.bytes_per_second * calibration.rates.host_link_efficiency)
    )
    total = sum(seconds.values())
    low, high = _step_bars(calibration, seen=kinds.keys() <= set(calibration.seen_devices), traced=tracer is not None)
    step = Interval(value=total, low=total * low, high=total * high)
    tokens = recipe.tokens_per_step
    host, disk = _host(model, recipe, cluster, calibration, paged)
    return Price(
        evidence="formula" if tracer is None else "dry run",
        peak_allocated=worst.allocated,
        peak_reserved=worst.reserved,
        process=worst.process,
        host=host,
        disk=disk,
        step_seconds=step,
        tokens_per_second=Interval(value=tokens / step.value, low=tokens / step.high, high=tokens / step.low),
        peak_moment=worst.moment,
        terms=worst.terms,
        phases=worst.phases,
        seconds=seconds,
        gpus=shares * (recipe.parallelism.devices // len(shares)),
        host_verdict=_covers(cluster.host.memory_bytes, host) if recipe.parallelism.offload or paged else "fits",
        disk_verdict=_covers(cluster.host.disk_bytes, disk),
        notes=tuple(_notes(model, recipe, worst.managed_bytes)),
        work=sizes[slowest(cluster, recipe).name].work,
    )


def _seconds(
    model: ModelSpec, recipe: Recipe, cluster: Cluster, sizes: Mapping[str, Size], rates: Rates
) -> dict[str, float]:
    """A step by cause: from what was traced for the slowest card, or by formula."""
    work = sizes[slowest(cluster, recipe).name].work
    if work is None:
        return step_seconds(model, recipe, cluster, rates)
    return traced_step_seconds(work, model, recipe, cluster, rates)


def _step_bars(calibration: Calibration, *, seen: bool, traced: bool) -> tuple[float, float]:
    bars = calibration.error_bars
    if traced:
        return bars.traced_step_seconds if seen else bars.unseen_traced_step_seconds
    return bars.step_seconds if seen else bars.unseen_step_seconds


def budget_bytes(gpu: Gpu, vram_budget_bytes: int | None, assume_idle: bool) -> int:
    """What a job may take of a GPU: what is free (or usable, where it is idle or assumed so), within the user's
    limit."""
    idle = assume_idle or gpu.free_bytes is None
    available = gpu.device.usable_bytes if idle or gpu.free_bytes is None else gpu.free_bytes
    return available if vram_budget_bytes is None else min(available, vram_budget_bytes)


def headroom_of(budget: int, headroom_bytes: int | None) -> int:
    """What stays free: the user's figure, or the larger of 256 MiB and 2 % of the budget."""
    return max(LEAST_HEADROOM_BYTES, round(HEADROOM_SHARE * budget)) if headroom_bytes is None else headroom_bytes


def _share(gpu: Gpu, size: Size, budget: int, headroom_bytes: int | None) -> GpuShare:
    headroom = headroom_of(budget, headroom_bytes)
    verdict: Verdict = "does not fit"
    worst = size.worst_phase
    flushed = size.worst_allocated.high + size.outside_bytes
    if budget - headroom >= worst.high:
        verdict = "fits"
    elif budget - headroom >= flushed:
        # It lives only because the allocator gives its cache back in time, again and again.
        verdict = "tight"
    return GpuShare(
        name=gpu.device.name,
        index=gpu.index,
        budget_bytes=budget,
        headroom_bytes=headroom,
        process=size.process,
        worst_phase=worst,
        verdict=verdict,
    )


def _paged_out_bytes(share: GpuShare, managed_bytes: int) -> int:
    """Managed optimizer state for which the GPU has no room: it lives in host memory, and is paged in and out."""
    room = share.budget_bytes - share.headroom_bytes - share.process.value
    return round(min(managed_bytes, max(0.0, managed_bytes - room)))


def _host(
    model: ModelSpec, recipe: Recipe, cluster: Cluster, calibration: Calibration, paged_bytes: int
) -> tuple[Interval, Interval]:
    """Host RAM and disk of one node; `paged_bytes` are a rank's."""
    law, job = find_law("parallelism", PARALLELISMS, recipe.parallelism.kind), job_of(model, recipe)
    ranks = min(len(cluster.gpus), recipe.parallelism.devices)
    share = ranks / recipe.parallelism.devices
    needed = ranks * (HOST_PROCESS_BYTES + paged_bytes) + round(share * law.host_bytes(job))
    low, high = calibration.error_bars.host
    disk = round(share * law.disk_bytes(job))
    return Interval(value=needed, low=needed * low, high=needed * high), exactly(disk)


def _covers(available: int | None, needed: Interval) -> Verdict:
    if not needed.value or (available is not None and available >= needed.high):
        return "fits"
    return "tight" if available is not None and available >= needed.value else "does not fit"


def _notes(model: ModelSpec, recipe: Recipe, managed_bytes: int) -> Iterable[str]:
    if managed_bytes:
        paged = managed_bytes / 2**30
        yield f"{paged:.2f} GiB of optimizer state are paged: on the GPU while there is room, else in host memory"
    if recipe.quantized and any(block.feed_forward.experts for block, _ in model.block_counts):
        yield "the routed experts are not quantised: bitsandbytes reaches linear layers only"
    if recipe.sequence_length > model.max_positions:
        yield f"{recipe.sequence_length} tokens are beyond the {model.max_positions} that {model.name} was trained on"
