"""The GPUs and the host at hand, asked through NVML alone: no CUDA context, so the probe itself holds no memory."""

import importlib.metadata
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from estimators.catalogue import find_device
from estimators.errors import NoUsableGpu
from estimators.hardware import Gpu, Host
from runners import nvml
from runners.gpu import Surroundings, read_gpu
from runners.host import read_host
from runners.kind import Find
from runners.nvml import Card, Driver, LostGpuError
from runners.visible import VARIABLE, Pick, uses_ordinals, visible

_BINDING = "nvidia-ml-py"
_NEEDED = (
    "NVMLError", "nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetName",
    "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo", "nvmlMemory_v2", "nvmlDeviceGetMigMode", "nvmlDeviceGetNumGpuCores",
    "NVML_CLOCK_SM", "NVML_CLOCK_MEM", "NVML_NVLINK_MAX_LINKS", "NVML_P2P_CAPS_INDEX_NVLINK", "NVML_P2P_STATUS_OK",
)  # fmt: skip
"""What older modules of the same name lack."""
_ORDER = "CUDA_DEVICE_ORDER"
_KNOWN_ORDERS = ("FASTEST_FIRST", "PCI_BUS_ID")
_DEVICE_FILES = ("nvidia[0-9]*", "nvidiactl", "dxg")
_ASSUMED = (
    f"different cards and {VARIABLE} by ordinal: which card that is, is assumed (CUDA_DEVICE_ORDER=PCI_BUS_ID fixes it)"
)
_AFTER_LOSS = f"a GPU of this machine is lost and {VARIABLE} is by ordinal: which card that is, is assumed"
_NO_INSTANCE = "in MIG mode but without an instance: create one (nvidia-smi mig -cgi … -C), or turn MIG off"
_WSL = "WSL: beyond its memory the driver spills into host memory, slowly, instead of failing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is at hand. No GPU is an answer, in `absent`; a driver that is there but broken is an error."""

    gpus: tuple[Gpu, ...]
    """Those that CUDA_VISIBLE_DEVICES shows, in CUDA's order; each MIG instance counts as one."""
    hidden: int
    """How many it hides."""
    host: Host
    driver_version: str | None
    absent: str | None
    """Why there is no GPU, in one line; None where there is one."""
    lost: tuple[str, ...] = ()
    """A line for each GPU that cannot be used, with the cause."""


def probe(
    environment: Mapping[str, str] = os.environ,
    *,
    find: Find = find_device,
    root: Path = Path("/"),
    disk: Path | None = None,
) -> Probe:
    """The GPUs that a job started with this environment would see, and the host around them.

    Args:
        environment: for CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER.
        find: from a name and NVML's total to a Device; by default the catalogue's.
        root: what holds /proc, /sys and /dev.
        disk: where a job would write; by default the current folder.

    Raises:
        NoUsableGpu: a driver is installed but broken, or none of its GPUs can be used.
    """
    binding = load_binding()
    host = read_host(root, disk)
    try:
        with session(binding) as driver:
            return _probe(driver, environment, find, root, host)
    except binding.NVMLError as error:
        absent = _why_absent(int(error.value), root)
        if absent is None:
            raise NoUsableGpu(f"no usable GPU: {nvml.explain(int(error.value), str(error))}") from error
    return Probe(gpus=(), hidden=0, host=host, driver_version=None, absent=absent)


def load_binding() -> Any:
    """The module pynvml, which several distributions offer, if it is the one that works."""
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError as error:
        raise NoUsableGpu(f"the Python package {_BINDING} cannot be imported: pip install {_BINDING}") from error
    missing = [name for name in _NEEDED if not hasattr(pynvml, name)]
    if not missing:
        return pynvml
    owners = importlib.metadata.packages_distributions().get("pynvml", [])
    foreign = sorted({owner for owner in owners if owner != _BINDING})
    if foreign:
        remedy = f"comes from {', '.join(foreign)}: pip uninstall {' '.join(foreign)}, then reinstall {_BINDING}"
    else:
        remedy = f"is too old: pip install --upgrade {_BINDING}"
    raise NoUsableGpu(f"the Python module pynvml lacks {missing[0]} and {remedy}")


