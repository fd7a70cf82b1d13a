"""What the probe found, as a page."""

from typing import TYPE_CHECKING

from estimators.hardware import Gpu, GpuProcess, Host
from estimators.units import format_bytes
from planner.report.figures import clean, number_of
from planner.report.page import Line, labelled, paragraph, title

if TYPE_CHECKING:
    from runners.probe import Probe

UNKNOWN = "unknown"


def probe_page(probe: "Probe", width: int) -> list[Line]:
    """Each GPU, what is wrong, and the host."""
    driver = f", driver {clean(probe.driver_version)}" if probe.driver_version else ""
    hidden = f", {number_of(probe.hidden, 'more')} hidden by CUDA_VISIBLE_DEVICES" if probe.hidden else ""
    head = f"{number_of(len(probe.gpus), 'GPU')}{driver}{hidden}"
    if probe.absent:
        head = f"No GPU here: {clean(probe.absent)}"
    page = paragraph(head, width, "bold")
    for text in probe.lost:
        page += paragraph(clean(text), width, "bad", indent=2)
    for gpu in probe.gpus:
        page += _gpu(gpu, width)
    return [*page, *title("Host"), *labelled(_host(probe.host), width)]


def _gpu(gpu: Gpu, width: int) -> list[Line]:
    index = "MIG instance" if gpu.mig_parent_uuid else "GPU" if gpu.index is None else f"GPU {gpu.index}"
    page = title(f"{index}: {clean(gpu.device.title)}", f"{gpu.device.name}, {clean(gpu.uuid or 'no UUID')}", width)
    page += labelled([row for row in _rows(gpu) if row[1]], width)
    for note in gpu.notes:
        page += paragraph(clean(note), width, "warn", indent=2, bullet="· ")
    return page


def _rows(gpu: Gpu) -> list[tuple[str, str]]:
    free = "the driver does not say" if gpu.free_bytes is None else format_bytes(gpu.free_bytes)
    major, minor = gpu.device.compute_capability
    return [
        ("free", f"{free} of {format_bytes(gpu.total_bytes)}"),
        ("held by", ", ".join(map(_process, gpu.processes))),
        ("compute", f"capability {major}.{minor}, {gpu.device.multiprocessors} multiprocessors"),
        ("clocks", _clocks(gpu)),
        ("power limit", "" if gpu.power_limit_watts is None else f"{gpu.power_limit_watts:g} W"),
        ("PCIe", f"generation {gpu.pcie_generation}, {gpu.pcie_width} lanes" if gpu.pcie_generation else ""),
        ("NVLink", f"to {number_of(len(gpu.nvlink_peers), 'peer')}" if gpu.nvlink_peers else ""),
        ("ECC", "" if gpu.ecc_enabled is None else "on" if gpu.ecc_enabled else "off"),
        ("retired pages", f"{gpu.retired_pages}" if gpu.retired_pages else ""),
        ("throttled by", clean(", ".join(gpu.throttle_reasons))),
    ]


def _process(process: GpuProcess) -> str:
    size = "unknown size" if process.used_bytes is None else format_bytes(process.used_bytes)
    return f"{clean(process.name or 'process')} (pid {process.pid}, {size})"


def _clocks(gpu: Gpu) -> str:
    clocks = (("SM", gpu.sm_clock_mhz), ("SM at most", gpu.max_sm_clock_mhz), ("memory", gpu.memory_clock_mhz))
    return ", ".join(f"{name} {mhz} MHz" for name, mhz in clocks if mhz is not None)


def _host(host: Host) -> list[tuple[str, str]]:
    return [
        ("memory available", UNKNOWN if host.memory_bytes is None else format_bytes(host.memory_bytes)),
        ("processors", UNKNOWN if host.cpu_cores is None else str(host.cpu_cores)),
        ("disk free here", UNKNOWN if host.disk_bytes is None else format_bytes(host.disk_bytes)),
        ("NVMe", UNKNOWN if host.nvme is None else "yes" if host.nvme else "no"),
    ]
