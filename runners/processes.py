"""Whose process is it: nothing is signalled before its number, its start time and its job's token prove it ours."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TOKEN_VARIABLE = "PLAN_JOB_TOKEN"
LOWEST_PID = 2
"""kill(0) and kill(-1) reach whole groups, and 1 is the machine's own: a stored number below is never signalled."""
SHORTEST_TOKEN = 16
_PARENT_FIELD, _START_FIELD = 1, 19
"""Of /proc/PID/stat, counted from the state, which follows the name in parentheses (proc(5) fields 4 and 22)."""
PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A process that cannot be mistaken for a later one of the same number."""

    pid: int
    started_ticks: int
    token: str


def identify(pid: int, token: str) -> Identity | None:
    """The process `pid` as it is now; None where there is none."""
    ticks = started_ticks(pid)
    return None if ticks is None else Identity(pid=pid, started_ticks=ticks, token=token)


def started_ticks(pid: int) -> int | None:
    """When the process started, in the kernel's ticks since boot; None where it is dead, a zombie included."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_START_FIELD])


def is_ours(identity: Identity) -> bool:
    """Whether the number, the start time and the token in its environment are all as remembered."""
    if identity.pid < LOWEST_PID or started_ticks(identity.pid) != identity.started_ticks:
        return False
    return bool(identity.token) and token_of(identity.pid) == identity.token


def token_of(pid: int) -> str | None:
    """The job token that the process was started with."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    prefix = f"{TOKEN_VARIABLE}=".encode()
    return next((item[len(prefix) :].decode() for item in environment.split(b"\0") if item.startswith(prefix)), None)


def signal_ours(identity: Identity, number: int) -> bool:
    """Sends a signal to a process that is proven ours; False where it is not, or has gone."""
    return identity.pid >= LOWEST_PID and _send(identity.pid, number, lambda: is_ours(identity))


def kill_descendants(ancestor: int, spare: frozenset[int] = frozenset()) -> int:
    """Kills every process that descends from `ancestor`, but for `spare`; how many there were.

    Descent is the kernel's own proof. A process that its parent left belongs to the nearest subreaper, as guards are.
    """
    if ancestor < LOWEST_PID:  # of 0 and 1 everything descends
        return 0
    found = [pid for pid in descendants(ancestor) if pid not in spare]
    for pid in found:
        ticks = started_ticks(pid)
        if pid >= LOWEST_PID and ticks is not None:
            _send(pid, signal.SIGKILL, lambda pid=pid, ticks=ticks: started_ticks(pid) == ticks)  # type: ignore[misc]
    return len(found)


def kill_marked(token: str, since_ticks: int | None) -> int:
    """Kills every process that carries `token`: what is left where a guard itself was killed.

    This looks at all processes of the machine, so one proof is not enough: nothing that ran before `since_ticks`, when
    the guard started, can be the job's, whatever the rest says.
    """
    if len(token) < SHORTEST_TOKEN or since_ticks is None:
        return 0
    found = [identity for pid in _pids() if (identity := identify(pid, token)) is not None]
    young = [one for one in found if one.started_ticks >= since_ticks and one.pid != os.getpid()]
    return sum(signal_ours(one, signal.SIGKILL) for one in young if token_of(one.pid) == token)


def descendants(ancestor: int) -> list[int]:
    """Living processes below `ancestor`, parents before children."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if fields := _stat(pid):
            children.setdefault(int(fields[_PARENT_FIELD]), []).append(pid)
    found = list(children.get(ancestor, ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _send(pid: int, number: int, proven: Callable[[], bool]) -> bool:
    """A descriptor holds the process fast while it is proven, so that its number cannot pass to another."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (OSError, AttributeError):  # a kernel without it
        return proven() and _kill(pid, number)
    try:
        if not proven():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True


def _kill(pid: int, number: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        return True
    return False


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir(PROC) if entry.isdecimal())  # noqa: PTH208 (half the time of iterdir)


def _stat(pid: int) -> list[str] | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if not fields or fields[0] in "ZX" else fields
