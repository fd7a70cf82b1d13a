"""A warm process: imports once, touches no GPU, and gives every job a process of its own."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from estimators.outcome import Outcome
from estimators.recipe import Parallelism
from runners import guard, job, launch, processes
from runners.environment import environment_of
from runners.running import WarmJob
from runners.spare import CUDA_NOT_INITIALIZED, Spare, _driver_initialized, _known_capability, leave_nvml, may_fork
from tests.runners import tiny_job
from tests.runners.light_spare import appears, code_of, command_of, scripted
from tests.runners.tiny_job import QUICK


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for a core would make a step slow."""
    monkeypatch.setattr("runners.environment.usable_cores", lambda: 1)


def test_warm_jobs_follow_each_other_and_share_no_process(tmp_path: Path) -> None:
    folders = [tiny_job.make(tmp_path / f"warm{number}", steps=2) for number in range(2)]
    with launch.open_bench((), warm=True) as bench:
        began = time.monotonic()
        spare = bench.prepare(job.read(folders[0]))
        assert spare is not None and spare.ready(120)
        import_seconds = time.monotonic() - began
        assert spare.forks
        results = [launch.run(folder, bench, limits=QUICK) for folder in folders]
        assert bench.prepare(job.read(folders[0])) is spare
        waiting = spare.process.guard.pid
    assert [(result.end.ok, result.warm) for result in results] == [(True, True)] * 2, results[0].end
    assert len({(folder / "beat-0").read_text().split()[0] for folder in folders}) == 2
    assert results[1].seconds < import_seconds / 2, "imports were paid for again"
    assert processes.started_ticks(waiting) is None


def test_a_job_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    """Whatever state it left its process in, the next one starts clean, and as warm."""
    with launch.open_bench((), warm=True) as bench:
        spare = bench.prepare(job.read(tiny_job.make(tmp_path / "wrong", weights="/nonexistent")))
        wrong = launch.run(tmp_path / "wrong", bench, limits=QUICK)
        slow = launch.run(
            tiny_job.make(tmp_path / "slow", steps=100_000), bench, limits=replace(QUICK, total_seconds=2)
        )
        right = launch.run(tiny_job.make(tmp_path / "right", steps=1), bench, limits=QUICK)
        assert bench.prepare(job.read(tmp_path / "wrong")) is spare
        assert spare is not None and len(spare.process.processes()) == 1
    assert [one.end.outcome for one in (wrong, slow, right)] == [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OK]
    assert "File" in (tmp_path / "slow/stacks-0.txt").read_text(), "a real job shows where it is"


def environment_once_there(pid: int) -> bytes:
    """A process that has just been started has an environment a moment later."""
    until = time.monotonic() + 5
    while not (text := Path(f"/proc/{pid}/environ").read_bytes()) and time.monotonic() < until:
        time.sleep(0.01)
    return text


def test_spares_are_kept_per_environment(tmp_path: Path) -> None:
    """torch reads the allocator's settings as it is imported: another setting wants another process."""
    plain = job.Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG)
    expandable = job.Job(recipe=tiny_job.recipe(expandable_segments=True), config=tiny_job.CONFIG)
    with launch.open_bench((), warm=True) as bench:
        spares = [bench.prepare(work) for work in (plain, expandable, plain)]
        assert spares[0] is spares[2] is not spares[1]
        environments = [environment_once_there(one.process.guard.pid) for one in spares if one]
    assert [b"expandable_segments:True" in text for text in environments] == [False, True, False]


def test_a_spare_that_dies_while_importing_is_replaced_by_a_cold_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with launch.open_bench((), warm=True) as bench:
        folder = tiny_job.make(tmp_path, steps=1)
        spare = bench.prepare(job.read(folder))
        assert spare is not None
        spare.process.guard.kill()
        result = launch.run(folder, bench, limits=QUICK)
    assert (result.end.ok, result.warm) == (True, False)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_up(*, forks: bool, before: str = "") -> None:
        monkeypatch.setattr("runners.guard.python", lambda *arguments: command_of(forks=forks, before=before))

    return set_up


