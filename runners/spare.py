"""A process that has everything imported and waits for a job: imports take longer than a short job does.

It makes no CUDA context. Where the imports left CUDA alone it forks a fresh process for each job and goes on waiting,
so jobs follow each other at once; where they did not, it becomes its first job itself. Either way a process runs one
job, and a poisoned CUDA context dies with it.

Its environment is fixed before torch is imported, so there is one spare for each environment.
"""

import gc
import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from runners import guard, job
from runners.processes import kill_descendants

NEEDED = ("torch", "transformers", "peft", "accelerate", "runners.train")
USEFUL = (
    "datasets", "trl", "transformers.models.llama.modeling_llama", "transformers.integrations", "torch._dynamo",
    "torch.utils.checkpoint", "torch.distributed.fsdp", "peft.tuners.lora", "transformers.trainer_pt_utils",
)  # fmt: skip
"""Not in every installation, or imported by the first job that needs them."""
TRL_TRAINER = "trl.trainer.sft_trainer"
STARTING_SECONDS = 300.0
READY, SERVED = "ready", "served"
_PIPES, _CAPABILITY = "PLAN_SPARE_PIPES", "PLAN_SPARE_CAPABILITY"


class Spare:
    """Our end of a waiting process."""

    def __init__(self, environment: Mapping[str, str], capability: tuple[int, int] | None = None) -> None:
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        hear, self._tell = os.pipe()
        self._hear, tell = os.pipe()
        fixed = {**environment, _PIPES: f"{hear},{tell}"}
        if capability:
            fixed[_CAPABILITY] = f"{capability[0]}.{capability[1]}"
        try:
            self.process = guard.start(
                guard.python("runners.spare"), fixed, job.new_token(), self.log, keep=(hear, tell)
            )
        finally:
            os.close(hear)
            os.close(tell)
        self._buffer = b""
        self.forks = self.touched_cuda = False
        self._ready = False

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether everything is imported, waiting for it so long."""
        if not self._ready and (message := self.message(seconds)):
            self._ready, self.forks = message["state"] == READY, bool(message.get("forks"))
            self.touched_cuda = bool(message.get("cuda"))
        return self._ready

    def take(self, folder: Path) -> None:
        """Hands it a job."""
        os.write(self._tell, f"{folder}\n".encode())

    def message(self, seconds: float = 0.0) -> dict[str, Any] | None:
        """What it says next; None if that is nothing in time, or it died."""
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = max(until - time.monotonic(), 0.0)
            if not select.select([self._hear], [], [], left)[0]:
                return None
            piece = os.read(self._hear, 4096)
            if not piece:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def kill_leftovers(self) -> None:
        """What a job left running; the spare itself lives."""
        living = self.process.processes()
        kill_descendants(self.process.guard.pid, spare=frozenset(living[:1]))

    def end(self) -> int:
        """Gone, with all that it started, when this returns."""
        for descriptor in (self._tell, self._hear):
            with suppress(OSError):
                os.close(descriptor)
        self.log.close()
        return self.process.end()


def main() -> None:
    """The waiting process; the numbers of its pipes come through the environment."""
    hear, tell = (int(number) for number in os.environ.pop(_PIPES).split(","))
    with _known_capability(os.environ.pop(_CAPABILITY, "")):
        for name in NEEDED:
            import_module(name)
        for name in (*USEFUL, TRL_TRAINER):
            with suppress(ImportError, RuntimeError):
                import_module(name)
    gc.collect()
    gc.freeze()  # what is imported stays shared with the children, and theirs is quicker to clean
    forks = may_fork()
    _say(tell, state=READY, forks=forks, cuda=_cuda_initialized())
    with os.fdopen(hear) as orders:
        for line in orders:
            child = os.fork() if forks else 0
            if child == 0:
                if forks:
                    guard.die_with_parent()
                _become(Path(line.rstrip("\n")))
            _, status = os.waitpid(child, 0)
            _say(tell, state=SERVED, status=os.waitstatus_to_exitcode(status))


@contextmanager
def _known_capability(text: str) -> Iterator[None]:
    """bitsandbytes asks for the card's compute capability as it is imported, which initialises CUDA for good.

    While we import, the answer is NVML's, which is the same.
    """
    if not text:
        yield
        return
    torch: Any = import_module("torch")
    ask, (major, minor) = torch.cuda.get_device_capability, text.split(".")
    torch.cuda.get_device_capability = lambda device=None: (int(major), int(minor))
    try:
        yield
    finally:
        torch.cuda.get_device_capability = ask


def _become(folder: Path) -> None:
    """This process is the job from here on: it runs in the job's folder, and its output goes to the job's own log."""
    from runners.train import finish

    os.chdir(folder)
    with (folder / job.LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    finish(folder)


def may_fork() -> bool:
    """Whether nothing here has spoken to the GPU: a driver does not survive a fork."""
    return not _cuda_initialized() and not _driver_open()


def _cuda_initialized() -> bool:
    torch = sys.modules["torch"]
    return bool(torch.cuda.is_initialized())


def _driver_open(descriptors: Path = Path("/proc/self/fd")) -> bool:
    """CUDA's initialisation opens this device, NVML's does not."""
    for entry in descriptors.iterdir():
        with suppress(OSError):
            if entry.readlink().name == "nvidia-uvm":
                return True
    return False


def _say(tell: int, **message: Any) -> None:
    os.write(tell, json.dumps(message).encode() + b"\n")
