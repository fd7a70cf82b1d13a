"""One small process a job, between us and it: when we die, or let go of it, it kills everything that the job started.

It adopts what its descendants leave behind (a subreaper), waits on a pipe whose other end only we hold, and is in a
session of its own, so that a terminal's Ctrl-C reaches us and not the job.
"""

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from runners import processes

ROOT = Path(__file__).resolve().parents[1]
_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36
"""PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)."""
FIRST_IN_LINE = 1000
"""oom_score_adj: the kernel kills the job before anything else of the machine."""
LONGEST_DYING_SECONDS = 20.0
"""A process inside the driver dies when that lets go of it, which takes seconds with a full card."""
_BOOTSTRAP = "import sys; sys.path.append({root!r}); from runners.guard import main; main()"


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs our `module`'s main with this interpreter, wherever the package lies."""
    code = (
        f"import sys; {str(ROOT)!r} in sys.path or sys.path.insert(0, {str(ROOT)!r}); from {module} import main; main()"
    )
    return [sys.executable, "-P", "-W", "ignore", "-c", code, *arguments]


@dataclass(slots=True, kw_only=True)
class Guarded:
    """A command that lives as long as we do, and no longer than we hold on to it."""

    guard: "subprocess.Popen[bytes]"
    token: str
    started_ticks: int | None
    _alive: int
    _status: int
    _said: bytes = b""

    def poll(self) -> int | None:
        """The command's exit status, negative for a signal; None while it runs.

        A guard that was killed itself answers -SIGKILL for its command, which then dies with it.
        """
        if not self._said and select.select([self._status], [], [], 0)[0]:
            self._said = os.read(self._status, 64) or b"lost"
        if not self._said:
            return None
        return -signal.SIGKILL if self._said == b"lost" else int(json.loads(self._said))

    def processes(self) -> list[int]:
        """Everything alive below the guard."""
        return processes.descendants(self.guard.pid)

    def end(self) -> int:
        """Lets go: everything that the command started is gone when this returns. The command's exit status."""
        self._close("_alive")
        with suppress(subprocess.TimeoutExpired):
            self.guard.wait(LONGEST_DYING_SECONDS)
        processes.kill_marked(self.token, self.started_ticks)  # only where the guard was killed is there anything left
        status = self.poll()
        self._close("_status")
        return -signal.SIGKILL if status is None else status

    def _close(self, name: str) -> None:
        if (descriptor := getattr(self, name)) >= 0:
            if name == "_status":
                self._said = self._said or b"lost"
            os.close(descriptor)
            setattr(self, name, -1)


def start(
    command: Sequence[str], environment: Mapping[str, str], token: str, log: IO[Any], *, keep: Sequence[int] = (),
    folder: Path | None = None,
) -> Guarded:  # fmt: skip
    """Runs a command under a guard of its own, with `token` in the environment of all that it starts.

    `keep` are descriptors that the command inherits, `folder` is where it runs.
    """
    with ExitStack() as ours, ExitStack() as theirs:
        hear, alive = pipe(theirs, ours)
        status, tell = pipe(ours, theirs)
        guard = subprocess.Popen(
            # Isolated and without site-packages it starts in a fraction of the time.
            [sys.executable, "-I", "-S", "-c", _BOOTSTRAP.format(root=str(ROOT)), str(hear), str(tell),
             ",".join(map(str, keep)), *command],
            env={**environment, processes.TOKEN_VARIABLE: token},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(hear, tell, *keep),
            cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        ours.pop_all()  # they are the Guarded's from here on
    ticks = processes.started_ticks(guard.pid)
    return Guarded(guard=guard, token=token, started_ticks=ticks, _alive=alive, _status=status)


def pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed with these two."""
    hear, tell = os.pipe()
    reader.callback(os.close, hear)
    writer.callback(os.close, tell)
    return hear, tell


def main() -> None:
    """The guard process: PIPE STATUS KEPT,… COMMAND…"""
    hear, tell, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4:]
    keep = [int(number) for number in sys.argv[3].split(",") if number]
    wake, poked = os.pipe()
    os.set_blocking(poked, False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(poked, warn_on_full_buffer=False)
    _prctl(_SET_SUBREAPER, 1)
    child = subprocess.Popen(command, preexec_fn=_before_the_command, close_fds=True, pass_fds=keep)
    for descriptor in keep:
        os.close(descriptor)  # they are the command's own: whoever is at the other end learns of its end
    status = None
    while status is None:
        ready = select.select([hear, wake], [], [])[0]
        if hear in ready or _told_to_stop(wake, ready):
            break
        status = _reap(child.pid)
    status = _kill_all(child.pid, status)
    os.write(tell, json.dumps(status).encode())
    os._exit(0)  # the child's object has no say any more


def _told_to_stop(wake: int, ready: list[int]) -> bool:
    return wake in ready and set(os.read(wake, 64)) != {signal.SIGCHLD}


def _before_the_command() -> None:
    """Runs between fork and exec: dies with the guard, and first when memory runs out."""
    die_with_parent()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(FIRST_IN_LINE))


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it dies."""
    _prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _reap(command: int) -> int | None:
    """Buries the dead; the command's exit status if it is among them."""
    found = None
    with suppress(ChildProcessError):
        while (dead := os.waitpid(-1, os.WNOHANG))[0]:
            if dead[0] == command:
                found = os.waitstatus_to_exitcode(dead[1])
    return found


def _kill_all(command: int, status: int | None) -> int:
    """Kills until nothing descends from here: what is killed may have been starting something."""
    until = time.monotonic() + LONGEST_DYING_SECONDS
    while processes.kill_descendants(os.getpid()) and time.monotonic() < until:
        time.sleep(0.002)
        found = _reap(command)
        status = found if status is None else status
    found = _reap(command)
    return next((code for code in (status, found) if code is not None), -signal.SIGKILL)
