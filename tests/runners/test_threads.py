"""Several jobs at once, each in a thread and on a bench of its own: they end, are cancelled and are judged apart."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from estimators.outcome import Outcome, Result
from runners import ends, guard, job, launch, processes
from tests.runners import tiny_job
from tests.runners.tiny_job import QUICK

ROOT = Path(__file__).parents[2]
ENDLESS = (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); beat('steady', 1)\n"
    "time.sleep(100)"
)
Submit = Callable[..., "Future[Result]"]


@pytest.fixture
def submit() -> Iterator[Submit]:
    """Runs a stand-in in a thread, on its own bench."""
    with ThreadPoolExecutor(8) as threads:

        def one(folder: Path, script: str, cancel: threading.Event | None = None) -> "Future[Result]":
            tiny_job.make(folder)
            return threads.submit(work, folder, script, cancel)

        def work(folder: Path, script: str, cancel: threading.Event | None) -> Result:
            with launch.open_bench(()) as bench:
                bench = replace(bench, child=tiny_job.stand_in(script))
                return launch.run(folder, bench, limits=QUICK, cancel=cancel)

        yield one


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists()


def pid_of(folder: Path) -> int:
    wait_for(folder / "beat-0")
    return int((folder / "beat-0").read_text().split()[0])


def test_jobs_in_threads_end_apart(tmp_path: Path, submit: Submit) -> None:
    """One is killed, one is cancelled, and the one beside them notices nothing."""
    cancel = threading.Event()
    folders = {name: tmp_path / name for name in ("killed", "cancelled", "well")}
    killed = submit(folders["killed"], ENDLESS)
    cancelled = submit(folders["cancelled"], ENDLESS, cancel)
    well = submit(folders["well"], "beat('steady', 3)\nwhile not Path('go').exists(): time.sleep(0.01)\nleave(GOOD)")
    pids = [pid_of(folder) for folder in folders.values()]
    os.kill(pids[0], signal.SIGKILL)
    assert killed.result(20).end.outcome is Outcome.FAILED
    assert not cancelled.done() and not well.done()
    cancel.set()
    began = time.monotonic()
    end = cancelled.result(20).end
    assert (end.outcome, end.evidence) == (Outcome.CANCELLED, "cancelled")
    assert time.monotonic() - began < 1.0
    (folders["well"] / "go").touch()
    assert well.result(20).end.ok
    assert [pid for pid in pids if processes.started_ticks(pid) is not None] == []


def test_a_kill_for_want_of_memory_is_blamed_on_the_job_that_was_killed(
    tmp_path: Path, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them see the kernel's count of their common group rise."""
    count = tmp_path / "count"
    count.write_text("0")
    monkeypatch.setattr(ends, "oom_kills", lambda: int(count.read_text()))
    wait = "beat('steady', 1)\nwhile not Path('go').exists(): time.sleep(0.01)\n"
    scripts = {"killed": "os.kill(os.getpid(), 9)", "failed": "os._exit(3)", "well": "leave(GOOD)"}
    jobs = {name: submit(tmp_path / name, wait + script) for name, script in scripts.items()}
    for name in scripts:
        pid_of(tmp_path / name)
    count.write_text("1")
    for name in scripts:
        (tmp_path / name / "go").touch()
    outcomes = {name: future.result(20).end.outcome for name, future in jobs.items()}
    assert outcomes == {"killed": Outcome.HOST_OUT_OF_MEMORY, "failed": Outcome.FAILED, "well": Outcome.OK}


def test_a_job_is_not_bound_to_the_thread_that_started_it(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG would fire when that thread ends, not when we do."""
    held: list[guard.Guarded] = []

    def start() -> None:
        with (tmp_path / "log").open("wb") as log:
            held.append(guard.start([sys.executable, "-c", "import time; time.sleep(100)"], {}, "f" * 32, log))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert held[0].poll() is None
    assert held[0].end() == -signal.SIGKILL


def test_a_job_that_is_cancelled_beforehand_never_starts(tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    tiny_job.make(tmp_path)
    with launch.open_bench(()) as bench:
        bench = replace(bench, child=tiny_job.stand_in("Path('started').touch()"))
        result = launch.run(tmp_path, bench, limits=QUICK, cancel=cancel)
    assert result.end.outcome is Outcome.CANCELLED
    assert not (tmp_path / "started").exists()
    assert json.loads((tmp_path / job.RESULT).read_text())["end"]["outcome"] == "cancelled"


PROGRAM = """
import sys, threading, time
sys.path.insert(0, {root!r})
from dataclasses import replace
from pathlib import Path
from runners import launch
from tests.runners import tiny_job

def work(folder):
    with launch.open_bench(()) as bench:
        launch.run(folder, replace(bench, child=tiny_job.stand_in({script!r})), limits=tiny_job.QUICK)

for name in sys.argv[1:]:
    threading.Thread(target=work, args=[tiny_job.make(Path(name))]).start()
time.sleep(100)
"""


def test_a_program_that_a_ctrl_c_ends_ends_the_jobs_of_its_threads(tmp_path: Path) -> None:
    """Python waits for its threads: without this they would train on after the prompt is back."""
    folders = [tmp_path / "one", tmp_path / "two"]
    code = PROGRAM.format(root=str(ROOT), script=ENDLESS)
    program = subprocess.Popen([sys.executable, "-P", "-c", code, *map(str, folders)], stderr=subprocess.DEVNULL)
    try:
        pids = [pid_of(folder) for folder in folders]
        program.send_signal(signal.SIGINT)
        program.wait(10)
    finally:
        program.kill()
        program.wait()
    assert [pid for pid in pids if processes.started_ticks(pid) is not None] == []
    ended = [json.loads((folder / job.RESULT).read_text())["end"] for folder in folders]
    assert [end["outcome"] for end in ended] == ["cancelled"] * 2
