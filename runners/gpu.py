"""One GPU, or one MIG instance, as it is now: memory and who holds it, clocks, links, health."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from estimators.hardware import Device, Gpu, GpuProcess
from estimators.units import GIB, MIB, format_bytes
from runners.host import available_memory, total_memory
from runners.kind import UNKNOWN_CARD, Find, identify, share
from runners.nvml import NOT_SUPPORTED, Card, Driver, Instance, LostGpuError

_INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""Linux's fixed number (PROC_PID_INIT_INO). Elsewhere NVML's process ids mean other processes than /proc's."""
_NVLINK_TO_GPU, _NVLINK_TO_SWITCH = 0, 2
_THROTTLES = {
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
"""nvidia-smi's names of NVML's bits; idling (0x1) is no throttling."""
SLOWDOWNS = {name for name in _THROTTLES.values() if "slowdown" in name}
_COMPUTE_PROHIBITED, _COMPUTE_EXCLUSIVE = 2, 3
_UNEXPLAINED_BYTES, _DRIVER_SHARE_AT_MOST_BYTES = 256 * MIB, 2 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What reading one GPU needs to know besides it."""

    driver: Driver
    driver_version: str | None
    cards: Sequence[Card]
    find: Find
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    total_bytes: int
    free_bytes: int | None
    used_bytes: int | None = None
    reserved_bytes: int | None = None

    @property
    def held_bytes(self) -> int | None:
        """By processes. Drivers disagree on whether `used` includes what they reserve, so it is not used here."""
        return None if self.free_bytes is None else self.total_bytes - self.free_bytes - (self.reserved_bytes or 0)


def read_gpu(around: Surroundings, card: Card, instance: Instance | None) -> Gpu:
    """Everything NVML knows about a card, or about a MIG instance of it.

    Raises:
        LostGpuError: it stopped answering, or the driver withholds what nobody can do without.
    """
    driver, handle = around.driver, instance.handle if instance else card.handle
    device, memory, notes = _read_kind(around, card, instance)
    processes = read_processes(driver, handle, around.root)
    throttles = read_throttles(driver, card.handle)
    return Gpu(
        device=device,
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        used_bytes=memory.used_bytes,
        reserved_bytes=memory.reserved_bytes,
        index=card.index,
        uuid=instance.uuid if instance else card.uuid,
        processes=processes,
        mig_parent_uuid=card.uuid if instance else None,
        driver_version=around.driver_version,
        power_limit_watts=_read_power_limit(driver, card.handle),
        sm_clock_mhz=driver.ask("nvmlDeviceGetClockInfo", card.handle, driver.nvml.NVML_CLOCK_SM),
        memory_clock_mhz=driver.ask("nvmlDeviceGetClockInfo", card.handle, driver.nvml.NVML_CLOCK_MEM),
        max_sm_clock_mhz=driver.ask("nvmlDeviceGetMaxClockInfo", card.handle, driver.nvml.NVML_CLOCK_SM),
        pcie_generation=_first(driver, card.handle, "MaxPcieLinkGeneration", "CurrPcieLinkGeneration"),
        pcie_width=_first(driver, card.handle, "CurrPcieLinkWidth", "MaxPcieLinkWidth"),
        nvlink_peers=() if instance else _read_nvlink_peers(driver, card, around.cards),
        ecc_enabled=_read_ecc(driver, card.handle),
        retired_pages=_read_retired_pages(driver, card.handle),
        throttle_reasons=throttles,
        notes=(*notes, *_tenancy_notes(processes, memory, device), *_health_notes(driver, card.handle, throttles)),
    )


def _read_kind(around: Surroundings, card: Card, instance: Instance | None) -> tuple[Device, _Memory, tuple[str, ...]]:
    if instance:
        return _read_instance_kind(around, card, instance)
    memory, code = ask_memory(around.driver, card.handle)
    if memory is None and code != NOT_SUPPORTED:
        raise LostGpuError(f"the driver does not tell its memory (NVML error {code})")
    unified = _Memory(total_bytes=total_memory(around.root) or 0, free_bytes=available_memory(around.root))
    device, notes = identify(around.driver, card, around.find, (memory or unified).total_bytes or None)
    if memory is None and UNKNOWN_CARD in notes:
        device = replace(device, unified_memory=True)
    if device.unified_memory:
        return _with_unified_memory(device, unified, notes)
    if memory is None:
        raise LostGpuError("the driver does not tell its memory, which this kind of card has")
    return _with_live_memory(device, memory), memory, notes


def _with_unified_memory(
    device: Device, host: _Memory, notes: tuple[str, ...]
) -> tuple[Device, _Memory, tuple[str, ...]]:
    """The GPU allocates from host memory: the driver's own figures, where it has any, are not the limit."""
    if not host.total_bytes:
        raise LostGpuError("it shares the host's memory, and /proc/meminfo does not tell that")
    note = "unified memory: total and free are the host's; allocating too much can hang the machine, not only the job"
    usable = min(device.usable_bytes, host.total_bytes)
    return replace(device, total_bytes=host.total_bytes, usable_bytes=usable), host, (*notes, note)


def _with_live_memory(device: Device, memory: _Memory) -> Device:
    """The catalogue's card with this one's memory: ECC, a virtual GPU or the driver's version change it."""
    if memory.reserved_bytes is not None:
        usable = memory.total_bytes - memory.reserved_bytes
    else:
        usable = min(memory.total_bytes, memory.total_bytes - (device.total_bytes - device.usable_bytes))
    return replace(device, total_bytes=memory.total_bytes, usable_bytes=usable)


def _read_instance_kind(
    around: Surroundings, card: Card, instance: Instance
) -> tuple[Device, _Memory, tuple[str, ...]]:
    memory, code = ask_memory(around.driver, instance.handle)
    if memory is None:
        raise LostGpuError(f"the driver does not tell the memory of MIG instance {instance.uuid} (NVML error {code})")
    parent_memory, _ = ask_memory(around.driver, card.handle)
    parent_total = parent_memory.total_bytes if parent_memory else None
    parent, notes = identify(around.driver, card, around.find, parent_total)
    attributes = around.driver.ask("nvmlDeviceGetAttributes", instance.handle)
    multiprocessors = attributes.multiprocessorCount if attributes else None
    device = share(parent, instance, memory.total_bytes, multiprocessors)
    note = "MIG instance: a single-GPU target; one process can use only one of them"
    return _with_live_memory(device, memory), memory, (*notes, note)


def ask_memory(driver: Driver, handle: Any) -> tuple[_Memory | None, int]:
    """The second version of NVML's figures, which tells what the driver reserves, else the first."""
    info, code = driver.answer("nvmlDeviceGetMemoryInfo", handle, driver.nvml.nvmlMemory_v2)
    reserved = info.reserved if info else None
    if info is None:
        info, code = driver.answer("nvmlDeviceGetMemoryInfo", handle)
    if info is None or not info.total:
        return None, code or NOT_SUPPORTED
    return _Memory(total_bytes=info.total, free_bytes=info.free, used_bytes=info.used, reserved_bytes=reserved), 0


def read_processes(driver: Driver, handle: Any, root: Path) -> tuple[GpuProcess, ...]:
    """Who holds memory, computing or drawing, each process once."""
    used: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics", "MPSCompute"):
        for version in ("_v3", "_v2"):
            found = driver.ask(f"nvmlDeviceGet{kind}RunningProcesses{version}", handle)
            if found is not None:
                break
        for process in found or ():
            known = used.get(process.pid)
            used[process.pid] = known if process.usedGpuMemory is None else max(known or 0, process.usedGpuMemory)
    return tuple(
        GpuProcess(pid=pid, used_bytes=size, name=_process_name(root, pid)) for pid, size in sorted(used.items())
    )


def _process_name(root: Path, pid: int) -> str | None:
    """The kernel's short name, never the command line: that may hold a secret."""
    try:
        if str((root / "proc/self/ns/pid").readlink()) != _INITIAL_PID_NAMESPACE:
            return None
        name = (root / f"proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return "".join(letter if letter.isprintable() else "?" for letter in name) or None


def _first(driver: Driver, handle: Any, *questions: str) -> Any:
    """The first answer. An idle card lowers its PCIe generation, so the highest that card and slot reach goes first."""
    answers = (driver.ask(f"nvmlDeviceGet{question}", handle) for question in questions)
    return next((answer for answer in answers if answer is not None), None)


def _read_power_limit(driver: Driver, handle: Any) -> float | None:
    milliwatts = _first(driver, handle, "EnforcedPowerLimit", "PowerManagementLimit")
    return milliwatts / 1e3 if milliwatts else None


def _read_ecc(driver: Driver, handle: Any) -> bool | None:
    modes = driver.ask("nvmlDeviceGetEccMode", handle)
    return None if modes is None else bool(modes[0])


def _read_retired_pages(driver: Driver, handle: Any) -> int | None:
    """Pages retired for single and double bit errors, or rows remapped, which replaced that in 2020."""
    pages = [driver.ask("nvmlDeviceGetRetiredPages", handle, cause) for cause in (0, 1)]
    if None not in pages:
        return sum(len(retired) for retired in pages)
    rows = driver.ask("nvmlDeviceGetRemappedRows", handle)
    return None if rows is None else int(rows[0] + rows[1])


def read_throttles(driver: Driver, handle: Any) -> tuple[str, ...]:
    bits = _first(driver, handle, "CurrentClocksEventReasons", "CurrentClocksThrottleReasons") or 0
    return tuple(name for bit, name in _THROTTLES.items() if bits & bit)


def _read_nvlink_peers(driver: Driver, card: Card, cards: Sequence[Card]) -> tuple[str, ...]:
    """GPUs at the other end of a link, or behind the same switches; a bus id stands for one that is not listed."""
    direct, switched = set[str](), False
    for link in range(driver.nvml.NVML_NVLINK_MAX_LINKS):
        if driver.ask("nvmlDeviceGetNvLinkState", card.handle, link) != 1:
            continue
        kind = driver.ask("nvmlDeviceGetNvLinkRemoteDeviceType", card.handle, link)
        switched = switched or kind == _NVLINK_TO_SWITCH
        remote = driver.ask("nvmlDeviceGetNvLinkRemotePciInfo", card.handle, link)
        if remote is not None and kind in (_NVLINK_TO_GPU, None):
            direct.add(remote.busId.decode().lower() if isinstance(remote.busId, bytes) else remote.busId.lower())
    others = [other for other in cards if other.index != card.index]
    reached = [other for other in others if other.bus_id in direct or (switched and _p2p(driver, card, other))]
    unlisted = sorted(direct - {other.bus_id for other in cards})
    return (*(other.uuid or other.bus_id or other.title for other in reached), *unlisted)


def _p2p(driver: Driver, card: Card, other: Card) -> bool:
    question = ("nvmlDeviceGetP2PStatus", card.handle, other.handle, driver.nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    return bool(driver.ask(*question) == driver.nvml.NVML_P2P_STATUS_OK)


def _tenancy_notes(processes: tuple[GpuProcess, ...], memory: _Memory, device: Device) -> list[str]:
    notes = [f"in use: {_describe(process)}" for process in processes]
    if memory.held_bytes is None or device.unified_memory:
        return notes
    slack = _UNEXPLAINED_BYTES if memory.reserved_bytes is not None else _DRIVER_SHARE_AT_MOST_BYTES
    explained = sum(process.used_bytes or 0 for process in processes)
    if all(process.used_bytes is not None for process in processes) and memory.held_bytes - explained > slack:
        size = format_bytes(memory.held_bytes - explained)
        notes.append(f"in use: {size} by processes that the driver does not show here, as in another container")
    return notes


def _describe(process: GpuProcess) -> str:
    size = "memory that the driver does not tell" if process.used_bytes is None else format_bytes(process.used_bytes)
    return f"process {process.pid}{f' ({process.name})' if process.name else ''} holds {size}"


def _health_notes(driver: Driver, handle: Any, throttles: tuple[str, ...]) -> list[str]:
    notes = []
    if slowdowns := [name for name in throttles if name in SLOWDOWNS]:
        notes.append(f"slowed down now ({', '.join(slowdowns)}): what is measured now is too slow")
    width, widest = (driver.ask(f"nvmlDeviceGet{which}PcieLinkWidth", handle) for which in ("Curr", "Max"))
    if width and widest and width < widest:
        notes.append(f"PCIe runs at x{width} of x{widest}")
    rows = driver.ask("nvmlDeviceGetRemappedRows", handle) or (0, 0, 0, 0)
    if rows[2] or driver.ask("nvmlDeviceGetRetiredPagesPendingStatus", handle) == 1:
        notes.append("memory errors are waiting to be mapped out: reset the GPU")
    if rows[3]:
        notes.append("mapping out bad memory rows failed: have the card replaced")
    mode = driver.ask("nvmlDeviceGetComputeMode", handle)
    if mode == _COMPUTE_EXCLUSIVE:
        notes.append("compute mode is exclusive: only one process at a time can use it")
    if mode == _COMPUTE_PROHIBITED:
        notes.append("compute mode is prohibited: CUDA cannot use it until nvidia-smi --compute-mode=0")
    return notes
