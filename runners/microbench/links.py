"""What moves between the GPU, the host's memory and its disk, and Adam on the host's processors."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from estimators.errors import BadInput
from runners.microbench.clock import ROUNDS
from runners.microbench.kernels import Bench, Found
from runners.tools import tool

BLOCK_BYTES = 1 << 22


def copies(bench: Bench) -> Found:
    """Bytes a second between host and GPU, both ways, from pinned memory and from pageable."""
    there = torch.zeros(bench.sizes.copied_bytes, dtype=torch.uint8, device=bench.device)
    found: Found = {}
    for name in ("pinned", "pageable"):
        here = torch.zeros(bench.sizes.copied_bytes, dtype=torch.uint8)
        here = here.pin_memory() if name == "pinned" and bench.device == "cuda" else here
        found |= {
            f"{name}_to_device": _speed(bench, there, here, name == "pinned"),
            f"{name}_to_host": _speed(bench, here, there, name == "pinned"),
        }
    return found


def _speed(bench: Bench, to: torch.Tensor, source: torch.Tensor, asynchronous: bool) -> float:
    return source.nbytes / bench.clock.seconds(lambda: to.copy_(source, non_blocking=asynchronous))


def disk(bench: Bench) -> Found:
    """Bytes a second of the disk of temporary files: written until it says that it has them, and read from it again."""
    path = Path(tempfile.gettempdir()) / f"plan-calibrate-{os.getpid()}"
    block = os.urandom(min(BLOCK_BYTES, bench.sizes.disk_bytes))
    blocks = max(1, bench.sizes.disk_bytes // len(block))
    try:
        began = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(blocks):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter() - began
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what is cached was not read from the disk
            began = time.perf_counter()
            while file.read(len(block)):
                pass
            read = time.perf_counter() - began
    finally:
        path.unlink(missing_ok=True)
    return {"disk_write": blocks * len(block) / written, "disk_read": blocks * len(block) / read}


def cpu_adam(bench: Bench) -> Found:
    """Seconds for a parameter in DeepSpeed's Adam on the CPU, on all cores and on one thread."""
    _need_compiled()
    optimizers = tool("deepspeed.ops.adam")
    parameter = torch.nn.Parameter(torch.zeros(bench.sizes.cpu_parameters))
    parameter.grad = torch.ones_like(parameter)
    optimizer = optimizers.DeepSpeedCPUAdam([parameter])
    threads, found = torch.get_num_threads(), {}
    for name, count in (("cpu_adam_seconds", threads), ("cpu_thread_adam_seconds", 1)):
        torch.set_num_threads(count)  # the same OpenMP that DeepSpeed's kernel runs on
        optimizer.step()
        found[name] = statistics.median(_seconds(optimizer.step) for _ in range(ROUNDS)) / parameter.numel()
    torch.set_num_threads(threads)
    return found


def _need_compiled() -> None:
    """
    Raises:
        BadInput: DeepSpeed would have to compile its kernel first, which takes longer than all else here.
    """
    builder = tool("deepspeed.ops.op_builder").CPUAdamBuilder()
    folder = tool("torch.utils.cpp_extension")._get_build_directory(builder.name, verbose=False)
    if not (Path(folder) / f"{builder.name}.so").exists():
        raise BadInput("DeepSpeed has not compiled its Adam here: run a recipe that offloads, then calibrate again")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


LINKS: dict[str, tuple[Callable[[Bench], Found], tuple[str, ...]]] = {
    "copies": (copies, ("pinned_to_device", "pinned_to_host", "pageable_to_device", "pageable_to_host")),
    "disk": (disk, ("disk_write", "disk_read")),
    "Adam on the CPU": (cpu_adam, ("cpu_adam_seconds", "cpu_thread_adam_seconds")),
}
"""By title: the microbenchmark, and the figures that it finds."""
