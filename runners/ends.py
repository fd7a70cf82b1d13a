"""From what a job left behind to how it ended: exhausted memory is told from every other failure, the first cause wins.

Texts are matched by the sentences that the libraries print, never by the words "out of memory" alone: users and
warnings write those too.
"""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from estimators.errors import BadInput
from estimators.outcome import End, Outcome
from runners.host import control_groups

LONGEST_EVIDENCE = 300
_SECRET = re.compile(r"(?:hf_|sk-|ghp_|glpat-)[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")

_DEVICE = (
    r"\b(?:CUDA|HIP) out of memory\. (?:Tried to allocate|Attempting to allocate|.{0,40}preemptively rejected)",
    r"preemptively rejected because it would exceed (?:the )?per_process_memory_fraction",
    r"\bAllocation on device(?: \d+)? would exceed allowed memory",  # the cudaMallocAsync backend
    r"\bCUDA (?:driver )?error: out of memory",
    r"\bCUDA error.{0,40}\bcudaErrorMemoryAllocation\b",
    r"\bCUDA_ERROR_OUT_OF_MEMORY\b",
    r"\bTriton Error \[CUDA\]: out of memory",
    r"\bError out of memory at line \d+ in file \S+",  # bitsandbytes' own check
    r"\bCU(?:BLAS|SOLVER|SPARSE)_STATUS_ALLOC_FAILED\b",
    r"\bCUBLAS_STATUS_NOT_INITIALIZED when calling `?cublasCreate",  # its workspace is what could not be had
    r"\bCUDNN_STATUS_(?:ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)\b",
    r"\bCuda failure (?:\d+ )?'out of memory'",  # NCCL
    r"\bFailed to CUDA (?:m|c)alloc(?:\(Async\)| async)? \d+ bytes",  # NCCL
)
_HOST = (
    r"\bDefaultCPUAllocator: (?:can't allocate|not enough) memory",
    r"\[Errno 12\] Cannot allocate memory",
    r"\bstd::bad_alloc\b",
    r"\b_?(?:Array)?MemoryError\b(?:$|: (?!.*['\"]\w*MemoryError))",
    r"\bDataLoader worker \(pid\(?s?\)? [\d, ]+\) is killed by signal: (?:Bus error|Killed)\b",
    r"\bunable to allocate shared memory ?\(shm\)",
    r"\bunable to (?:mmap|write to file) .{0,80}</torch_\w+>.{0,60}(?:Cannot allocate memory|No space left on device)",
    r"\bError while (?:creating|attaching to) shared memory segment /dev/shm/nccl-",
    r"\b(?:Out of memory|Memory cgroup out of memory|oom-kill): ?Kill(?:ed)? process \d+",
)
_MEMORY_TYPES = {
    "OutOfMemoryError": Outcome.OUT_OF_MEMORY,
    "MemoryError": Outcome.HOST_OUT_OF_MEMORY,
    "_ArrayMemoryError": Outcome.HOST_OUT_OF_MEMORY,
}
_ANY_DEVICE, _ANY_HOST = re.compile("|".join(_DEVICE)), re.compile("|".join(_HOST), re.MULTILINE)
_SYMPTOM = re.compile(
    r"Connection (?:closed|reset|refused)|Broken pipe|remote process exited|NCCL communicator was aborted"
    r"|Watchdog caught collective operation timeout|Socket Timeout|Timed out waiting|store.{0,40}timed? ?out"
    r"|ncclRemoteError|Signal 15|SIGTERM|SignalException",
    re.IGNORECASE,
)
"""What a rank sees when another one has gone."""
_GPU_FAULT = re.compile(
    r"uncorrectable ECC error|fallen off the bus|GPU is lost|cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE"
    r"|NVLink.{0,40}uncorrectable|hardware error|\bXid\b.{0,60}\b(?:48|63|64|74|79|94|95)\b",
    re.IGNORECASE,
)
_ERROR_LINE = re.compile(
    r"^(?:\[rank\d+\]:\s*)?(?:terminate called|[\w.]*(?:Error|Exception|Interrupt)\b|.*\bNCCL WARN\b|  what\(\):"
    r"|Cuda failure\b|Error while (?:creating|attaching)|(?:\[[\d.]+\] )?(?:Memory cgroup o|O)ut of memory: Kill)"
)
"""Lines of a log that report an error, whoever wrote the rest."""
_ELASTIC_SIGNAL = re.compile(r"exitcode\s*:\s*-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception that a rank caught at the very end."""

    rank: int
    kind: str
    """The exception's class, with its module."""
    text: str
    phase: str
    at_seconds: float
    """On the clock that all processes of the machine share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """All that is known about a job that is over."""

    returncode: int
    reports: int = 0
    """How many ranks said that all went well."""
    ranks: int = 1
    failures: tuple[Failure, ...] = ()
    log: str = ""
    oom_kills: int = 0
    """Processes that the kernel killed for want of memory meanwhile, in our control group: of this job, or of one that
    ran at the same time."""
    stopped: End | None = None
    """Why we stopped it, if we did."""


def failure_from(document: object) -> Failure:
    """The failure that a rank wrote.

    Raises:
        BadInput: it is not one.
    """
    kinds = {"rank": int, "kind": str, "text": str, "phase": str, "at_seconds": (int, float)}
    if not isinstance(document, dict) or set(document) != set(kinds):
        raise BadInput("a rank's failure has other keys")
    if any(not isinstance(document[name], kind) for name, kind in kinds.items()):  # type: ignore[arg-type]
        raise BadInput("a rank's failure has a value of another type")
    return Failure(**document)


def recognise(text: str, kind: str = "") -> Outcome | None:
    """OUT_OF_MEMORY or HOST_OUT_OF_MEMORY where an exception's text or class says so; None for anything else."""
    by_type = _MEMORY_TYPES.get(kind.rpartition(".")[2])
    if by_type is not None:
        return by_type
    if _ANY_DEVICE.search(text):
        return Outcome.OUT_OF_MEMORY
    return Outcome.HOST_OUT_OF_MEMORY if _ANY_HOST.search(text) else None


def judge(remains: Remains) -> End:
    """How the job ended. Exhausted memory goes before a stop of ours that it led to, and a cause before symptoms."""
    if remains.stopped is not None and remains.stopped.outcome is Outcome.CANCELLED:
        return remains.stopped
    if failure := first_failure(remains.failures):
        end = _of_failure(failure)
        if not _SYMPTOM.search(failure.text) or end.outcome is not Outcome.FAILED:
            return end
    if remains.oom_kills and _was_killed(remains, failure):
        return End(outcome=Outcome.HOST_OUT_OF_MEMORY, evidence=_killed(remains))
    if found := _from_log(remains.log) if remains.returncode or remains.stopped else None:
        return found
    if remains.stopped is not None:
        return remains.stopped
    if failure:
        return _of_failure(failure)
    if remains.returncode:
        return End(outcome=Outcome.FAILED, evidence=_of_status(remains), gpu_fault=bool(_GPU_FAULT.search(remains.log)))
    if remains.reports < remains.ranks:
        return End(outcome=Outcome.FAILED, evidence=f"ended well but {_missing(remains)}")
    return End(outcome=Outcome.OK)


def _was_killed(remains: Remains, failure: Failure | None) -> bool:
    """Whether a process of this job got a SIGKILL that we did not send, or a rank lost sight of another."""
    numbers = _signals(remains)
    return failure is not None or (signal.SIGKILL in numbers and (remains.stopped is None or remains.returncode > 0))


def first_failure(failures: tuple[Failure, ...]) -> Failure | None:
    """What failed first. Ranks that only lost their peer come last, whatever their clock says."""
    return min(failures, key=lambda one: (_is_symptom(one), one.at_seconds), default=None)


def _is_symptom(failure: Failure) -> bool:
    return recognise(failure.text, failure.kind) is None and bool(_SYMPTOM.search(failure.text))


def _of_failure(failure: Failure) -> End:
    outcome = recognise(failure.text, failure.kind) or Outcome.FAILED
    return End(
        outcome=outcome,
        evidence=one_line(f"{failure.kind.rpartition('.')[2]}: {failure.text}"),
        rank=failure.rank,
        phase=failure.phase,
        gpu_fault=outcome is Outcome.FAILED and bool(_GPU_FAULT.search(failure.text)),
    )


def _from_log(log: str) -> End | None:
    """The first error line of a log that speaks of exhausted memory: what a process prints that dies at once."""
    for line in log.splitlines():
        if _ERROR_LINE.search(line) and (outcome := recognise(line)):
            return End(outcome=outcome, evidence=one_line(line))
    return None


def _killed(remains: Remains) -> str:
    count = remains.oom_kills
    return f"the kernel killed {count} process{'es' if count > 1 else ''} for want of host memory"


def _of_status(remains: Remains) -> str:
    if numbers := _signals(remains):
        names = {signal.Signals(number).name for number in numbers if number in set(signal.Signals)}
        return one_line(f"killed by {', '.join(sorted(names)) or 'a signal'}; {_last_line(remains.log)}")
    return one_line(f"exit status {remains.returncode}; {_last_line(remains.log)}")


def _signals(remains: Remains) -> list[int]:
    """What killed the job, or ranks of it where a launcher tells."""
    if remains.returncode < 0:
        return [-remains.returncode]
    return [int(number) for number in _ELASTIC_SIGNAL.findall(remains.log)]


def _missing(remains: Remains) -> str:
    return f"{remains.ranks - remains.reports} of {remains.ranks} ranks left no readable result"


def _last_line(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    return next(iter([*errors[-1:], *lines[-1:]]), "it printed nothing")


def one_line(text: str) -> str:
    """As evidence is shown: one line, printable, not endless, nothing secret."""
    flat = _SECRET.sub("…", " ".join(text.split()))
    clean = "".join(letter if letter.isprintable() else "?" for letter in flat)
    return clean if len(clean) <= LONGEST_EVIDENCE else clean[: LONGEST_EVIDENCE - 1] + "…"


def oom_kills(root: Path = Path("/")) -> int:
    """How often the kernel has killed in our control group for want of memory, or on the machine where none tells.

    The group's own file is read, of either version: one above it counts our neighbours' too.
    """
    for folder in control_groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            count = _counter(folder / name, "oom_kill")
            if count is not None:
                return count
    return _counter(root / "proc/vmstat", "oom_kill") or 0


def _counter(path: Path, key: str) -> int | None:
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == key and pair[1].isdecimal()), None)
