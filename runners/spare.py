"""A process that has everything imported and waits for a job: imports take longer than a short job does.

It makes no CUDA context. Where the imports left CUDA alone it forks a fresh process for each job and goes on waiting,
so jobs follow each other at once; where they did not, it becomes its first job itself, and a bench keeps two of them.
Either way a process runs one job, and a poisoned CUDA context dies with it.

Its environment is fixed before torch is imported, so there is one spare for each environment.
"""

import ctypes
import gc
import json
import os
import select
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from runners import guard, job
from runners.processes import kill_descendants

NEEDED = ("torch", "transformers", "peft", "accelerate", "runners.train")
USEFUL = (
    "datasets", "trl", "transformers.models.llama.modeling_llama", "transformers.integrations", "torch._dynamo",
    "torch.utils.checkpoint", "torch.distributed.fsdp", "peft.tuners.lora", "transformers.trainer_pt_utils",
    "peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion", "trl.trainer.sft_trainer", "deepspeed",
)  # fmt: skip
"""Not in every installation, or imported by the first job that needs them."""
STARTING_SECONDS = 300.0
KILL_AGAIN_SECONDS = 0.002
CUDA_NOT_INITIALIZED = 3
"""CUresult of a driver whose cuInit nobody has called in this process."""
MOST_NVML_USERS = 1000
EMPTY_LOOKS = 2
"""A look at all processes can miss one whose parent ends under it: so often nothing is found before it is believed."""
READY, SERVED = "ready", "served"
_PIPES, _CAPABILITY = "PLAN_SPARE_PIPES", "PLAN_SPARE_CAPABILITY"


class Spare:
    """Our end of a waiting process."""

    def __init__(self, environment: Mapping[str, str], capability: tuple[int, int] | None = None) -> None:
        self.forks = self.taken = self.ended = False
        self._ready, self._pid, self._buffer = False, -1, b""
        with ExitStack() as ours, ExitStack() as theirs:
            self.log: IO[bytes] = ours.enter_context(tempfile.TemporaryFile())
            hear, self._tell = guard.pipe(theirs, ours)
            self._hear, tell = guard.pipe(ours, theirs)
            fixed = {**environment, _PIPES: f"{hear},{tell}"}
            if capability:
                fixed[_CAPABILITY] = f"{capability[0]}.{capability[1]}"
            command = guard.python("runners.spare")
            self.process = guard.start(command, fixed, job.new_token(), self.log, keep=(hear, tell))
            self._opened = ours.pop_all()

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether everything is imported, waiting for it so long."""
        if not self._ready and not self.ended and (message := self.message(seconds)):
            self._ready, self.forks = message["state"] == READY, bool(message["forks"])
            self._pid = int(message["pid"])
        return self._ready

    def take(self, folder: Path) -> None:
        """Hands it a job."""
        self.taken = True
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

    def kill_leftovers(self, until: float) -> bool:
        """Whether nothing is left of a job after killing it until that time: what is killed may have been starting
        something. The spare itself lives."""
        empty = 0
        while empty < EMPTY_LOOKS and time.monotonic() < until:
            if kill_descendants(self.process.guard.pid, spare=frozenset([self._pid])):
                empty = 0
                time.sleep(KILL_AGAIN_SECONDS)
            else:
                empty += 1
        return empty >= EMPTY_LOOKS

    def end(self) -> int:
        """Gone, with all that it started, when this returns."""
        self.ended, self.taken = True, False
        self._opened.close()
        return self.process.end()


def main() -> None:
    """The waiting process; the numbers of its pipes come through the environment."""
    hear, tell = (int(number) for number in os.environ.pop(_PIPES).split(","))
    with _known_capability(os.environ.pop(_CAPABILITY, "")):
        for name in NEEDED:
            import_module(name)
        for name in USEFUL:
            with suppress(Exception):  # what is broken here and matters will fail in a job, which tells
                import_module(name)
    gc.collect()
    gc.freeze()  # what is imported stays shared with the children, and theirs is quicker to clean
    leave_nvml(_loaded("libnvidia-ml.so.1"))
    forks = may_fork()
    _say(tell, state=READY, forks=forks, pid=os.getpid())
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
    """This process is the job from here on: it runs in the job's folder, and its output goes to the job's own log.

    Whatever happens, it never comes back: there must not be two that wait for orders.
    """
    from runners.train import finish

    try:
        os.chdir(folder)
        with (folder / job.LOG).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        finish(folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def may_fork() -> bool:
    """Whether CUDA is untouched here: what it knows in this process does not survive a fork.

    The driver itself is asked. Its open devices prove nothing, as NVML opens /dev/nvidia-uvm too.
    """
    torch: Any = sys.modules["torch"]
    return not torch.cuda.is_initialized() and not _driver_initialized(_loaded("libcuda.so.1"))


def _driver_initialized(driver: Any) -> bool:
    """Anything but this one answer may mean that there is something to lose; asking changes nothing."""
    return driver is not None and driver.cuCtxGetCurrent(ctypes.byref(ctypes.c_void_p())) != CUDA_NOT_INITIALIZED


def leave_nvml(driver: Any) -> None:
    """torch counts cards through NVML and leaves it open; a job's process opens its own."""
    if driver is not None:
        next((count for count in range(MOST_NVML_USERS) if driver.nvmlShutdown() != 0), None)


def _loaded(name: str) -> Any:
    """A library that this process has loaded; None where it has not."""
    try:
        return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _say(tell: int, **message: Any) -> None:
    os.write(tell, json.dumps(message).encode() + b"\n")
