"""Collectives of several GPUs, one process each: the bytes a second that a ring of them moves, and its latency."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed

from runners import guard
from runners.microbench.clock import Clock
from runners.microbench.kernels import Bench, Found
from runners.microbench.sizes import SIZES, Sizes
from runners.processes import kill_descendants

LONGEST_SECONDS = 40.0
KILL_AGAIN_SECONDS = 0.01
LITTLE = 16
"""Elements of a message that takes no time but the ring's latency."""


class FailedError(Exception):
    """The processes did not come to an end, or not to a good one."""


def collectives(bench: Bench, ranks: int) -> Found:
    """What `ranks` processes reach together, each on a device of its own."""
    size = next(name for name, sizes in SIZES.items() if sizes is bench.sizes)
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        child = guard.python("runners.microbench.collectives", str(found), bench.device, size)
        launcher = [sys.executable, "-P", "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={ranks}", "--no-python", *child]
        try:
            status = launched(command, LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            raise FailedError(f"{ranks} processes were not done after {LONGEST_SECONDS:g} s") from None
        if status:
            raise FailedError(f"{ranks} processes ended with status {status}")
        speeds: Found = json.loads(found.read_text())
        return speeds


def launched(command: Sequence[str], seconds: float) -> int:
    """The exit status of a launcher; whatever ends the wait for it, its ranks do not outlive it.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as launcher:
        try:
            return launcher.wait(seconds)
        finally:
            if launcher.poll() is None:
                _kill(launcher)


def _kill(launcher: "subprocess.Popen[bytes]") -> None:
    """The ranks first: each is in a session of its own, and a launcher that has ended is nobody's ancestor."""
    launcher.send_signal(signal.SIGSTOP)  # it starts nothing more, and does not end by itself
    until = time.monotonic() + guard.LONGEST_DYING_SECONDS
    while kill_descendants(launcher.pid) and time.monotonic() < until:
        time.sleep(KILL_AGAIN_SECONDS)
    launcher.kill()


def main() -> None:
    """One rank: FILE DEVICE SIZE."""
    path, device, sizes = Path(sys.argv[1]), sys.argv[2], SIZES[sys.argv[3]]
    rank = int(os.environ["RANK"])
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    clock = Clock(device="cuda" if device == "cuda" else "cpu", round_seconds=sizes.round_seconds)
    found = _measured(clock, sizes)
    if rank == 0:
        path.write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def _measured(clock: Clock, sizes: Sizes) -> Found:
    """Bytes a second as a ring's links see them: an all-reduce sends its data twice, less one rank's part."""
    ranks = distributed.get_world_size()
    whole = torch.zeros(sizes.reduced_bytes // 2, dtype=torch.bfloat16, device=clock.device)
    part = whole[: whole.numel() // ranks].clone()
    gathered = [torch.empty_like(part) for _ in range(ranks)]
    little = torch.zeros(LITTLE, device=clock.device)
    share = (ranks - 1) / ranks * whole.nbytes
    return {
        "all_reduce": 2 * share / _seconds(clock, lambda: distributed.all_reduce(whole)),
        "all_gather": share / _seconds(clock, lambda: distributed.all_gather(gathered, part)),
        "collective_latency": _seconds(clock, lambda: distributed.all_reduce(little)),
    }


def _seconds(clock: Clock, call: Callable[[], object]) -> float:
    """As many calls on every rank: each waits for the others."""
    times = 8
    for _ in range(2):
        call()
    return min(clock.queued(lambda: distributed.barrier(), call, times) for _ in range(3))
