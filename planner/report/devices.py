"""The GPU catalogue as tables."""

from collections.abc import Sequence

from estimators.hardware import Device, Link
from estimators.units import format_bytes
from planner.report.figures import clean, gib, number_of
from planner.report.page import BLANK, Column, Line, labelled, paragraph, table

CONFIDENCES = {
    "verified": "seen in logs, or agreeing with a stored table",
    "derived": "from a rule that its source names",
    "memory": "from memory, to be checked",
}


def devices_page(devices: Sequence[Device], width: int) -> list[Line]:
    """One row a kind of GPU."""
    columns = (
        Column(title="name"),
        Column(title="GiB", right=True),
        Column(title="usable", right=True),
        Column(title="GB/s", right=True),
        Column(title="bf16 TFLOP/s", right=True),
        Column(title="fp8", right=True, vital=False),
        Column(title="sm", right=True),
        Column(title="NVLink GB/s", right=True),
        Column(title="W", right=True),
        Column(title="figures", vital=False),
    )
    note = "GiB as NVML has them; dense rates; NVLink in one direction; 'plan gpus NAME' gives sources"
    page = table(columns, [_row(device) for device in devices], width)
    return [*page, BLANK, *paragraph(f"{number_of(len(devices), 'kind')} of GPU. {note}.", width, "dim")]


def device_page(device: Device, width: int) -> list[Line]:
    """Every figure of one GPU, with its source below it."""
    capability = ".".join(map(str, device.compute_capability))
    page: list[Line] = [((device.name, "bold"), (f"  {clean(device.title)}", ""))]
    page += paragraph(f"{CONFIDENCES[device.confidence]}", width, "dim")
    rows = [
        ("memory", format_bytes(device.total_bytes), "total_bytes"),
        ("usable by CUDA", format_bytes(device.usable_bytes), "usable_bytes"),
        ("memory bandwidth", _per_second(device.memory_bytes_per_second), "memory_bytes_per_second"),
        ("fp16, dense", _flops(device.float16_flops_per_second), "float16_flops_per_second"),
        ("bf16, dense", _flops(device.bfloat16_flops_per_second), "bfloat16_flops_per_second"),
        ("fp8, dense", _flops(device.float8_flops_per_second), "float8_flops_per_second"),
        ("fp32", _flops(device.float32_flops_per_second), "float32_flops_per_second"),
        ("compute capability", capability, "compute_capability"),
        ("multiprocessors", str(device.multiprocessors), "multiprocessors"),
        ("to the host", _link(device.host_link), "host_link"),
        ("to other GPUs", _link(device.peer_link), "peer_link"),
        ("power", f"{device.power_watts:g} W", "power_watts"),
    ]
    columns = (
        Column(title="figure", style="dim"),
        Column(title="value", right=True),
        Column(title="source", flows=True),
    )
    cells = [(name, value, (clean(device.sources.get(field, "no source")), "dim")) for name, value, field in rows]
    kind = [("kind", "data-centre card" if device.data_centre else "workstation or consumer card")]
    kind += [("memory is", "shared with the host")] if device.unified_memory else []
    return [*page, BLANK, *table(columns, cells, width), BLANK, *labelled(kind, width)]


def _row(device: Device) -> list[str]:
    return [
        device.name,
        gib(device.total_bytes),
        gib(device.usable_bytes),
        f"{device.memory_bytes_per_second / 1e9:,.0f}",
        _tera(device.bfloat16_flops_per_second),
        _tera(device.float8_flops_per_second),
        ".".join(map(str, device.compute_capability)),
        f"{device.peer_link.bytes_per_second / 1e9:,.0f}" if device.peer_link else "-",
        f"{device.power_watts:g}",
        device.confidence,
    ]


def _tera(flops: float | None) -> str:
    return f"{flops / 1e12:,.4g}" if flops else "-"


def _flops(flops: float | None) -> str:
    return f"{flops / 1e12:,.4g} TFLOP/s" if flops else "none"


def _per_second(size: float) -> str:
    return f"{size / 1e9:,.4g} GB/s"


def _link(link: Link | None) -> str:
    return f"{link.name}, {_per_second(link.bytes_per_second)}" if link else "none"
