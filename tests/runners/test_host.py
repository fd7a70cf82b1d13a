"""What the host offers is what its control groups leave, on trees that stand for /proc and /sys."""

import os
from pathlib import Path

import pytest

from runners.host import available_memory, free_disk, has_nvme, read_host, total_memory, usable_cores

GIB, KIB_PER_GIB = 1 << 30, 1 << 20
UNLIMITED_V1 = 9223372036854771712


def _tree(root: Path, cgroup: str, files: dict[str, object], available_gib: int | None = 100) -> Path:
    lines = [f"MemTotal:       {128 * KIB_PER_GIB} kB", "MemFree:        1 kB"]
    lines += [] if available_gib is None else [f"MemAvailable:   {available_gib * KIB_PER_GIB} kB"]
    contents = {"proc/meminfo": "\n".join(lines), "proc/self/cgroup": cgroup}
    contents |= {f"sys/fs/cgroup/{path}": str(content) for path, content in files.items()}
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{content}\n", encoding="utf-8")
    return root


V1 = "9:name=systemd:/x\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc"
MEMORY_CASES: dict[str, tuple[str, dict[str, object], int]] = {
    "no control group": ("", {}, 100),
    "version 2, no limit": ("0::/a", {"cgroup.controllers": "memory", "a/memory.max": "max"}, 100),
    "version 2, own limit": ("0::/a/b", {"cgroup.controllers": "memory", "a/b/memory.max": 40 * GIB}, 40),
    "version 2, an ancestor's limit": (
        "0::/a/b/c",
        {"cgroup.controllers": "", "a/memory.max": 24 * GIB, "a/b/memory.max": "max", "a/b/c/memory.max": 60 * GIB},
        24,
    ),
    "version 2, what is used is gone": (
        "0::/a",
        {"cgroup.controllers": "", "a/memory.max": 40 * GIB, "a/memory.current": 30 * GIB},
        10,
    ),
    "version 2, but its page cache is not": (
        "0::/a",
        {
            "cgroup.controllers": "",
            "a/memory.max": 40 * GIB,
            "a/memory.current": 30 * GIB,
            "a/memory.stat": f"anon {5 * GIB}\ninactive_file {25 * GIB}",
        },
        35,
    ),
    "version 2, the limit at which it is throttled": (
        "0::/a",
        {"cgroup.controllers": "", "a/memory.max": 40 * GIB, "a/memory.high": 32 * GIB},
        32,
    ),
    "version 2, the container's own mount": ("0::/", {"cgroup.controllers": "", "memory.max": 8 * GIB}, 8),
    "version 2, a path outside the namespace": (
        "0::/../x",
        {"cgroup.controllers": "", "memory.max": 8 * GIB, "../x/memory.max": GIB, "x/memory.max": GIB},
        8,
    ),
    "version 2 beside version 1": ("1:cpu:/\n0::/a", {"unified/a/memory.max": 12 * GIB}, 12),
    "version 1, no limit": (V1, {"memory/docker/abc/memory.limit_in_bytes": UNLIMITED_V1}, 100),
    "version 1, own limit": (
        V1,
        {
            "memory/docker/abc/memory.limit_in_bytes": 48 * GIB,
            "memory/docker/abc/memory.usage_in_bytes": 20 * GIB,
            "memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {4 * GIB}",
        },
        32,
    ),
    "version 1, an ancestor's limit": (V1, {"memory/docker/memory.limit_in_bytes": 16 * GIB}, 16),
    "version 1, the container's own mount": (V1, {"memory/memory.limit_in_bytes": 16 * GIB}, 16),
    "over its limit": ("0::/", {"cgroup.controllers": "", "memory.max": GIB, "memory.current": 2 * GIB}, 0),
    "the kernel's figure is smaller": ("0::/", {"cgroup.controllers": "", "memory.max": 110 * GIB}, 100),
}


@pytest.mark.parametrize("case", MEMORY_CASES)
def test_memory_is_what_the_tightest_group_leaves(tmp_path: Path, case: str) -> None:
    cgroup, files, expected_gib = MEMORY_CASES[case]
    assert available_memory(_tree(tmp_path, cgroup, files)) == expected_gib * GIB


def test_memory_of_a_kernel_that_does_not_tell(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    assert total_memory(tmp_path) is None
    unlimited = _tree(tmp_path, V1, {"memory/memory.limit_in_bytes": UNLIMITED_V1}, available_gib=None)
    assert available_memory(unlimited) is None
    tree = _tree(tmp_path, "0::/", {"cgroup.controllers": "", "memory.max": 8 * GIB}, available_gib=None)
    assert available_memory(tree) == 8 * GIB
    assert total_memory(tree) == 128 * GIB


CORE_CASES: dict[str, tuple[str, dict[str, object], int]] = {
    "no quota": ("0::/a", {"cgroup.controllers": "", "a/cpu.max": "max 100000"}, 8),
    "version 2": ("0::/a", {"cgroup.controllers": "", "a/cpu.max": "350000 100000"}, 3),
    "an ancestor's": ("0::/a/b", {"cgroup.controllers": "", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 1"}, 2),
    "less than one core is one": ("0::/", {"cgroup.controllers": "", "cpu.max": "50000 100000"}, 1),
    "version 1": (
        V1,
        {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": 400000, "cpu,cpuacct/docker/abc/cpu.cfs_period_us": 100000},
        4,
    ),
    "version 1, no quota": (V1, {"cpu/docker/abc/cpu.cfs_quota_us": -1, "cpu/docker/abc/cpu.cfs_period_us": 100000}, 8),
}


@pytest.mark.parametrize("case", CORE_CASES)
def test_cores_are_the_affinity_or_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    cgroup, files, expected = CORE_CASES[case]
    assert usable_cores(_tree(tmp_path, cgroup, files)) == expected


def test_disk_is_that_of_a_folder_that_need_not_exist_yet(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = free_disk(tmp_path / "jobs/not/yet")
    assert free is not None
    assert abs(free - status.f_bavail * status.f_frsize) < GIB


@pytest.mark.parametrize(("disks", "expected"), [(["sda"], False), (["sda", "nvme0n1"], True)])
def test_nvme_is_known_by_its_block_device(tmp_path: Path, disks: list[str], expected: bool) -> None:
    for disk in disks:
        (tmp_path / "sys/block" / disk).mkdir(parents=True)
    assert has_nvme(tmp_path) is expected


def test_nvme_is_unknown_without_sys(tmp_path: Path) -> None:
    assert has_nvme(tmp_path) is None


def test_this_machine_has_memory_cores_and_disk() -> None:
    host = read_host()
    assert host.memory_bytes is not None and 0 < host.memory_bytes <= (total_memory() or 0)
    assert host.cpu_cores is not None and 1 <= host.cpu_cores <= (os.cpu_count() or 0)
    assert host.disk_bytes is not None and host.disk_bytes > 0
