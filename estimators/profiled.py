"""A device profile as rates: which figure each rate follows, and what steps make of it.

A card's kernels rarely reach in a step what they do in a microbenchmark, so between such a rate and its figure stands
one factor. It was found where both are known: on the H200, whose profile is profiles/calibrations/h200.json and whose
rates were fitted to whole steps. The host's figures are those of a small real model's passes, and are taken as they
are: what a layer adds to a pass, less the operators that it is known to hold. The default rates are an average of
hosts, each profile is of one. A card that does a fifth better in a microbenchmark is so expected to do in steps.

How the host's figures are read was chosen after the runs of profiles/measurements/h200_blind, all of the profile's
host: half of them are within 3 % of a dry run priced with it, all within 19 %. They are no blind test of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from estimators.calibration import Calibration, MeasuredLink, Rates
from estimators.device_profile import DeviceProfile, sheet_of
from estimators.hardware import Device

Place = Literal["kernels", "efficiency", "traced", "rates"]
Counts = tuple[tuple[str, float], ...]
"""Names of other rates, and how often."""
HIGHEST_SHARE = 1.0
"""Nothing is faster than its data sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follows:
    """One rate, and the figure that it follows."""

    place: Place
    """Where the rate is: shares of a dry run's kernels or of the formula's, seconds of the one or the other."""
    rate: str
    figures: tuple[str, ...]
    """The least of them counts."""
    factor: float = 1.0
    """The rate of steps over the figure: the card's as found on the H200."""
    holds: Counts = ()
    """What else is in the figure, so many times each; below zero where it is to be added."""

    @property
    def name(self) -> str:
        return f"{self.place}.{self.rate}"


def _rows(place: Place, *rows: tuple[str, str, float]) -> tuple[Follows, ...]:
    """A rate, its figures and the factor."""
    return tuple(
        Follows(place=place, rate=rate, figures=tuple(figures.split()), factor=factor) for rate, figures, factor in rows
    )


def _less(place: Place, rate: str, factor: float = 1.0, figure: str = "", **held: float) -> Follows:
    """A rate of the host, by default by the name of its figure, and how often a dry run's other rates are in that."""
    holds = tuple((f"traced.{name}", count) for name, count in held.items())
    return Follows(place=place, rate=rate, figures=(figure or rate,), factor=factor, holds=holds)


FOLLOWS: tuple[Follows, ...] = (
    *_rows(
        "kernels",
        ("matmul", "matmul_bfloat16", 0.930),  # odder shapes, and power that is shared with what runs between
        ("float32", "matmul_float32", 0.912),
        ("attention", "attention", 1.15),  # heads of 128, which most models have, are faster than 64 and 256
        ("uneven_attention", "uneven_attention", 0.994),
        ("memory", "elementwise", 0.857),  # smaller tensors, some of them strided
        ("dequantize", "dequantize", 1.17),  # larger weights than the one that is timed
        ("int8", "int8", 1.43),  # larger products than the one that is timed
        ("update", "update", 1.17),  # foreach finds some of its tensors in the cache
    ),
    *_rows(
        "efficiency",
        ("matmul", "matmul_bfloat16", 0.952),
        ("attention", "attention", 1.35),  # the formula's share is of fewer kernels
        ("memory", "elementwise", 0.642),  # kernels read and write more tensors than the walk counts
    ),
    *_rows(
        "traced",
        ("kernel_seconds", "kernel_seconds", 1.78),  # the tail of a kernel that fills the card
        ("bitsandbytes_update_flops", "bitsandbytes_update_seconds", 0.854),
        ("operator_seconds", "operator_seconds", 1.0),  # with what a module does beside being called
        ("view_seconds", "view_seconds", 1.0),
        ("module_seconds", "module_seconds", 1.0),
        ("backward_operator_seconds", "backward_operator_seconds", 0.896),  # the figure holds as many views
        ("backward_view_seconds", "backward_operator_seconds", 0.105),
        ("step_seconds", "step_overhead_seconds", 1.0),
    ),
    _less("traced", "adapter_seconds", operator_seconds=7.81, view_seconds=5.85, module_seconds=3.93),
    _less("traced", "nf4_seconds", operator_seconds=1.4, view_seconds=-1.0),
    _less("traced", "int8_seconds", operator_seconds=0.7, view_seconds=-1.0),
    _less("traced", "backward_quantized_seconds", backward_operator_seconds=4.3, backward_view_seconds=-1.0),
    _less("traced", "saved_seconds", operator_seconds=1.09, view_seconds=1.0, module_seconds=0.36,
          backward_view_seconds=0.91),
    _less("rates", "tensor_dispatch_seconds", backward_operator_seconds=0.22),
    # The formula counts fewer calls than a dry run does: each stands for more.
    _less("rates", "forward_dispatch_seconds", 1.22, "operator_seconds", view_seconds=-1.0, module_seconds=-0.33),
    *_rows(
        "rates",
        ("kernel_seconds", "kernel_seconds", 3.57),
        ("bitsandbytes_update_flops", "bitsandbytes_update_seconds", 1.16),
        ("backward_dispatch_seconds", "backward_operator_seconds", 1.155),
        ("adapter_call_seconds", "adapter_seconds", 0.060),  # the formula counts the layer's operators apart
        ("nf4_call_seconds", "nf4_seconds", 1.07),
        ("int8_call_seconds", "int8_seconds", 2.57),
        ("step_overhead_seconds", "step_overhead_seconds", 1.02),
        ("host_link_efficiency", "pinned_to_device pinned_to_host", 0.910),  # blocks are smaller than the one timed
        # The same in both: not measured on the H200 together with steps that it decides.
        ("peer_link_efficiency", "all_reduce all_gather", 1.0),
        ("cpu_adam_seconds_per_parameter", "cpu_adam_seconds", 1.0),
        ("cpu_thread_adam_seconds_per_parameter", "cpu_thread_adam_seconds", 1.0),
        ("nvme_bytes_per_second", "disk_write disk_read", 1.0),
    ),
)  # fmt: skip
"""What a figure holds is what a dry run counts in the small model of runners/microbench/host.py. A backward call of the
formula gets that model's backward pass over as many as the formula counts there; its other calls keep the ratio that
the default rates of both have: a host as those of a dry run say is one as those of the formula say."""
ONLY_OF_NVME, OF_ONE_LINK = "nvme_bytes_per_second", "peer_link_efficiency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A rate as a profile tells it."""

    follows: Follows
    before: float
    now: float


