"""Whatever happens to us, nothing of a job outlives it; and nothing that is not ours is ever signalled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runners import guard, processes
from runners.processes import Identity, identify, is_ours, signal_ours

ROOT = Path(__file__).parents[2]
FAMILY = """
import os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
if os.fork() == 0:  # a daemon: a session of its own, its parent gone, its environment empty
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(100)"], {})
    os._exit(0)
os.wait()
time.sleep(0.3)
Path(sys.argv[1]).write_text("ready")
time.sleep(100)
"""
PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runners import guard
with open(sys.argv[2] + ".log", "wb") as log:
    held = guard.start([sys.executable, "-c", sys.argv[3], sys.argv[2]], {}, "t" * 32, log)
Path(sys.argv[2] + ".guard").write_text(str(held.guard.pid))
time.sleep(100)
"""


def until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def alive(pid: int) -> bool:
    return processes.started_ticks(pid) is not None


@pytest.fixture
def family(tmp_path: Path) -> Iterator[guard.Guarded]:
    """A command with a child and a daemon, under our guard, ready."""
    with (tmp_path / "log").open("wb") as log:
        held = guard.start([sys.executable, "-c", FAMILY, str(tmp_path / "flag")], {}, "f" * 32, log)
    try:
        assert until((tmp_path / "flag").exists), (tmp_path / "log").read_text()
        assert until(lambda: len(held.processes()) == 3)
        yield held
    finally:
        held.end()


def test_killing_us_leaves_no_orphan_after_a_second(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    parent = subprocess.Popen([sys.executable, "-P", "-c", PARENT, str(ROOT), str(flag), FAMILY])
    try:
        assert until(flag.exists)
        pid = int(Path(f"{flag}.guard").read_text())
        assert until(lambda: len(processes.descendants(pid)) == 3)
        everyone = [pid, *processes.descendants(pid)]
    finally:
        parent.kill()
        parent.wait()
    killed = time.monotonic()
    assert until(lambda: not any(alive(one) for one in everyone), seconds=10)
    assert time.monotonic() - killed < 1.0


def test_letting_go_ends_even_what_ignores_a_polite_request(family: guard.Guarded) -> None:
    everyone = [family.guard.pid, *family.processes()]
    assert family.end() == -signal.SIGKILL
    assert [pid for pid in everyone if alive(pid)] == []


def test_a_killed_guard_takes_its_command_with_it(family: guard.Guarded) -> None:
    """The daemon of this family dropped the token, so it is beyond proof; what carries it is not."""
    command, *rest = family.processes()
    marked = [pid for pid in (command, *rest) if processes.token_of(pid) == family.token]
    assert len(marked) == 2
    family.guard.kill()
    assert family.end() == -signal.SIGKILL
    assert until(lambda: not any(alive(pid) for pid in marked), seconds=2)
    for pid in rest:
        if pid not in marked and alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_command_dies_with_its_guard_even_if_we_do_nothing(family: guard.Guarded) -> None:
    command, *rest = family.processes()
    family.guard.kill()
    assert until(lambda: not alive(command), seconds=2)
    for pid in rest:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_a_command_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])"
    with (tmp_path / "log").open("wb") as log:
        held = guard.start([sys.executable, "-c", script], {}, "f" * 32, log)
    assert until(lambda: held.poll() is not None)
    assert held.poll() == 0
    assert held.processes() == []
    held.end()


@pytest.mark.parametrize(
    ("script", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 11)", -11), ("", 0)]
)
def test_the_exit_status_comes_through(tmp_path: Path, script: str, status: int) -> None:
    with (tmp_path / "log").open("wb") as log:
        held = guard.start([sys.executable, "-c", script], {}, "f" * 32, log)
    assert until(lambda: held.poll() is not None)
    assert (held.poll(), held.end()) == (status, status)


def test_a_command_is_first_in_line_and_out_of_the_terminals_reach(family: guard.Guarded) -> None:
    command = family.processes()[0]
    assert Path(f"/proc/{command}/oom_score_adj").read_text().strip() == "1000"
    assert Path(f"/proc/{family.guard.pid}/oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()
    assert os.getsid(command) == family.guard.pid != os.getsid(0)


def test_a_command_that_cannot_start_is_an_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        held = guard.start(["/nonexistent"], {}, "f" * 32, log)
    assert until(lambda: held.poll() is not None)
    assert held.end() != 0


def test_only_a_proven_process_is_signalled(monkeypatch: pytest.MonkeyPatch, family: guard.Guarded) -> None:
    """A reused number has another start time; a neighbour has no token; 0, 1 and -1 mean other things to kill()."""
    pid = family.processes()[0]
    mine = identify(pid, family.token)
    assert mine is not None and is_ours(mine)
    sent: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *arguments: sent.append(0))
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(1))
    strangers = [
        Identity(pid=pid, started_ticks=mine.started_ticks + 1, token=family.token),
        Identity(pid=pid, started_ticks=mine.started_ticks, token="e" * 32),
        Identity(pid=pid, started_ticks=mine.started_ticks, token=""),
        Identity(pid=os.getpid(), started_ticks=processes.started_ticks(os.getpid()) or 0, token=family.token),
        *(Identity(pid=number, started_ticks=processes.started_ticks(1) or 0, token="") for number in (-1, 0, 1)),
    ]
    assert [signal_ours(stranger, signal.SIGKILL) for stranger in strangers] == [False] * len(strangers)
    assert sent == []
    assert signal_ours(mine, signal.SIGKILL)
    assert sent == [0]


def test_a_number_that_was_reused_between_look_and_signal_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """kill_descendants looks at the start time again while it holds the process fast."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        ticks = iter([1, 2])
        monkeypatch.setattr(processes, "descendants", lambda ancestor: [child.pid])
        monkeypatch.setattr(processes, "started_ticks", lambda pid: next(ticks))
        processes.kill_descendants(child.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
    finally:
        child.kill()
        child.wait()


def test_without_process_descriptors_the_proof_still_holds(
    monkeypatch: pytest.MonkeyPatch, family: guard.Guarded
) -> None:
    monkeypatch.setattr(os, "pidfd_open", lambda pid: (_ for _ in ()).throw(OSError(38, "not implemented")))
    mine = identify(family.processes()[0], family.token)
    assert mine is not None
    assert not signal_ours(Identity(pid=mine.pid, started_ticks=1, token=mine.token), signal.SIGKILL)
    assert signal_ours(mine, signal.SIGKILL)
    assert until(lambda: not alive(mine.pid))


def test_a_guard_that_could_not_be_started_leaves_no_open_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with (tmp_path / "log").open("wb") as log:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(OSError, match="temporarily"):
            guard.start(["true"], {}, "f" * 32, log)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