@contextmanager
def session(binding: Any) -> Iterator[Driver]:
    binding.nvmlInit()
    try:
        yield Driver(binding)
    finally:
        with suppress(binding.NVMLError):
            binding.nvmlShutdown()


def _why_absent(code: int, root: Path) -> str | None:
    """The reason why there is no GPU to speak of, or None where the driver is there and broken."""
    files = sorted(path.name for pattern in _DEVICE_FILES for path in (root / "dev").glob(pattern))
    if code == nvml.LIBRARY_NOT_FOUND:
        hint = (
            f", although /dev/{files[0]} exists: a container needs the driver's 'utility' capability" if files else ""
        )
        return f"no NVIDIA driver (libnvidia-ml.so.1 not found{hint})"
    if code == nvml.DRIVER_NOT_LOADED and not files:
        return "the NVIDIA driver is installed but not loaded, and there is no /dev/nvidia* device"
    if code in (nvml.NOT_FOUND, nvml.GPU_NOT_FOUND):
        return "the driver reports no GPU"
    return None


def _probe(driver: Driver, environment: Mapping[str, str], find: Find, root: Path, host: Host) -> Probe:
    order, value = environment.get(_ORDER) or "FASTEST_FIRST", environment.get(VARIABLE)
    listed, dead = nvml.list_cards(driver, driver.nvml.nvmlDeviceGetCount())
    cards, guessed = nvml.cuda_order(driver, listed, order)
    names = [card.cuda_names() for card in cards]
    targets, picks = visible(None, names), visible(value, names) if order in _KNOWN_ORDERS else []
    version = driver.ask("nvmlSystemGetDriverVersion")
    around = Surroundings(driver=driver, driver_version=version, cards=cards, find=find, root=root)
    gpus, unread = _read_picked(around, picks)
    lost = (*unread, *dead, *(f"{card.title}: {_NO_INSTANCE}" for card in cards if card.instances == ()))
    if lost and not gpus and (picks or not targets):
        raise NoUsableGpu(f"no usable GPU: {lost[0]}{f' (and {len(lost) - 1} more)' if len(lost) > 1 else ''}")
    notes = _shared_notes(uses_ordinals(value), guessed, bool(dead), root)
    return Probe(
        gpus=tuple(replace(gpu, notes=(*gpu.notes, *notes)) for gpu in gpus),
        hidden=len(targets) - len(picks),
        host=host,
        driver_version=version,
        absent=None if picks else _why_none(len(targets), value, order),
        lost=lost,
    )


def _read_picked(around: Surroundings, picks: Sequence[Pick]) -> tuple[list[Gpu], list[str]]:
    gpus, unread = [], []
    for place, number in picks:
        card = around.cards[place]
        try:
            gpus.append(read_gpu(around, card, _instance(card, number)))
        except LostGpuError as lost:
            unread.append(f"{card.title}: {lost}")
    return gpus, unread


def _instance(card: Card, number: int | None) -> nvml.Instance | None:
    return None if number is None or card.instances is None else card.instances[number]


def _why_none(count: int, value: str | None, order: str) -> str:
    if not count:
        return "the driver reports no GPU"
    which = "the only GPU" if count == 1 else f"all {count} GPUs"
    if order not in _KNOWN_ORDERS:
        return f"{_ORDER}={order[:60]!r} hides {which}: CUDA knows only {' and '.join(_KNOWN_ORDERS)}"
    return f"{VARIABLE} hides {which} (it is {(value or '')[:60]!r})"


def _shared_notes(by_ordinal: bool, guessed: bool, any_failed: bool, root: Path) -> list[str]:
    """What holds for every GPU of this machine."""
    notes = [_ASSUMED] if by_ordinal and guessed else []
    notes += [_AFTER_LOSS] if by_ordinal and any_failed else []
    return notes + ([_WSL] if (root / "dev/dxg").exists() else [])
