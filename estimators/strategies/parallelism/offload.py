"""What offloading keeps in host memory and on NVMe, what it moves each step, and which combinations can run.

Sources: torch ATen/core/CachingHostAllocator.h (pinned blocks are rounded up to powers of two, and kept when freed);
DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py and stage3.py (`pin_memory` on, its default), ops/adam/cpu_adam.py (the
moments are not pinned), runtime/swap_tensor/ and runtime/zero/offload_config.py (NVMe buffers: locked, not rounded).
On two H200s ZeRO-2 offload of Llama 3.2 1B took 32.59 GB more host memory than ZeRO-2 without; this law says 32.43.
With 1.5 GB for each rank's process, host memory in use is met to 1.5 % there, under ZeRO-3 offloading all, and on one
GPU.
"""

from collections.abc import Sequence

from estimators.strategies.axes import Job
from estimators.strategies.parallelism.shards import MASTER_BYTES, states_each

SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
OPTIMIZER_BUFFERS = 4
"""`offload_optimizer.buffer_count`: float32 buffers of the largest sub-group."""
PARAMETER_BUFFERS, PARAMETER_BUFFER_ELEMENTS = 5, 100_000_000
"""`offload_param.buffer_count` and `buffer_size`."""
ELEMENTS_IN_CPU = 1_000_000_000
"""`offload_param.max_in_cpu`: so many parameters stay in host memory although the rest is on NVMe."""


def pinned_bytes(size_bytes: int) -> int:
    """What torch's host allocator takes for a pinned tensor."""
    return 1 << (size_bytes - 1).bit_length() if size_bytes > 0 else 0


def refusal(kind: str, offload: Sequence[str], offload_to: str) -> str | None:
    """Why this offload cannot run under this kind of parallelism; None where it can."""
    for name in offload:
        if name not in ("optimizer", "parameters"):
            return f"unknown offload {name[:60]!r} (known: optimizer, parameters)"
    if not offload:
        return None
    if kind not in SHARDED:
        return f"offload needs one of {', '.join(SHARDED)}, not {kind}"
    if offload_to == "nvme" and kind != "zero3":
        return f"offload to nvme needs zero3, not {kind}"
    if kind == "fsdp2" and set(offload) != {"optimizer", "parameters"}:
        return "fsdp2 offloads parameters, gradients and optimizer together: name both, optimizer and parameters"
    if "parameters" in offload and kind in ("zero1", "zero2"):
        return f"offload of parameters needs zero3 or fsdp2, not {kind}"
    return None


def flat_host_bytes(job: Job, part: int) -> int:
    """Host memory of one rank under ZeRO-1 or ZeRO-2: float32 weights and gradients, 16-bit weights, the moments."""
    pinned = 2 * pinned_bytes(part * MASTER_BYTES) + pinned_bytes(part * job.compute_bytes)
    pinned += pinned_bytes(job.largest_tensor * job.compute_bytes)
    if job.accumulates:
        held = sum(group.count * pinned_bytes(group.elements * job.compute_bytes) for group in job.trained)
        pinned += held // job.devices
    return pinned + part * states_each(job)


def optimizer_host_bytes(job: Job, part: int, group: int) -> int:
    """Host memory of one rank for ZeRO-3's optimizer: in sub-groups of `group` elements, and 16-bit gradients."""
    gradients = pinned_bytes(part * job.compute_bytes)
    if job.offload_to == "nvme":
        return gradients + OPTIMIZER_BUFFERS * group * MASTER_BYTES
    full, rest = divmod(part, max(1, group))
    stepped = full * pinned_bytes(group * MASTER_BYTES) + pinned_bytes(rest * MASTER_BYTES)
    return gradients + stepped + part * (MASTER_BYTES + states_each(job))


def parameter_host_bytes(job: Job, part: int) -> int:
    """Host memory of one rank for ZeRO-3's weights: trained ones in a flat buffer, after each had its own block."""
    flat = pinned_bytes(min(part, ELEMENTS_IN_CPU if job.offload_to == "nvme" else part) * job.compute_bytes)
    if job.offload_to == "nvme":
        return flat + PARAMETER_BUFFERS * PARAMETER_BUFFER_ELEMENTS * job.compute_bytes
    groups = (*job.trained, *job.frozen)
    return flat + sum(
        group.count * pinned_bytes(-(-group.elements // job.devices) * job.compute_bytes) for group in groups
    )


def optimizer_disk_bytes(job: Job, part: int) -> int:
    """NVMe space of one rank: float32 weights, moments and gradients."""
    return part * (2 * MASTER_BYTES + states_each(job))