def test_spares_that_cannot_fork_serve_once_and_two_wait(tmp_path: Path, light: Callable[..., None]) -> None:
    """Where an import has initialised CUDA, the process is its job itself, and the next one's must be ready too."""
    light(forks=False)
    folders = [scripted(tmp_path / f"job{number}", "leave(GOOD)") for number in range(3)]
    with launch.open_bench((), warm=True) as bench:
        work = job.read(folders[0])
        first = bench.prepare(work)
        assert first is not None and first.ready(20)
        results = [launch.run(folder, bench, limits=QUICK) for folder in folders]
        waiting = bench.refill(work)
        assert len(waiting) == 2 and first not in waiting
        everyone = [first.process.guard.pid, *(spare.process.guard.pid for spare in waiting)]
    assert [(result.end.ok, result.warm) for result in results] == [(True, True)] * 3, results
    assert [pid for pid in everyone if processes.started_ticks(pid) is not None] == []


@pytest.mark.parametrize("forks", [True, False])
def test_a_warm_job_is_cancelled_like_any_other(tmp_path: Path, light: Callable[..., None], forks: bool) -> None:
    light(forks=forks)
    folder = scripted(tmp_path / "endless", "beat('steady', 1); time.sleep(100)")
    cancel = threading.Event()
    with launch.open_bench((), warm=True) as bench:
        result = launch.run(folder, bench, limits=QUICK, progress=lambda line: cancel.set(), cancel=cancel)
        pid = int((folder / "beat-0").read_text().split()[0])
        assert processes.started_ticks(pid) is None
        after = launch.run(scripted(tmp_path / "well", "leave(GOOD)"), bench, limits=QUICK)
    assert (result.end.outcome, result.warm, after.end.ok, after.warm) == (Outcome.CANCELLED, True, True, True)


def test_every_thread_has_a_spare_of_its_own(tmp_path: Path, light: Callable[..., None]) -> None:
    light(forks=True)
    threads_here = 3
    together = threading.Barrier(threads_here, timeout=20)

    def work(thread: int) -> list[tuple[bool, bool]]:
        folders = [scripted(tmp_path / f"{thread}-{number}", "time.sleep(0.2); leave(GOOD)") for number in range(2)]
        with launch.open_bench((), warm=True) as bench:
            together.wait()
            results = [launch.run(folder, bench, limits=QUICK) for folder in folders]
            assert len(bench.spares) == 1
        return [(result.end.ok, result.warm) for result in results]

    with ThreadPoolExecutor(threads_here) as threads:
        assert list(threads.map(work, range(threads_here))) == [[(True, True)] * 2] * threads_here


def test_a_job_is_cancelled_while_its_spare_still_imports(tmp_path: Path, light: Callable[..., None]) -> None:
    light(forks=True, before="time.sleep(100)")
    cancel = threading.Event()
    with launch.open_bench((), warm=True) as bench:
        threading.Timer(0.5, cancel.set).start()
        began = time.monotonic()
        result = launch.run(scripted(tmp_path / "job", "leave(GOOD)"), bench, limits=QUICK, cancel=cancel)
    assert (result.end.outcome, time.monotonic() - began < 5) == (Outcome.CANCELLED, True)