def told(rates: Rates, profile: DeviceProfile, device: Device, *, nvme: bool = False) -> Iterator[Told]:
    """The rates that the figures of a profile tell, before and now; the disk's only where it is known to be NVMe."""
    now = {one.name: rate_of(rates, device, one) for one in FOLLOWS}
    for one in FOLLOWS:
        measured = _measured(one, profile, device)
        if measured is None or (one.rate == ONLY_OF_NVME and not nvme):
            continue
        before = now[one.name]
        own = measured - sum(count * now[name] for name, count in one.holds)
        now[one.name] = one.factor * max(0.0, own)
        if _is_share(one):
            now[one.name] = min(HIGHEST_SHARE, now[one.name])
        yield Told(follows=one, before=before, now=now[one.name])


def calibrated(before: Calibration, profile: DeviceProfile, device: Device, *, nvme: bool = False) -> Calibration:
    """`before` with every rate that the profile tells."""
    rates = before.rates
    for one in told(before.rates, profile, device, nvme=nvme):
        rates = _with_rate(rates, device, one.follows, one.now)
        if one.follows.rate == OF_ONE_LINK and (speed := profile.peer_bytes_per_second):
            rates = replace(rates, measured_link=MeasuredLink(bytes_per_second=speed, efficiency=one.now))
    return replace(before, rates=rates)


def rate_of(rates: Rates, device: Device, one: Follows) -> float:
    return float(getattr(_holders(rates, device)[one.place], one.rate))


def _holders(rates: Rates, device: Device) -> dict[Place, Any]:
    return {
        "kernels": rates.kernels(device), "efficiency": rates.efficiency(device),
        "traced": rates.traced, "rates": rates,
    }  # fmt: skip


def _with_rate(rates: Rates, device: Device, one: Follows, value: float) -> Rates:
    changed = replace(_holders(rates, device)[one.place], **{one.rate: value})
    traced = rates.traced
    put: dict[Place, Callable[[], Rates]] = {
        "rates": lambda: changed,
        "traced": lambda: replace(rates, traced=changed),
        "efficiency": lambda: replace(rates, **{_family(rates.efficiency(device), rates): changed}),
        "kernels": lambda: replace(rates, traced=replace(traced, **{_family(rates.kernels(device), traced): changed})),
    }
    return put[one.place]()


def _family(held: object, holder: Any) -> str:
    return "hopper" if held is holder.hopper else "elsewhere"


def _measured(one: Follows, profile: DeviceProfile, device: Device) -> float | None:
    """The figure as the rate is given: a share of the data sheet, seconds, or float32 operations' worth of time."""
    found = [_figure(name, one, profile, device) for name in one.figures]
    known = [figure for figure in found if figure is not None]
    return min(known) if known and len(known) == len(found) else None


def _figure(name: str, one: Follows, profile: DeviceProfile, device: Device) -> float | None:
    if name == "matmul_bfloat16" and not device.supports_bfloat16:
        name = "matmul_float16"
    figure = profile.figures.get(name)
    if figure is None:
        return None
    if one.rate == "bitsandbytes_update_flops":
        return figure * device.float32_flops_per_second
    if not _is_share(one):
        return figure
    sheet = sheet_of(name, profile, device)
    return figure / sheet if sheet else None


def _is_share(one: Follows) -> bool:
    return one.place in ("kernels", "efficiency") or one.rate.endswith("_efficiency")
