"""What a machine may do faster or slower than the default rates say: each knob turns the rates that share one cause."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from estimators.calibration import Efficiency, Rates
from estimators.hardware import Device
from estimators.traced_rates import TracedRates

LEAST, MOST = 0.25, 4.0
"""A machine is not believed to be four times as fast or as slow as expected: such a run was disturbed."""
HIGHEST_EFFICIENCY = 1.0
"""Nothing is faster than its data sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """Rates that one cause moves together. A factor of 1.2 on it means a fifth more seconds."""

    name: str
    efficiency: str = ""
    """A field of the device's Efficiency, which falls as seconds rise."""
    link: str = ""
    """A field of Rates that falls as seconds rise."""
    seconds: tuple[str, ...] = ()
    """Fields of Rates that are seconds."""
    spread: float
    """Standard deviation of the factor's logarithm between machines with a card that was measured."""
    common: bool = True
    """Whether it takes part in what slows a whole machine down: a power limit, an older or a busy host."""


DISPATCH = (
    "forward_dispatch_seconds", "backward_dispatch_seconds", "adapter_call_seconds", "nf4_call_seconds",
    "int8_call_seconds", "expert_call_seconds", "step_overhead_seconds", "tensor_dispatch_seconds",
    "gradient_hook_seconds", "module_hook_seconds", "unit_hook_seconds", "dtensor_seconds",
)  # fmt: skip
CPU_ADAM = ("cpu_adam_seconds_per_parameter", "cpu_thread_adam_seconds_per_parameter")
KNOBS = (
    Knob(name="matrix products", efficiency="matmul", spread=0.08),
    Knob(name="attention", efficiency="attention", spread=0.08),
    Knob(name="memory traffic", efficiency="memory", spread=0.08),
    Knob(name="issuing kernels", seconds=DISPATCH, spread=0.25),
    Knob(name="links between GPUs", link="peer_link_efficiency", spread=0.2, common=False),
    Knob(name="copies to the host", link="host_link_efficiency", spread=0.2, common=False),
    Knob(name="CPU Adam", seconds=CPU_ADAM, spread=0.3, common=False),
)
"""The spread of issuing kernels is that of dispatch-bound steps that were measured again on other hosts of the same
kind (they repeat within 25 %); that of the card is what power limits and drivers move."""


def turned(rates: Rates, device: Device, factors: Mapping[str, float]) -> Rates:
    """The rates of a machine that takes so many times as long, by the name of the knob; within bounds."""
    changes: dict[str, float] = {}
    shares: dict[str, float] = {}
    reached = rates.efficiency(device)
    for knob in KNOBS:
        factor = _bounded_factor(factors, knob.name)
        if knob.efficiency:
            shares[knob.efficiency] = min(HIGHEST_EFFICIENCY, getattr(reached, knob.efficiency) / factor)
        if knob.link:
            changes[knob.link] = min(HIGHEST_EFFICIENCY, getattr(rates, knob.link) / factor)
        changes |= {name: getattr(rates, name) * factor for name in knob.seconds}
    traced = _turned_traced(rates, device, factors)
    changed = replace(rates, traced=traced, **changes)  # type: ignore[arg-type]
    return _with_efficiency(changed, device, replace(reached, **shares))


TRACED = {
    "matrix products": ("matmul", "float32", "int8"),
    "attention": ("attention", "uneven_attention"),
    "memory traffic": ("memory", "dequantize", "update"),
}
"""Shares of what a dry run tells apart, by the knob that turns them."""
TRACED_DISPATCH = (
    "operator_seconds", "view_seconds", "module_seconds", "adapter_seconds", "nf4_seconds", "int8_seconds",
    "backward_operator_seconds", "backward_view_seconds", "backward_quantized_seconds", "saved_seconds",
    "step_seconds",
)  # fmt: skip


def _turned_traced(rates: Rates, device: Device, factors: Mapping[str, float]) -> TracedRates:
    """The same machine's rates for what a dry run counts."""
    kernels = rates.kernels(device)
    shares = {
        name: min(HIGHEST_EFFICIENCY, getattr(kernels, name) / _bounded_factor(factors, knob))
        for knob, names in TRACED.items()
        for name in names
    }
    issuing = _bounded_factor(factors, "issuing kernels")
    host = {name: getattr(rates.traced, name) * issuing for name in TRACED_DISPATCH}
    family = "hopper" if kernels is rates.traced.hopper else "elsewhere"
    return replace(rates.traced, **{family: replace(kernels, **shares)}, **host)  # type: ignore[arg-type]


def _bounded_factor(factors: Mapping[str, float], knob: str) -> float:
    return min(MOST, max(LEAST, factors.get(knob, 1.0)))


def figure_of(knob: Knob, rates: Rates, device: Device) -> float:
    """The one figure that stands for the knob: its efficiency, or its first rate."""
    if knob.efficiency:
        return float(getattr(rates.efficiency(device), knob.efficiency))
    return float(getattr(rates, knob.link or knob.seconds[0]))


def traced_figure_of(knob: Knob, rates: Rates, device: Device) -> float:
    """The one figure of a dry run's rates that stands for the knob; the formula's where the two share it."""
    if knob.name in TRACED:
        return float(getattr(rates.kernels(device), TRACED[knob.name][0]))
    return rates.traced.operator_seconds if knob.seconds == DISPATCH else figure_of(knob, rates, device)


def bounded(logarithm: float) -> float:
    """The logarithm of a factor, within what is believed."""
    return min(math.log(MOST), max(math.log(LEAST), logarithm))


def _with_efficiency(rates: Rates, device: Device, efficiency: Efficiency) -> Rates:
    """`rates` with what kernels reach on a device of that family."""
    hopper = rates.efficiency(device) is rates.hopper
    return replace(rates, hopper=efficiency) if hopper else replace(rates, elsewhere=efficiency)
