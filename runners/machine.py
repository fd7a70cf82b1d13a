"""The machine at hand, as measurements remember it."""

import platform
from collections.abc import Sequence
from pathlib import Path

from estimators.fingerprint import Machine, machine_of
from estimators.hardware import Gpu
from runners.host import usable_cores


def this_machine(gpus: Sequence[Gpu], root: Path = Path("/")) -> Machine:
    """The host that this process runs on, with the GPUs that a probe found. `root` holds /proc."""
    driver = next((gpu.driver_version for gpu in gpus if gpu.driver_version), None)
    pairs = [(gpu.device.name, gpu.mig_parent_uuid or gpu.uuid) for gpu in gpus]
    return machine_of(platform.node(), processor_name(root), usable_cores(root), pairs, driver)


def processor_name(root: Path = Path("/")) -> str:
    """The CPU's model as the kernel names it; of an architecture that names none, the architecture."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return platform.machine() or "unknown processor"