def test_a_spare_too_few_loses_no_job(
    tmp_path: Path, light: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor is started when the job runs already: where that fails, the job is still watched and summed up."""
    light(forks=False)
    folder = scripted(tmp_path / "job", "leave(GOOD)")
    with launch.open_bench((), warm=True) as bench:
        spare = bench.prepare(job.read(folder))
        assert spare is not None and spare.ready(20)
        pid = spare.process.guard.pid
        monkeypatch.setattr(launch, "Spare", no_more_processes)
        result = launch.run(folder, bench, limits=QUICK)
    assert (result.end.ok, result.warm) == (True, True)
    assert processes.started_ticks(pid) is None


def no_more_processes(*arguments: object, **named: object) -> None:
    raise OSError(11, "Resource temporarily unavailable")


def test_a_spare_torn_from_its_job_is_not_used_again(tmp_path: Path, light: Callable[..., None]) -> None:
    """An interrupt between handing over a job and watching it: whatever runs there ends before the next job."""
    light(forks=True)
    lost = scripted(tmp_path / "lost", "beat('steady', 1); time.sleep(100)")
    with launch.open_bench((), warm=True) as bench:
        first = bench.prepare(job.read(lost))
        assert first is not None and first.ready(20)
        first.take(lost)
        result = launch.run(scripted(tmp_path / "next", "leave(GOOD)"), bench, limits=QUICK)
    assert (result.end.ok, processes.started_ticks(first.process.guard.pid)) == (True, None)


DAEMON = """
if os.fork() == 0:
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(100)"])
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("backwards", [False, True])
def test_of_what_is_left_after_a_job_only_the_spare_lives(
    tmp_path: Path, light: Callable[..., None], monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """It says itself which process it is: the guard has other children too, in any order of their numbers."""
    monkeypatch.setattr(processes, "_pids", lambda: sorted(proc_pids(), reverse=backwards))
    light(forks=True, before=DAEMON)
    with launch.open_bench((), warm=True) as bench:
        folders = [scripted(tmp_path / f"job{number}", "leave(GOOD)") for number in range(2)]
        spare = bench.prepare(job.read(folders[0]))
        assert spare is not None and spare.ready(20)
        assert len(spare.process.processes()) == 2
        results = [launch.run(folder, bench, limits=QUICK) for folder in folders]
        assert bench.prepare(job.read(folders[0])) is spare
        assert len(spare.process.processes()) == 1
    assert [(result.end.ok, result.warm) for result in results] == [(True, True)] * 2


FORKER = """
if os.fork() == 0:
    (folder / "waits").write_text("yes")
    while not (folder / "go").exists():
        time.sleep(0.001)
    child = os.fork()
    if child:
        (folder / "forked").write_text(str(child))
    time.sleep(100)
while not (folder / "waits").exists():
    time.sleep(0.001)
leave(GOOD)
"""
"""Leaves a process that starts another one when it is told to."""


def test_what_is_started_while_the_rest_is_killed_does_not_live_on_beside_the_spare(
    tmp_path: Path, light: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    light(forks=True)
    folder = scripted(tmp_path / "job", FORKER)
    with launch.open_bench((), warm=True) as bench:
        spare = bench.prepare(job.read(folder))
        assert spare is not None and spare.ready(20)
        running = WarmJob(spare, folder)
        assert appears(folder / "rank-0.json")

        def listed_too_early() -> list[int]:
            found = proc_pids()
            (folder / "go").touch()
            assert appears(folder / "forked")
            return found

        monkeypatch.setattr(processes, "_pids", listed_too_early)
        running.end()
        monkeypatch.undo()
        late = int((folder / "forked").read_text())
        assert processes.started_ticks(late) is None
        assert not spare.ended and len(spare.process.processes()) == 1


def test_a_spare_beside_which_something_cannot_be_killed_ends(
    tmp_path: Path, light: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does inside the driver: it may still hold the card, and the guard waits for it longer."""
    light(forks=True)
    folder = scripted(tmp_path / "job", "leave(GOOD)")
    with launch.open_bench((), warm=True) as bench:
        spare = bench.prepare(job.read(folder))
        assert spare is not None and spare.ready(20)
        running = WarmJob(spare, folder)
        until = time.monotonic() + 20
        while running.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        monkeypatch.setattr("runners.spare.kill_descendants", lambda *arguments, **named: 1)
        monkeypatch.setattr("runners.guard.LONGEST_DYING_SECONDS", 1.0)
        assert running.end() == 0
        assert spare.ended
        assert processes.started_ticks(spare.process.guard.pid) is None


def proc_pids() -> list[int]:
    return [int(path.name) for path in processes.PROC.iterdir() if path.name.isdecimal()]


def test_no_secret_reaches_a_warm_job(
    tmp_path: Path, light: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "canary-4711")
    light(forks=True)
    folder = scripted(
        tmp_path / "job", "print(dict(os.environ), sys.argv, flush=True); raise ValueError('hf_canary47')"
    )
    with launch.open_bench((), warm=True) as bench:
        result = launch.run(folder, bench, limits=QUICK)
        spare = bench.prepare(job.read(folder))
        assert spare is not None
        waiting = b"".join(
            Path(f"/proc/{pid}/{file}").read_bytes()
            for pid in (spare.process.guard.pid, *spare.process.processes())
            for file in ("environ", "cmdline")
        )
        spare.log.seek(0)
        printed = spare.log.read()
    assert result.warm
    assert b"PATH=" in waiting
    assert b"canary-4711" not in waiting + printed
    assert "canary-4711" not in "".join(path.read_text() for path in folder.iterdir())
    assert "canary" not in (folder / job.RESULT).read_text()


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from runners import guard, launch
from tests.runners import tiny_job
guard.python = lambda *arguments: [sys.executable, "-P", "-c", {code!r}]
with launch.open_bench((), warm=True) as bench:
    launch.run(Path(sys.argv[1]), bench)
"""


def test_killing_us_leaves_neither_a_warm_job_nor_its_spare(tmp_path: Path) -> None:
    daemon = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
    )
    script = f"{daemon}(folder / 'pid').write_text(str(child.pid)); beat('steady', 1); time.sleep(100)"
    folder = scripted(tmp_path / "job", script)
    code = code_of(forks=True)
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM.format(root=str(guard.ROOT), code=code), str(folder)]
    )
    try:
        until = time.monotonic() + 20
        while not (folder / "beat-0").exists() and time.monotonic() < until:
            time.sleep(0.01)
        everyone = processes.descendants(program.pid)
        assert int((folder / "pid").read_text()) in everyone
        assert len(everyone) == 4, "guard, spare, job, daemon"
    finally:
        program.kill()
        program.wait()
    until = time.monotonic() + 1
    while any(processes.started_ticks(pid) for pid in everyone) and time.monotonic() < until:
        time.sleep(0.01)
    assert [pid for pid in everyone if processes.started_ticks(pid) is not None] == []


def test_a_spare_that_could_not_be_started_leaves_no_open_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr("subprocess.Popen", no_more_processes)
    for _ in range(3):
        with pytest.raises(OSError, match="temporarily"):
            Spare({})
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_several_ranks_have_no_spare() -> None:
    parallel = tiny_job.recipe(parallelism=Parallelism(kind="ddp", devices=2))
    with launch.open_bench((), warm=True) as bench:
        assert bench.prepare(job.Job(recipe=parallel, config=tiny_job.CONFIG)) is None


class PlayedDriver:
    """libcuda and libnvidia-ml, as far as they are asked."""

    def __init__(self, answer: int, users: int = 0) -> None:
        self.answer, self.users = answer, users

    def cuCtxGetCurrent(self, context: object) -> int:  # noqa: N802
        return self.answer

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.users -= 1
        return 0 if self.users >= 0 else 1


def test_a_driver_in_use_forbids_forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is loaded proves nothing, nor do its open devices: NVML has those too."""
    assert not _driver_initialized(None)
    assert not _driver_initialized(PlayedDriver(CUDA_NOT_INITIALIZED))
    assert all(_driver_initialized(PlayedDriver(answer)) for answer in (0, 4, 100, 201))
    assert may_fork()
    monkeypatch.setattr("runners.spare._loaded", lambda name: PlayedDriver(0))
    assert not may_fork()
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not may_fork()


def test_nvml_is_left_by_all_who_opened_it() -> None:
    """It counts its users, and the counting of cards adds one each time."""
    driver = PlayedDriver(0, users=3)
    leave_nvml(driver)
    assert driver.users == -1
    leave_nvml(None)


def test_the_cards_kind_is_known_while_importing_and_asked_again_later(tmp_path: Path) -> None:
    """bitsandbytes would initialise CUDA to learn it."""

    ask = torch.cuda.get_device_capability
    with _known_capability("9.0"):
        assert torch.cuda.get_device_capability(0) == (9, 0)
    assert torch.cuda.get_device_capability is ask
    with _known_capability(""):
        assert torch.cuda.get_device_capability is ask


def test_a_spare_ends_with_all_that_it_holds(tmp_path: Path) -> None:
    work = job.Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG)
    spare = Spare(environment_of(work, ()))
    everyone = [spare.process.guard.pid, *spare.process.processes()]
    spare.end()
    assert [pid for pid in everyone if processes.started_ticks(pid) is not None] == []
