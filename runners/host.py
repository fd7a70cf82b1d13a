"""The machine around the GPUs: memory, processors and disk, as its control groups allow them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from estimators.hardware import Host
from estimators.units import KIB

_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes "no limit" as the largest multiple of a page, far above any machine."""


def read_host(root: Path = Path("/"), disk: Path | None = None) -> Host:
    """The host as it is now. `disk` is where a job would write (default: the current folder); `root` holds /proc."""
    return Host(
        memory_bytes=available_memory(root),
        disk_bytes=free_disk(disk or Path.cwd()),
        cpu_cores=usable_cores(root),
        nvme=has_nvme(root),
    )


def total_memory(root: Path = Path("/")) -> int | None:
    """All the memory that the kernel manages."""
    return _meminfo(root, "MemTotal")


def available_memory(root: Path = Path("/")) -> int | None:
    """What can be allocated now: the kernel's figure, or what the tightest control group leaves."""
    kernel = _meminfo(root, "MemAvailable")
    rooms = [room for folder in control_groups(root, "memory") for room in _memory_rooms(folder)]
    return min([*rooms, *([] if kernel is None else [kernel])], default=None)


def usable_cores(root: Path = Path("/")) -> int | None:
    """Processors that this process may keep busy: its affinity, or the tightest quota, but at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [quota for folder in control_groups(root, "cpu") for quota in _cpu_quotas(folder)]
    cores = min([*quotas, *([] if affinity is None else [affinity])], default=None)
    return None if cores is None else max(1, int(cores))


def free_disk(path: Path) -> int | None:
    """Bytes that a file under `path` could take; the path itself need not exist yet."""
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def has_nvme(root: Path = Path("/")) -> bool | None:
    """Whether the kernel has an NVMe disk; None where it does not say."""
    try:
        return any(entry.name.startswith("nvme") for entry in (root / "sys/block").iterdir())
    except OSError:
        return None


def _meminfo(root: Path, key: str) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == key and words and words[0].isdecimal():
            return int(words[0]) * KIB
    return None


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders, of either version, of this process's control group and its ancestors for one controller.

    A container may see a path that does not exist below its own mount, or leads out of it: there only the mount itself
    counts, which is the container's group.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mount = _mount(root / "sys/fs/cgroup", controllers, controller)
        if mount is None:
            continue
        parts = [] if ".." in path.split("/") else [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(*parts[:depth])


def _mount(base: Path, controllers: str, controller: str) -> Path | None:
    """Where a line of /proc/self/cgroup is mounted, if it governs the controller."""
    if not controllers:
        return base if (base / "cgroup.controllers").exists() else base / "unified"
    if controller not in controllers.split(","):
        return None
    return base / controllers if (base / controllers).exists() else base / controller


def _memory_rooms(folder: Path) -> Iterator[int]:
    """What each limit of one group leaves; the page cache that the kernel would drop first counts as free."""
    for limit_file, usage_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.high", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(folder / limit_file)
        if limit is None or limit >= _NO_LIMIT:
            continue
        used = _number(folder / usage_file) or 0
        yield max(0, limit - max(0, used - _statistic(folder / "memory.stat", cache_key)))


def _cpu_quotas(folder: Path) -> Iterator[float]:
    words = _text(folder / "cpu.max").split()
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    if quota is not None and period:
        yield quota / period


def _statistic(path: Path, key: str) -> int:
    words = (line.split() for line in _text(path).splitlines())
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == key and pair[1].isdecimal()), 0)


def _number(path: Path) -> int | None:
    """The count in a one-line file; None for a missing file, "max" or -1, which mean no limit."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
