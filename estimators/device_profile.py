"""The profile of one machine's GPU and host: what `plan calibrate` measured, as the next estimate's rates.

A microbenchmark and a training step rarely reach the same: a step's kernels run hot, on odd shapes and between others,
and its Python is colder. estimators/profiled.py says what an estimate makes of each figure.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from estimators.errors import BadInput
from estimators.fingerprint import Machine
from estimators.hardware import Device
from estimators.strict import decoded, encoded

SCHEMA_VERSION = 1
Unit = Literal["FLOP/s", "B/s", "s"]
Sheet = Callable[[Device], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What one microbenchmark finds."""

    title: str
    unit: Unit
    sheet: Sheet = lambda device: None
    """The data sheet's figure; None where it has none."""


def _half(device: Device) -> float:
    """The dense rate of 16-bit products: bfloat16 where the card has it."""
    return device.bfloat16_flops_per_second or device.float16_flops_per_second


def _memory(device: Device) -> float:
    return device.memory_bytes_per_second


def _host_link(device: Device) -> float:
    return device.host_link.bytes_per_second


QUANTITIES: dict[str, Quantity] = {
    "matmul_bfloat16": Quantity(
        title="products in bfloat16", unit="FLOP/s", sheet=lambda device: device.bfloat16_flops_per_second
    ),
    "matmul_float16": Quantity(
        title="products in float16", unit="FLOP/s", sheet=lambda device: device.float16_flops_per_second
    ),
    "matmul_float32": Quantity(
        title="products in float32", unit="FLOP/s", sheet=lambda device: device.float32_flops_per_second
    ),
    "int8": Quantity(title="8-bit products", unit="FLOP/s", sheet=lambda device: 2 * _half(device)),
    "attention": Quantity(title="attention, heads of 64, 128, 256", unit="FLOP/s", sheet=_half),
    "uneven_attention": Quantity(title="attention, heads of 80, 96", unit="FLOP/s", sheet=_half),
    "elementwise": Quantity(title="elementwise", unit="B/s", sheet=_memory),
    "copy": Quantity(title="copies on the GPU", unit="B/s", sheet=_memory),
    "narrow": Quantity(title="products of an adapter", unit="B/s", sheet=_memory),
    "dequantize": Quantity(title="NF4 dequantisation", unit="B/s", sheet=_memory),
    "update": Quantity(title="fused AdamW", unit="B/s", sheet=_memory),
    "bitsandbytes_update_seconds": Quantity(title="8-bit AdamW, a parameter", unit="s"),
    "kernel_seconds": Quantity(title="kernel to kernel", unit="s"),
    "operator_seconds": Quantity(title="an operator forward", unit="s"),
    "view_seconds": Quantity(title="a view", unit="s"),
    "module_seconds": Quantity(title="a module's call", unit="s"),
    "adapter_seconds": Quantity(title="a layer of PEFT", unit="s"),
    "nf4_seconds": Quantity(title="a 4-bit layer", unit="s"),
    "int8_seconds": Quantity(title="an 8-bit layer", unit="s"),
    "backward_operator_seconds": Quantity(title="an operator backward", unit="s"),
    "backward_quantized_seconds": Quantity(title="a 4-bit layer backward", unit="s"),
    "saved_seconds": Quantity(title="a tensor kept by checkpointing", unit="s"),
    "tensor_dispatch_seconds": Quantity(title="a tensor in clipping and AdamW", unit="s"),
    "step_overhead_seconds": Quantity(title="the Trainer's own, a step", unit="s"),
    "pinned_to_device": Quantity(title="host to GPU, pinned", unit="B/s", sheet=_host_link),
    "pinned_to_host": Quantity(title="GPU to host, pinned", unit="B/s", sheet=_host_link),
    "pageable_to_device": Quantity(title="host to GPU, pageable", unit="B/s", sheet=_host_link),
    "pageable_to_host": Quantity(title="GPU to host, pageable", unit="B/s", sheet=_host_link),
    "all_reduce": Quantity(title="all-reduce, a ring's link", unit="B/s"),
    "all_gather": Quantity(title="all-gather, a ring's link", unit="B/s"),
    "collective_latency": Quantity(title="the least all-reduce", unit="s"),
    "cpu_adam_seconds": Quantity(title="CPU Adam on all cores, a parameter", unit="s"),
    "cpu_thread_adam_seconds": Quantity(title="CPU Adam on one thread, a parameter", unit="s"),
    "disk_write": Quantity(title="disk, written", unit="B/s"),
    "disk_read": Quantity(title="disk, read", unit="B/s"),
}
BETWEEN_GPUS = ("all_reduce", "all_gather")
"""Their data sheet is that of the link, which not every machine with the card has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What was measured of one kind of GPU in one machine."""

    gpu: str
    """Catalogue name."""
    machine: Machine
    figures: dict[str, float] = field(hash=False)
    """By name of QUANTITIES, in its unit."""
    missing: dict[str, str] = field(default_factory=dict, hash=False)
    """Why a figure is not there."""
    notes: tuple[str, ...] = ()
    """Why the figures are not to be trusted: a co-tenant, a slowdown."""
    peer_bytes_per_second: float | None = None
    """What the link that the collectives crossed moves by its data sheet: NVLink only where it joins all the GPUs."""
    versions: dict[str, str] = field(default_factory=dict, hash=False)
    seconds_since_epoch: float
    seconds: float
    """How long it took."""
    command: str = "plan calibrate"

    @property
    def teaches(self) -> bool:
        return not self.notes and bool(self.figures)


def profile_document(profile: DeviceProfile) -> dict[str, object]:
    """As it is stored."""
    return {"schema_version": SCHEMA_VERSION, **encoded(profile)}


def profile_from_document(document: object) -> DeviceProfile:
    """
    Raises:
        BadInput: it is none, of another schema, or a key or figure of it is wrong; the message names it.
    """
    if not isinstance(document, dict):
        raise BadInput("a device profile must be an object")
    rest = dict(document)
    if (version := rest.pop("schema_version", None)) != SCHEMA_VERSION:
        raise BadInput(f"schema_version must be {SCHEMA_VERSION}, not {ascii(version)[:40]}")
    profile = decoded(DeviceProfile, rest, "device profile")
    for name, figure in profile.figures.items():
        if name not in QUANTITIES:
            raise BadInput(f"device profile: unknown figure {name[:60]!a}")
        if figure <= 0:
            raise BadInput(f"device profile: {name} must be above zero, not {figure:g}")
    if (speed := profile.peer_bytes_per_second) is not None and speed <= 0:
        raise BadInput(f"device profile: peer_bytes_per_second must be above zero, not {speed:g}")
    return profile


def sheet_of(name: str, profile: DeviceProfile, device: Device) -> float | None:
    """The data sheet's figure of what was measured; between GPUs, of the link that was."""
    return profile.peer_bytes_per_second if name in BETWEEN_GPUS else QUANTITIES[name].sheet(device)
